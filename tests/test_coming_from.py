"""docs/COMING_FROM.md, row by row: commands are accepted and run, keys mean what stands beside them, Python lines run,
files are there."""

from __future__ import annotations

import importlib.util
import io
import json
import shlex
import shutil
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import typer
import yaml

from tiny_transformer.cli import app, run
from tiny_transformer.cli.training import TrainOptions, _config_and_overrides
from tiny_transformer.config.load import load_run_config
from tiny_transformer.data.token_file import open_dataset
from tiny_transformer.errors import ExitCode, UserError

PAGE = Path(__file__).parent.parent / "docs/COMING_FROM.md"
TABLES = 9
KINDS = ("command", "key", "Python", "file")
AS_PRINTED, NOTHING, REFUSED = "as printed", "—", "refused"
MODULES = {"prepare_dataset": "prepare", "train": "train", "sample": "generate"}
OTHERS = ("conda", "pip", "pre-commit", "python3", "hf", "torchrun", "git")  # programs that are not run here

SMALL: dict[str, Any] = {
    "model": {
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "intermediate_size": 64,
        "max_position_embeddings": 512,
    },
    "data": {"source": "my.txt", "seq_len": 32},
    "training": {"micro_batch_size": 2, "sample_prompts": []},
}
TRAINING = ("train", "finetune", "align")
LENGTHS = ("steps", "max_tokens", "max_iters")
# Read and not run: Numba compiles for ten seconds; a model of llama2.c, whose import has its own tests.
ONLY_READ = ("--engine fast", "import stories.bin")


class Row(NamedTuple):
    """A line of a table."""

    table: str
    kind: str
    there: str
    here: str
    note: str

    @property
    def typed(self) -> str | None:
        """What to type here; None where there is nothing."""
        cell = self.there if self.here == AS_PRINTED else self.here
        return None if cell == NOTHING else cell.removeprefix("`").removesuffix("`")


def rows_of_page() -> list[Row]:
    """The lines of every table."""
    rows, table = [], ""
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        if line.startswith("## "):
            table = line[3:]
        elif line.startswith("| ") and not line.startswith(("| kind ", "| --- ")):
            cells = [cell.strip() for cell in line.strip("|").split(" |")]
            rows.append(Row(table, *cells))
    return rows


ROWS = rows_of_page()


def of_kind(kind: str) -> list[Row]:
    return [row for row in ROWS if row.kind == kind]


def our_command(text: str) -> tuple[str, list[str], dict[str, Any]] | None:
    """Verb, words and defaults of a command of ours; None for another program's."""
    words = shlex.split(text)
    if words[0] == "tiny-transformer":
        return words[1], words[2:], {}
    if words[:2] == ["python", "-m"] and words[2].startswith("tiny_transformer."):
        module = words[2].split(".")[1]
        return MODULES[module], words[3:], {"source": "wiki-intros"} if module == "prepare_dataset" else {}
    return None


def commands() -> list[tuple[str, list[str], dict[str, Any]]]:
    """Each command of ours on the page, once."""
    texts = dict.fromkeys(row.typed for row in of_kind("command") if row.typed)
    return [command for text in texts if (command := our_command(text))]


def test_the_page_has_its_tables_and_no_cell_is_empty() -> None:
    assert len({row.table for row in ROWS}) == TABLES
    for row in ROWS:
        assert row.kind in KINDS and row.there and row.here, row
        is_code = row.here.startswith("`") and row.here.endswith("`")
        assert is_code or row.here in (AS_PRINTED, NOTHING), row
        assert row.here != NOTHING or row.note, f"nothing to type, and no word on it: {row}"
        assert not row.note.startswith(REFUSED) or row.kind == "key", row


def test_every_command_is_accepted_and_every_config_is_read(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(repository)
    group = typer.main.get_command(app)
    found = commands()
    assert len(found) > 50
    for verb, words, _ in found:
        command = group.commands[verb]  # ty: ignore[unresolved-attribute]
        context = command.make_context(verb, list(words))
        if verb == "train":
            given = {name: value for name, value in context.params.items() if name in TrainOptions.__annotations__}
            config, overrides = _config_and_overrides(context, TrainOptions(**given))
            load_run_config(config, overrides)
        elif verb in ("finetune", "align"):
            load_run_config(context.params["config"], [f"stage={verb}", "init_from=runs/demo"])
        else:
            assert not context.args or verb == "profile", f"not an option: {context.args}"


@pytest.mark.parametrize("row", of_kind("key"), ids=lambda row: row.there)
def test_a_key_means_what_stands_beside_it(row: Row, tmp_path: Path) -> None:
    """Both sides are pasted into a file."""

    def read(text: str) -> dict[str, Any]:
        (tmp_path / "config.yaml").write_text(text, encoding="utf-8")
        return load_run_config(tmp_path / "config.yaml").model_dump()

    ours = read(row.typed) if row.typed else None
    if row.note.startswith(REFUSED):
        with pytest.raises(UserError) as refused:
            read(row.there.strip("`"))
        told = f"{refused.value.what} {refused.value.remedy}"
        assert any(word in told for word in (*words_of(yaml.safe_load(row.typed or "")), "leave it out")), told
    else:
        assert read(row.there.strip("`")) == ours


def words_of(tree: Any) -> list[str]:
    """The names of all sections and keys."""
    return [] if not isinstance(tree, dict) else [name for key in tree for name in (key, *words_of(tree[key]))]


def test_commands_of_other_programs_name_files_that_are_there(repository: Path) -> None:
    for row in of_kind("command"):
        if row.typed and our_command(row.typed) is None:
            words = shlex.split(row.typed)
            assert words[0] in OTHERS, row
            named = [word for word in words if word.endswith((".yml", ".txt", ".yaml"))]
            assert all((repository / name).is_file() for name in named), row
            if words[0] == "torchrun":
                command = our_command("tiny-transformer " + row.typed.partition(" tiny_transformer ")[2])
                assert command and command[0] == "train", row


def test_the_citation_has_the_version_of_the_project(repository: Path) -> None:
    citation = yaml.safe_load((repository / "CITATION.cff").read_text(encoding="utf-8"))
    project = tomllib.loads((repository / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()
    assert (citation["version"], citation["license"]) == (project["version"], project["license"])
    assert citation["authors"] == [{"name": "The tiny-transformer founders"}]


# --- what is run
# ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A directory with everything that the right-hand column names, made once: data, a run, files."""
    root, repository = tmp_path_factory.mktemp("coming"), PAGE.parent.parent
    for name in ("configs", "cases", "docs", "notebooks", "tiny_transformer"):
        (root / name).symlink_to(repository / name)
    for name in ("README.md", "LICENSE", "CONTRIBUTING.md", "CITATION.cff", "requirements.txt", ".gitignore"):
        (root / name).symlink_to(repository / name)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        before = torch.get_num_threads()
        torch.set_num_threads(1)
        make_files(root)
        assert (
            run(["prepare", "--source", "my.txt", "--tokenizer", "byte", "--seq_len", "32", "--out_dir", "data"])
            == ExitCode.OK
        )
        shutil.copytree("data", "data/demo")
        assert (
            run(["train", "--config", "small.yaml", "--data_dir", "data", "--out_dir", "runs/demo", "--steps", "2"])
            == ExitCode.OK
        )
        for name in ("runs_qwen3", "runs_qwen3_next"):
            shutil.copytree("runs/demo", name, symlinks=True)
        shutil.copytree("runs/demo/best", "theirs")
        make_token_files(root)
        yield root
        torch.set_num_threads(before)


def make_files(root: Path) -> None:
    """Texts, conversations, labels, questions."""
    lines = [f"The {animal} number {i} ran over hill {i * i}." for i in range(40) for animal in ("hen", "fox")]
    (root / "data").mkdir()
    for name, first in {"my.txt": 0, "data/input.txt": 0, "data/more.txt": 1}.items():
        (root / name).write_text("\n\n".join(lines[first:]), encoding="utf-8")
    shutil.copy(PAGE.parent.parent / "data/tiny_corpus.txt", root / "data")
    tables: dict[str, list[dict[str, Any]]] = {
        "answers.jsonl": [{"instruction": f"Count to {i}.", "output": f"It is {i}."} for i in range(30)],
        "pairs.jsonl": [{"prompt": f"Count to {i}.", "chosen": f"It is {i}.", "rejected": "No."} for i in range(30)],
        "labels.jsonl": [{"text": f"so {word} {i}", "label": word} for i in range(20) for word in ("dull", "fine")],
        "questions.jsonl": [{"query": "Who ran?", "choices": ["a hen", "a stone"], "gold": 0}],
    }
    for name, rows in tables.items():
        (root / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (root / "small.yaml").write_text(yaml.safe_dump(SMALL), encoding="utf-8")


def make_token_files(root: Path) -> None:
    """Token files as nanoGPT writes them: ids alone."""
    (root / "nanogpt").mkdir()
    tokens = np.asarray(open_dataset(root / "data").train[:2000], dtype=np.uint16)
    for name in ("train.bin", "val.bin"):
        tokens.tofile(root / "nanogpt" / name)


def small_command(verb: str, words: list[str], number: int) -> list[str]:
    """A command as it is run: three steps, a small config, a text that is here, and nothing replaced."""
    kept, left = [], list(words)
    while left:
        word = left.pop(0)
        name = word[2:].partition("=")[0] if word.startswith("--") else ""
        value = [left.pop(0)] if name and "=" not in word and left and not left[0].startswith("--") else []
        if verb in TRAINING and name in LENGTHS:
            continue
        if verb in TRAINING and name == "config":
            value = ["small.yaml"]
        elif name == "out_dir" and "--resume" not in words and Path(value[0]).exists():
            value = [f"new/{number}"]
        elif name == "seq_len":
            value = ["32"]
        value = [{"wikipedia": "my.txt", "gpt2": "byte"}.get(one, one) for one in value]  # neither needs a network
        kept += [word, *value]
    if verb == "prepare":
        kept += ["--source", "my.txt"] * ("--source" not in kept) + ["--seq_len", "32"] * ("--seq_len" not in kept)
    if verb in TRAINING:
        kept += ["--config", "small.yaml"] * (not {"--config", "--resume"} & set(kept))
        kept += ["--source", "answers.jsonl"] * (verb == "finetune" and "--source" not in kept)
        kept += ["--seq_len", "128"] * (verb in ("finetune", "align") or "--stage" in kept)
        kept += ["steps=3"]
    return kept


@pytest.mark.slow
def test_every_command_runs(place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(place)
    for number, (verb, words, _) in enumerate(commands()):
        if any(part in shlex.join([verb, *words]) for part in ONLY_READ):
            continue
        monkeypatch.setattr("sys.stdin", io.StringIO("Once\n"))
        command = [verb, *small_command(verb, words, number)]
        code = run(command)
        assert code == ExitCode.OK, f"{shlex.join(command)}\n{capsys.readouterr().err}"
        capsys.readouterr()


@pytest.mark.slow
def test_every_file_is_there(place: Path) -> None:
    for row in of_kind("file"):
        assert row.typed is None or (place / row.typed).exists(), row


@pytest.mark.slow
@pytest.mark.parametrize("table", sorted({row.table for row in of_kind("Python")}))
def test_the_python_lines_of_a_table_run_in_order(
    table: str, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    lines = ["from pathlib import Path", "import torch", "from tiny_transformer import load"]
    for row in of_kind("Python"):
        if row.table == table and row.typed:
            lines.append(row.typed)
            if "QWEN3_CONFIG =" in row.typed:  # as printed it has 283 M weights
                lines.append('QWEN3_CONFIG |= {"vocab_size": 64, "d_model": 32, "n_layers": 1, "d_ff": 64}')
    typed = tmp_path / "typed.py"
    typed.write_text("\n".join(lines), encoding="utf-8")
    spec = importlib.util.spec_from_file_location("typed", typed)
    assert spec is not None and spec.loader is not None
    spec.loader.exec_module(importlib.util.module_from_spec(spec))
    capsys.readouterr()
