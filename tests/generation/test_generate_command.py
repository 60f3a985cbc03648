"""`generate`: the same texts streamed or not, and only with the checkpoint's own tokenizer."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from tiny_transformer import load
from tiny_transformer.errors import UserError
from tiny_transformer.generation.command import GenerateOptions, run_generate
from tiny_transformer.generation.sampling import SamplingConfig
from tiny_transformer.models.open import OpenCheckpoint
from tiny_transformer.tokenizers import make_tokenizer


def written(checkpoint: Path, capsys: pytest.CaptureFixture[str], **options: object) -> str:
    settings = SamplingConfig(max_new_tokens=12, seed=5)
    run_generate(
        GenerateOptions("Once", checkpoint, device="cpu", **options),  # ty: ignore[invalid-argument-type]
        settings,
        Console(file=io.StringIO()),
    )
    return capsys.readouterr().out


def test_streaming_shows_the_same_texts(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain = written(checkpoint, capsys, num_samples=3)
    assert plain == written(checkpoint, capsys, num_samples=3, stream=True)
    texts = plain.rstrip("\n").split("\n\n---\n\n")
    assert len(set(texts)) == 3
    assert all(text.startswith("Once") for text in texts)


def test_the_first_sample_does_not_depend_on_how_many_follow(
    checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert written(checkpoint, capsys, num_samples=2).startswith(
        written(checkpoint, capsys, num_samples=1).rstrip("\n")
    )


def test_a_name_for_the_same_tokenizer_is_accepted_and_another_refused(checkpoint: Path) -> None:
    for name in ("auto", "byte"):
        OpenCheckpoint(checkpoint).check_tokenizer(name)
    with pytest.raises(UserError, match="has its own"):
        OpenCheckpoint(checkpoint).check_tokenizer(str(other_tokenizer(checkpoint.parent)))


def other_tokenizer(directory: Path) -> Path:
    other = directory / "other"
    other.mkdir()
    make_tokenizer("char", texts=["abc"]).save(other)
    return other


def test_no_samples_is_refused(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match="num_samples = 0"):
        written(checkpoint, capsys, num_samples=0)


def test_the_engine_is_chosen_and_named(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    notes = io.StringIO()

    def note(**options: object) -> str:
        chosen = GenerateOptions("Once", checkpoint, device="cpu", **options)  # ty: ignore[invalid-argument-type]
        run_generate(chosen, SamplingConfig(max_new_tokens=2, seed=5), Console(file=notes, width=1000))
        return notes.getvalue().splitlines()[-1]

    assert note(engine="plain") == "plain engine"
    assert note().startswith("plain engine: ")  # so small a model, or no numba
    for name, options in {"num_samples": {"num_samples": 2}, "speculative": {"speculative": "ngram"}}.items():
        with pytest.raises(UserError, match=f"--engine fast computes one token of one text at a time, and --{name}"):
            note(engine="fast", **options)
    with pytest.raises(UserError, match="there is no engine 'quick'"):
        note(engine="quick")
    capsys.readouterr()


@pytest.mark.slow
def test_both_engines_write_the_same_text(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("numba")
    assert written(checkpoint, capsys, engine="fast") == written(checkpoint, capsys, engine="plain")
    lm = load(checkpoint, device="cpu", engine="fast")
    assert lm.engine.startswith("compiled step, fp32")
    assert lm.generate("Once", temperature=0) == load(checkpoint, device="cpu").generate("Once", temperature=0)
