"""`inspect data`: every token of a sequence is shown once, borders are visible with and without colour."""

from __future__ import annotations

import io
import re
from itertools import pairwise
from pathlib import Path

import pytest
from rich.console import Console

from tiny_transformer.config.schema import DataConfig
from tiny_transformer.data.packing import BestFit, Concatenated
from tiny_transformer.data.prepare.command import prepare
from tiny_transformer.data.token_file import open_dataset
from tiny_transformer.errors import UserError
from tiny_transformer.inspection.tokens import (
    BORDER,
    LINE_BREAK,
    InspectOptions,
    documents_of,
    inspect_data,
    token_text,
)
from tiny_transformer.tokenizers import make_tokenizer

TEXTS = [f"Zoë {i} saw {'a big ' * (i % 5)}dog ✓.\nIt ran{' far' * (i % 3)}." for i in range(80)]


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("inspect")
    source = directory / "dogs.txt"
    source.write_text("\n<|endoftext|>\n".join(TEXTS), encoding="utf-8")
    prepare(
        DataConfig(source=str(source), tokenizer="bpe", vocab_size=300, seq_len=48, val_fraction=0.2),
        directory / "data",
    )
    return directory / "data"


def shown(data_dir: Path, *, colour: bool = False, **options: object) -> str:
    screen = io.StringIO()
    console = Console(file=screen, width=10_000, force_terminal=colour, color_system="truecolor" if colour else None)
    inspect_data(data_dir, InspectOptions(**options), console)  # ty: ignore[invalid-argument-type]
    return screen.getvalue()


def bodies(output: str) -> list[str]:
    """The text of each document shown, without borders and headlines."""
    parts = re.split(r"--- document .*? ---\n", output.partition("sequence")[2])[1:]
    texts = [re.split(r"\n\n(?:train|val) sequence", part)[0].rstrip("\n") for part in parts]
    return [text.replace(BORDER, "").replace(f"{LINE_BREAK}\n", "\n").replace("…", "") for text in texts]


@pytest.mark.parametrize("packing", ["concat", "documents"])
def test_what_is_shown_are_the_documents_with_their_ends(data_dir: Path, packing: str) -> None:
    output = shown(data_dir, packing=packing, count=10_000, seq_len=1000)
    told = bodies(output)
    assert len(told) > 50
    assert all(text.endswith("<|endoftext|>") for text in told)
    assert {text.removesuffix("<|endoftext|>") for text in told} <= set(TEXTS)
    assert len(set(told)) == len(told)


@pytest.mark.parametrize("packing", [Concatenated, BestFit])
def test_every_target_is_shown_once(data_dir: Path, packing: type) -> None:
    dataset = open_dataset(data_dir)
    sequences = packing(dataset.train, 48) if packing is BestFit else packing(dataset.train, 48, keep_rest=True)
    end = dataset.tokenizer.end_id
    for i in range(len(sequences)):
        example = sequences[i]
        parts = list(documents_of(example, end))
        targets = int((example.labels >= 0).sum())
        if packing is BestFit:  # each document shows one token more than it has targets: its first
            assert sum(map(len, parts)) == targets + len(parts)
        else:  # neighbours in one run: only the first of the row is no target
            assert sum(map(len, parts)) == targets + 1
            assert [t for part in parts for t in part][1:] == example.labels[:targets].tolist()
        assert all(end not in part[:-1] for part in parts)


def test_borders_without_colour_stand_between_tokens(data_dir: Path) -> None:
    tokenizer = open_dataset(data_dir).tokenizer
    ids = tokenizer.encode("saw a big dog")
    text = token_text(ids, tokenizer, in_colour=False).plain
    assert text == BORDER.join(tokenizer.decode([i]) for i in ids)
    assert BORDER in text


def test_colours_change_at_each_token_and_no_border_is_drawn(data_dir: Path) -> None:
    tokenizer = open_dataset(data_dir).tokenizer
    ids = [*tokenizer.encode("saw a big dog"), tokenizer.end_id]
    text = token_text(ids, tokenizer, in_colour=True)
    assert text.plain == "saw a big dog<|endoftext|>"
    styles = [str(span.style) for span in text.spans]
    assert len(styles) == len(ids)
    assert all(a != b for a, b in pairwise(styles))
    coloured = shown(data_dir, colour=True)
    assert "\x1b[" in coloured and BORDER not in coloured
    assert "\x1b[" not in shown(data_dir)


def test_half_a_character_and_control_characters_are_visible() -> None:
    tokenizer = make_tokenizer("byte")
    text = token_text(tokenizer.encode("é\x1b[31m\n"), tokenizer, in_colour=False).plain
    assert text == BORDER.join(["…", "é", "\N{REPLACEMENT CHARACTER}", "[", "3", "1", "m", f"{LINE_BREAK}\n"])


def test_the_sequence_asked_for(data_dir: Path) -> None:
    output = shown(data_dir, split="val", index=1, count=1, seq_len=20)
    assert re.findall(r"(\w+) sequence (\d+) of", output) == [("val", "1")]
    assert "20 tokens to predict" in output
    assert "dogs.txt in" in output and "tokenizer   bpe" in output  # the table of the data comes first
    assert len(re.findall(r"sequence \d+ of", shown(data_dir, count=3))) == 3


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"split": "test"}, "no split 'test'"),
        ({"packing": "tight"}, "no packing 'tight'"),
        ({"index": 10_000}, "no sequence 10000"),
        ({"index": -1}, "no sequence -1"),
        ({"count": 0}, "1 or more"),
        ({"seq_len": 0}, "1 or more"),
    ],
)
def test_options_that_cannot_be_are_refused(data_dir: Path, options: dict[str, object], words: str) -> None:
    with pytest.raises(UserError, match=words):
        shown(data_dir, **options)


def test_what_is_no_data_directory_is_told_with_what_to_do(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, model, folder = tmp_path / "runs" / "demo", tmp_path / "model", tmp_path / "folder"
    for directory in (run, model, folder):
        directory.mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    (run / "log.jsonl").write_text("")
    (run / "config.yaml").write_text("")
    (model / "config.json").write_text("{}")
    for path, what, remedy in (
        (tmp_path / "typo", "does not exist", "tiny-transformer prepare"),
        (data_dir / "train.bin", "is a file", f"its directory is {data_dir}"),
        (data_dir.parent, "no meta.json", f"these are: {data_dir}"),
        (folder, "no meta.json", "tiny-transformer prepare"),
        (run, "is a run, not prepared data", "tiny-transformer runs"),
        (run, "is a run, not prepared data", f"tiny-transformer inspect {run} --prompt"),
        (Path("demo"), "runs/demo is a run", "tiny-transformer inspect runs/demo --prompt"),
        (model, "is a model, not prepared data", "tiny-transformer generate"),
    ):
        with pytest.raises(UserError) as error:
            shown(path)
        assert what in error.value.what
        assert error.value.remedy is not None and remedy in error.value.remedy
