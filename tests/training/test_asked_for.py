"""What was asked for is what is read, or is refused with the command that makes it; config.yaml tells what was read."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tiny_transformer.cli import run
from tiny_transformer.config.load import load_run_config
from tiny_transformer.data.meta import META_FILE, read_meta
from tiny_transformer.data.prepare.files import name_of
from tiny_transformer.errors import ExitCode, UserError
from tiny_transformer.stages.launch import choose_run_dir
from tiny_transformer.stages.training_data import as_read, open_training_data, settle_data_dir, with_evaluations

SMALL = ["--tokenizer", "byte", "--seq_len", "16"]
SHAPE = ["--model.hidden_size", "32", "--model.num_hidden_layers", "1", "--model.num_attention_heads", "4"]


def story(word: str) -> str:
    return "".join(f"{word} {i} is {i * i} and more.\n<|endoftext|>\n" for i in range(120))


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with a text of one's own."""
    monkeypatch.chdir(tmp_path)
    Path("my.txt").write_text(story("hen"))
    return tmp_path


class Launch:
    """`train` up to the point where the data is open."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self.capsys = capsys
        self.request: Any = None
        self.config: Any = None
        self.printed = ""

    def pretrain(self, request: Any, console: Any) -> Any:
        config = settle_data_dir(request, choose_run_dir(request), console)
        self.request, self.config = request, as_read(config, open_training_data(config, console))
        return SimpleNamespace(is_first=False, status="finished")

    def __call__(self, *words: str, code: int = 0) -> str:
        """Run `train`; what it prints, in one line."""
        self.request = self.config = None
        self.capsys.readouterr()
        assert run(["train", *words]) == code
        out, err = self.capsys.readouterr()
        self.printed = " ".join((err if code else out).split())
        return self.printed


@pytest.fixture
def train(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Launch:
    launch = Launch(capsys)
    monkeypatch.setattr("tiny_transformer.stages.launch.launch", launch.pretrain)
    return launch


# --- a directory that nobody named


def test_the_same_again_takes_the_same_data(home: Path, train: Launch) -> None:
    train("--source", "my.txt", *SMALL)
    before = (home / "data/my/train.bin").stat().st_mtime_ns
    said = train("--source", "my.txt", *SMALL)
    assert (train.config.data.data_dir, said) == (Path("data/my"), "")
    assert (home / "data/my/train.bin").stat().st_mtime_ns == before
    assert train.request.name == "my"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (["--tokenizer", "char"], "tokenizer: byte, not char"),
        (["--val_fraction", "0.3"], "val_fraction: the default, not 0.3"),
        (["--max_bytes", "900"], "max_bytes: the default, not 900"),
        (["--tokenizer", "bpe", "--vocab_size", "300"], "tokenizer: byte, not bpe"),
    ],
)
def test_other_settings_get_a_directory_of_their_own_and_a_sentence(
    home: Path, train: Launch, change: list[str], reason: str
) -> None:
    train("--source", "my.txt", *SMALL)
    for verb in ("using", "reading"):  # and the second time the one that was made then
        said = train("--source", "my.txt", *SMALL[2:], *(change if "--tokenizer" in change else SMALL[:2] + change))
        assert f"{verb} data/my-2: data/my holds different data" in said
        assert reason in said
        assert train.config.data.data_dir == Path("data/my-2")


def test_an_edited_text_and_one_of_the_same_stem_are_read(home: Path, train: Launch) -> None:
    train("--source", "my.txt", *SMALL)
    Path("my.txt").write_text(story("egg"))
    assert "my.txt has changed since it was prepared" in train("--source", "my.txt", *SMALL)
    Path("other").mkdir()
    Path("other/my.md").write_text(story("fox"))
    assert "source: my.txt, not other/my.md" in train("--source", "other/my.md", *SMALL)
    assert [read_meta(Path(f"data/{name}")).source for name in ("my", "my-2", "my-3")] == ["my.txt"] * 2 + [
        "other/my.md"
    ]
    assert train.config.data.source == "other/my.md"


def test_a_text_that_was_copied_touched_or_is_named_otherwise_is_the_same(home: Path, train: Launch) -> None:
    train("--source", "my.txt", *SMALL)
    os.utime("my.txt", ns=(1, 1))
    shutil.copy("my.txt", "copy.txt")
    for name in ("./my.txt", str(home / "my.txt")):
        train("--source", name, *SMALL)
        assert train.config.data.data_dir == Path("data/my")
    assert train("--source", "copy.txt", "--data_dir", "data/my", *SMALL) == ""


def test_a_preset_does_not_keep_the_text_of_an_earlier_run(home: Path, train: Launch) -> None:
    shape = ["--config", "tiny", *SMALL]
    train(*shape, "--max_bytes", "20000")
    assert (train.request.name, train.config.data.data_dir) == ("tiny", Path("data/tiny"))
    train(*shape, "--source", "my.txt")
    assert (train.request.name, train.config.data.data_dir) == ("tiny", Path("data/my"))
    assert train.config.data.source == "my.txt"


def test_the_tokenizer_that_was_chosen_by_size_answers_its_size_too(home: Path, train: Launch) -> None:
    train("--source", "my.txt", "--seq_len", "16")
    size = read_meta(Path("data/my")).vocab_size
    train("--source", "my.txt", "--seq_len", "32", "--tokenizer", "auto", "--vocab_size", str(size))
    assert train.config.data.data_dir == Path("data/my")


def test_the_size_of_a_vocabulary_is_that_of_the_tokenizer_as_in_prepare(home: Path, train: Launch) -> None:
    """It was the model's: rows of an embedding that no token ever uses."""
    train("--source", "my.txt", "--seq_len", "16", "--vocab_size", "262")
    assert (read_meta(Path("data/my")).vocab_size, train.config.model.vocab_size) == (262, None)
    said = train("--source", "my.txt", *SMALL, "--data_dir", "b", "--vocab_size", "270", code=ExitCode.USAGE)
    assert "vocab_size 270 does not apply to the byte tokenizer" in said


# --- a directory that was named


@pytest.mark.parametrize(
    ("change", "reason", "command"),
    [
        (["--source", "stories"], "source: my.txt, not stories", "--source stories --tokenizer byte"),
        (["--tokenizer", "char"], "tokenizer: byte, not char", "--source my.txt --tokenizer char"),
        (["--vocab_size", "300"], "vocab_size: the default, not 300", "--vocab_size 300"),
        (["--val_fraction", "0.3"], "val_fraction: the default, not 0.3", "--val_fraction 0.3"),
        (["--max_bytes", "900"], "max_bytes: the default, not 900", "--max_bytes 900"),
        (["--text_field", "body"], "text_field: text, not body", "--text_field body"),
    ],
)
@pytest.mark.parametrize("config", [[], ["--config", "tiny"]])
def test_other_data_is_refused_with_the_command_that_makes_it(
    home: Path, train: Launch, change: list[str], reason: str, command: str, config: list[str]
) -> None:
    train("--source", "my.txt", "--data_dir", "data/x", *SMALL)
    said = train(*config, "--data_dir", "data/x", *change, code=ExitCode.USAGE)
    assert reason in said
    assert "try: tiny-transformer prepare --source" in said and command in said
    assert "--out_dir data/x --overwrite; or another --data_dir" in said


def test_the_command_that_is_given_works(home: Path, train: Launch) -> None:
    Path("it's [mine].txt").write_text(story("fox"))
    train("--source", "it's [mine].txt", "--data_dir", "data/x y", *SMALL)
    asked = ["--data_dir", "data/x y", "--tokenizer", "char", *SMALL[2:]]
    train(*asked, code=ExitCode.USAGE)
    import shlex

    command = train.printed.partition("try: tiny-transformer ")[2].partition("; or")[0]
    assert run(shlex.split(command)) == 0
    assert train(*asked) == ""
    assert (train.config.data.source, train.config.data.tokenizer) == ("it's [mine].txt", "char")


def test_a_file_that_names_data_and_directory_is_held_to_both(home: Path, train: Launch) -> None:
    train("--source", "my.txt", "--data_dir", "data/x", *SMALL)
    Path("r.yaml").write_text("data: {data_dir: data/x, source: stories, seq_len: 16}\n")
    assert "source: my.txt, not stories" in train("--config", "r.yaml", code=ExitCode.USAGE)
    Path("other.yaml").write_text("data: {data_dir: data/y, source: stories, seq_len: 16}\n")
    said = train("--config", "other.yaml", "--data_dir", "data/x")  # the command line is stronger, and says so
    assert "data/x is used as it is" in said and "source: my.txt, not stories" in said
    assert train.config.data.source == "my.txt"


def test_what_the_config_says_is_what_was_read(home: Path, train: Launch) -> None:
    train("--source", "my.txt", "--data_dir", "data/x", "--val_fraction", "0.2", "--max_bytes", "3000", *SMALL)
    train("--data_dir", "data/x", "--seq_len", "32")
    data = train.config.data
    assert (data.source, data.tokenizer, data.val_fraction, data.max_bytes) == ("my.txt", "byte", 0.2, 3000)
    assert data.seq_len == 32  # a run's own choice
    Path("again.json").write_text(json.dumps({"data": data.model_dump(mode="json")}))
    assert train("--config", "again.json") == ""  # every key of it stands there, and agrees


def test_an_older_meta_json_is_compared_in_what_it_tells(home: Path, train: Launch) -> None:
    train("--source", "my.txt", "--data_dir", "data/x", *SMALL)
    meta = read_meta(Path("data/x"))
    request = {**meta.request, "source_fingerprint": "0" * 64, "val_fraction": 0.02}
    del request["source_identity"]
    Path("data/x", META_FILE).write_text(dataclasses.replace(meta, request=request).to_json())
    assert train("--data_dir", "data/x", "--source", "my.txt", "--tokenizer", "byte") == ""
    assert "source: my.txt" in train("--data_dir", "data/x", "--source", "stories", code=ExitCode.USAGE)
    assert "val_fraction" in train("--data_dir", "data/x", "--val_fraction", "0.1", code=ExitCode.USAGE)


def test_token_files_of_another_program_are_answered_with_the_command_that_takes_them_in(
    home: Path, train: Launch
) -> None:
    Path("theirs").mkdir()
    for name in ("train.bin", "validation.bin"):
        Path("theirs", name).write_bytes(bytes(4000))
    command = "tiny-transformer import theirs --out_dir theirs-imported --tokenizer gpt2"
    assert command in train("--data_dir", "theirs", code=ExitCode.USAGE)
    said = train("--data_dir", "theirs", "--source", "my.txt", *SMALL, code=ExitCode.USAGE)
    assert "theirs" in said and command in said  # nothing there is replaced
    assert Path("theirs/train.bin").read_bytes() == bytes(4000)


def test_data_that_was_taken_in_is_compared_in_what_is_known_of_it(home: Path, train: Launch) -> None:
    Path("theirs").mkdir()
    for name in ("train.bin", "val.bin"):
        Path("theirs", name).write_bytes(bytes([65, 0] * 2000))
    assert run(["import", "theirs", "--out_dir", "taken", "--tokenizer", "byte"]) == 0
    assert train("--data_dir", "taken", "--tokenizer", "byte") == ""
    assert train.config.data.source == "theirs"
    assert "tokenizer: byte, not char" in train("--data_dir", "taken", "--tokenizer", "char", code=ExitCode.USAGE)
    assert "source: theirs, not my.txt" in train("--data_dir", "taken", "--source", "my.txt", code=ExitCode.USAGE)
    said = train("--data_dir", "taken", "--val_fraction", "0.1", code=ExitCode.USAGE)
    assert "val_fraction: not known, not 0.1" in said
    assert train("--data_dir", "taken", "--text_field", "text", "--tokenizer", "byte") == ""  # what it is by default
    assert "text_field: not known, not body" in train(
        "--data_dir", "taken", "--text_field", "body", code=ExitCode.USAGE
    )


# --- a run that goes on


def test_a_resumed_run_keeps_its_data_and_never_makes_new(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = [*SMALL, *SHAPE, "--device", "cpu", "--sample_prompts", "[]"]
    start = ["train", "--source", "my.txt", *options]
    assert run([*start, "--steps", "2"]) == 0
    saved = load_run_config("runs/my/config.yaml")
    assert (saved.data.source, saved.data.data_dir) == ("my.txt", Path("data/my"))
    Path("my.txt").write_text(story("egg"))
    assert run(["train", "--source", "my.txt", "--resume", "--steps", "3", *options]) == ExitCode.USAGE
    assert "has changed" in capsys.readouterr().err
    assert run(["train", "--resume", "--out_dir", "runs/my", "--steps", "3"]) == 0
    assert run(["train", "--resume", "--out_dir", "runs/my", "--val_fraction", "0.3"]) == ExitCode.USAGE
    assert "val_fraction: the default, not 0.3" in capsys.readouterr().err
    Path("data").rename("elsewhere")
    assert run(["train", "--resume", "--out_dir", "runs/my", "--steps", "4"]) == ExitCode.USAGE
    assert "the data of this run, data/my, is missing" in capsys.readouterr().err
    assert not Path("data").exists()
    assert run(["train", "--resume", "--out_dir", "runs/my", "--steps", "4", "--data_dir", "elsewhere/my"]) == 0


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("stories", "stories"),
        ("a/my.txt", "my"),
        ("a/my book.txt.gz", "my-book"),
        ("roneneldan/TinyStories", "TinyStories"),
        ("a/texts/*.txt", "texts"),
        ("a/texts/**/*.md", "texts"),
        ("a/texts/", "texts"),
        ("a/../texts/.", "texts"),
        ("v1.2.txt", "v1.2"),
        ("红楼梦.txt", "红楼梦"),
        ("a [b].jsonl.zst", "a-b"),
        ("???", "text"),
    ],
)
def test_a_run_is_called_after_its_text(source: str, name: str, home: Path) -> None:
    Path("a [b].jsonl.zst").touch()
    assert name_of(source) == (home.name if name == "text" else name)


# --- how often a run is evaluated


@pytest.mark.parametrize(
    ("training", "eval_steps", "eval_tokens", "without_text"),
    [
        ({}, "auto", None, None),
        ({"max_train_minutes": 1}, "auto", None, None),
        ({"micro_batch_size": 2}, "auto", 8 * 2 * 16, None),  # 700 tokens are more than eight steps read
        ({"eval_tokens": 9, "micro_batch_size": 2}, "auto", 9, None),
        ({"eval_tokens": None, "micro_batch_size": 2}, "auto", None, None),  # all of it, as asked
        ({"eval_steps": None}, None, None, None),
        ({"eval_steps": 33}, 33, None, 33),
    ],
)
def test_how_often_and_on_how_much_a_run_is_evaluated(
    training: dict[str, Any], eval_steps: object, eval_tokens: int | None, without_text: int | None
) -> None:
    config = load_run_config({"data": {"seq_len": 16}, "training": training})
    meta: Any = SimpleNamespace(val=SimpleNamespace(num_tokens=700))
    found = with_evaluations(config, meta).training
    assert (found.eval_steps, found.eval_tokens) == (eval_steps, eval_tokens)
    nothing: Any = SimpleNamespace(val=SimpleNamespace(num_tokens=1))
    assert with_evaluations(config, nothing).training.eval_steps == without_text


def test_without_held_out_text_nothing_can_stop_early() -> None:
    nothing: Any = SimpleNamespace(val=SimpleNamespace(num_tokens=1))
    with pytest.raises(UserError, match="early_stopping_patience needs validation text"):
        with_evaluations(load_run_config({"training": {"early_stopping_patience": 2}}), nothing)


def evaluated_steps(run_dir: str) -> list[int]:
    records = [json.loads(line) for line in Path(run_dir, "log.jsonl").read_text().splitlines()]
    return [record["step"] for record in records if "val_loss" in record]


def test_a_resumption_of_another_length_is_evaluated_as_its_own_length_asks(home: Path) -> None:
    """It kept the interval of the length that was asked for at first: 40 steps were evaluated twenty times."""
    quick = [*SHAPE, *SMALL, "--device", "cpu", "--micro_batch_size", "2", "training.sample_prompts=[]"]
    assert run(["train", "my.txt", "--steps", "16", "--out_dir", "r", *quick]) == 0
    assert run(["train", "--resume", "--out_dir", "r", "--steps", "40"]) == 0
    assert evaluated_steps("r") == [2, 4, 6, 8, 10, 12, 14, 16, 20, 25, 30, 35, 40]


def test_own_text_and_steps_are_enough_for_a_loss_on_held_out_text(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    quick = [*SHAPE, *SMALL, "--device", "cpu", "--micro_batch_size", "2", "training.sample_prompts=[]"]
    assert run(["train", "--source", "my.txt", "--steps", "16", *quick]) == 0
    told = capsys.readouterr().out
    assert "still" not in told and "no evaluation" not in told and "this model" in told
    assert evaluated_steps("runs/my") == [2, 4, 6, 8, 10, 12, 14, 16]
    assert (Path("runs/my/best")).exists()
    assert load_run_config(Path("runs/my/config.yaml")).training.eval_steps == "auto"
    passes = float(re.search(r"this run sees ([\d.]+) times", told)[1])  # ty: ignore[not-subscriptable]
    last = json.loads(Path("runs/my/log.jsonl").read_text().splitlines()[-1])
    assert passes == round(last["epoch"], 2)
