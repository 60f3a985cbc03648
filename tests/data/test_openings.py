"""Prompts begin as the validation documents do."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tiny_transformer.cli import run
from tiny_transformer.config.load import load_run_config
from tiny_transformer.data.openings import opening_of, openings
from tiny_transformer.data.token_file import open_dataset

from .conftest import make_documents, prepared


@pytest.mark.parametrize(
    ("text", "opening"),
    [
        ("Once upon a time there was a hen.", "Once upon a time there"),
        ("\n  ---\n\nCHAPTER I\n\nIt was", "CHAPTER I"),
        ("ROMEO:\nBut soft", "ROMEO:"),
        ("Internationalization and characterization of the whole", "Internat"),
        ("an extraordinarily uncharacteristically long word", "an extraordinarily"),
        ("话说天下大势，分久必合，合久必分：周末七国分争", "话说天下大势，分久必"),
        ("def f(x):\n    return x", "def f(x):"),
        ("caf\N{REPLACEMENT CHARACTER}", "caf"),
        ("* * *\n...\n", ""),
        ("", ""),
    ],
)
def test_the_first_words(text: str, opening: str) -> None:
    assert opening_of(text).startswith(opening)
    assert len(opening_of(text)) <= 40


@pytest.mark.parametrize("tokenizer", ["byte", "char", "bpe"])
def test_they_come_from_validation_documents_and_can_be_encoded(tmp_path: Path, tokenizer: str) -> None:
    texts = make_documents(300)
    (tmp_path / "a.txt").write_text("\n<|endoftext|>\n".join(texts), encoding="utf-8")
    prepared(tmp_path / "a.txt", tmp_path / "data", tokenizer=tokenizer, seq_len=16, val_fraction=0.1)
    dataset = open_dataset(tmp_path / "data")
    found = openings(dataset)
    ids, starts = dataset.val[:].tolist(), dataset.val.documents().tolist()
    validation = [dataset.tokenizer.decode(ids[a:b]) for a, b in zip(starts, [*starts[1:], None], strict=True)]
    assert len(set(found)) == 3
    assert all(any(text.startswith(opening) for text in validation) for opening in found)
    assert all(dataset.tokenizer.encode(opening) for opening in found)
    assert openings(dataset) == found


def test_a_chinese_text_is_sampled_in_chinese(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    rng = random.Random(0)
    lines = ["".join(chr(rng.randrange(0x4E00, 0x4E80)) for _ in range(30)) + "。\n" for _ in range(200)]
    Path("红楼梦.txt").write_text("".join(lines), encoding="utf-8")
    shape = ["--model.hidden_size", "32", "--model.num_hidden_layers", "1", "--model.num_attention_heads", "4"]
    short = ["--steps", "2", "--device", "cpu", "--data.seq_len", "16", "--sample_tokens", "4", "--tokenizer", "char"]
    assert run(["train", "红楼梦.txt", *short, *shape]) == 0
    out = capsys.readouterr().out
    prompts = load_run_config("runs/红楼梦/config.yaml").training.sample_prompts
    assert len(set(prompts)) == 3 and "Once" not in out and "no samples" not in out
    assert all(prompt in "".join(lines) for prompt in prompts)
    assert run(["generate", "--max_new_tokens", "3", "--device", "cpu"]) == 0
    assert capsys.readouterr().out.startswith(prompts[0])


def test_prompts_that_were_asked_for_and_those_of_the_stories_stay(tmp_path: Path) -> None:
    from tiny_transformer.stages.training_data import as_read

    prepared("stories", tmp_path / "stories", tokenizer="byte", max_bytes=20_000, seq_len=16)
    (tmp_path / "a.txt").write_text("\n<|endoftext|>\n".join(make_documents(100)), encoding="utf-8")
    prepared(tmp_path / "a.txt", tmp_path / "a", tokenizer="byte", seq_len=16, val_fraction=0.1)
    stories, own = open_dataset(tmp_path / "stories"), open_dataset(tmp_path / "a")
    assert as_read(load_run_config(None), stories).training.sample_prompts == ("Once upon a time",) * 3
    assert as_read(load_run_config(None), own).training.sample_prompts == openings(own)
    for prompts in ([], ["A hen"]):
        config = load_run_config({"training": {"sample_prompts": prompts}})
        assert as_read(config, own).training.sample_prompts == tuple(prompts)
