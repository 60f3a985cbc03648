"""`inspect` on conversations: what is learnt is marked, and what fine-tuning refuses is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tiny_transformer.cli import run
from tiny_transformer.config.shapes import Qwen3Config
from tiny_transformer.models import build_model, save_model
from tiny_transformer.tokenizers import make_tokenizer


@pytest.fixture
def model(tmp_path: Path) -> Path:
    tokenizer, shape = make_tokenizer("byte"), Qwen3Config(hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, intermediate_size=16, vocab_size=300)  # fmt: skip
    directory = tmp_path / "model"
    directory.mkdir()
    save_model(build_model(shape, seed=0), directory, eos_token_id=tokenizer.end_id)
    tokenizer.save(directory)
    return directory


def test_what_is_learnt_stands_between_brackets(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    talk = {"question": "Who are [you]?", "answer": "A hen.\nReally."}
    (tmp_path / "t.jsonl").write_text(json.dumps(talk), encoding="utf-8")
    assert run(["inspect", str(tmp_path / "t.jsonl"), "--template", "alpaca", "--ckpt", str(model)]) == 0
    told = capsys.readouterr().out
    assert "### Instruction:⏎\nWho are [you]?⏎\n⏎\n### Response:⏎\n《A hen.⏎\nReally.<|endoftext|>》" in told
    assert "tokens, 15 of them learnt" in told
    assert run(["inspect", str(tmp_path / "t.jsonl"), "--ckpt", str(model)]) == 0
    assert "<|im_start|>assistant⏎\n《A hen.⏎\nReally.<|im_end|>》⏎\n" in capsys.readouterr().out


def test_of_a_pair_both_answers_are_shown(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"prompt": "Who?", "chosen": answer, "rejected": "A fox."} for answer in ("A hen.", "An egg.")]
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    asked = ["inspect", str(tmp_path / "p.jsonl"), "--template", "plain", "--ckpt", str(model)]
    assert run([*asked, "--index", "1", "--count", "1"]) == 0
    told = capsys.readouterr().out
    words = " ".join(told.split())
    assert "line 2, chosen: 13 tokens, 8 of them learnt" in words and "line 2, rejected: 12 tokens" in words
    assert "Who?⏎\n《An egg.<|endoftext|>》" in told and "Who?⏎\n《A fox.<|endoftext|>》" in told


@pytest.mark.parametrize("name", ["t.jsonl", "t.ndjson", "t.tsv", "t.csv", "t.jsonl.gz", "T.JSONL"])
def test_a_file_of_rows_in_any_form_is_one_of_conversations(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path(name).touch()
    assert run(["inspect", name]) == 2  # as data it would be a file where a directory should be
    assert "no checkpoint" in capsys.readouterr().err


def test_what_fine_tuning_refuses_is_refused(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "t.jsonl").write_text('{"question": "Who?"}', encoding="utf-8")
    assert run(["inspect", str(tmp_path / "t.jsonl"), "--ckpt", str(model)]) == 65
    assert "t.jsonl, line 1" in capsys.readouterr().err
    assert run(["inspect", str(tmp_path / "t.jsonl"), "--template", "llama2", "--ckpt", str(model)]) == 2
    assert "one of chatml, qwen3, alpaca, llama3, plain" in capsys.readouterr().err
