"""`generate`: the same texts streamed or not, and only with the checkpoint's own tokenizer."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from tiny_transformer import load
from tiny_transformer.cli import run
from tiny_transformer.errors import ExitCode, UserError
from tiny_transformer.generation.command import run_generate
from tiny_transformer.generation.loaded import settings_of
from tiny_transformer.generation.requests import GenerateRequest
from tiny_transformer.generation.sampling import FILTERS, SamplingConfig, refuse_idle
from tiny_transformer.models.open import OpenCheckpoint
from tiny_transformer.tokenizers import make_tokenizer


def written(checkpoint: Path, capsys: pytest.CaptureFixture[str], **options: object) -> str:
    settings = SamplingConfig(max_new_tokens=12, seed=5)
    run_generate(
        GenerateRequest("Once", checkpoint, device="cpu", **options),  # ty: ignore[invalid-argument-type]
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
    with pytest.raises(UserError, match="--num_samples 0"):
        written(checkpoint, capsys, num_samples=0)


def test_the_engine_is_chosen_and_named(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    notes = io.StringIO()

    def note(**options: object) -> str:
        chosen = GenerateRequest("Once", checkpoint, device="cpu", **options)  # ty: ignore[invalid-argument-type]
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


@pytest.mark.parametrize("option", ["--top_k 5", "--top_p 0.9", "--min_p 0.1"])
@pytest.mark.parametrize("verb", ["generate", "chat"])
def test_a_filter_beside_temperature_0_is_refused(verb: str, option: str, capsys: pytest.CaptureFixture[str]) -> None:
    """What is off, and chat's own top_p, is passed over."""
    assert run([verb, "--temperature", "0", *option.split(), "Hello"]) == ExitCode.USAGE
    name = option.split()[0].removeprefix("--")
    assert f"{name} has no effect at temperature 0" in capsys.readouterr().err
    refuse_idle({"temperature": 0, "top_k": 0, "top_p": 1.0, "min_p": None}, FILTERS)
    refuse_idle({"temperature": 0, "top_p": 0.9}, ())
    with pytest.raises(UserError, match="top_k has no effect"):
        settings_of({"temperature": 0, "top_k": 3})
