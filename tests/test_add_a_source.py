"""docs/ADD_A_SOURCE.md: what stands there works."""

from __future__ import annotations

import importlib.util
import re
import shlex
from pathlib import Path

import pytest

from tiny_transformer.cli import run
from tiny_transformer.data.meta import read_meta
from tiny_transformer.data.token_file import open_dataset
from tiny_transformer.tokenizers import load_tokenizer


def blocks(repository: Path, language: str) -> list[str]:
    page = (repository / "docs/ADD_A_SOURCE.md").read_text(encoding="utf-8")
    return re.findall(rf"```{language}\n(.*?)```", page, re.DOTALL)


def test_the_function_of_the_page_is_a_source(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("films").mkdir()
    said = ["Come here.", "No, you come here.", "Then nobody will.", "As you like.", "Goodbye, then."]
    for number, line in enumerate(said):
        text = f"1\n00:00:01,000 --> 00:00:02,500\n{line}\n\n2\n00:00:03,000 --> 00:00:04,000\nSo be it, {number}.\n"
        Path(f"films/{number}.srt").write_text(text, encoding="utf-8")
    Path("films.py").write_text(blocks(repository, "python")[0], encoding="utf-8")
    spec = importlib.util.spec_from_file_location("films", "films.py")
    assert spec is not None and spec.loader is not None
    spec.loader.exec_module(importlib.util.module_from_spec(spec))
    assert capsys.readouterr().out == "5 documents\n"
    splits = open_dataset("data/films")
    ids = [*splits.train[:], *splits.val[:]]
    text = load_tokenizer("data/films").decode([int(token) for token in ids])
    assert all(line in text for line in said) and "-->" not in text
    shape = "--hidden_size 16 --intermediate_size 16 --num_hidden_layers 1 --num_attention_heads 2"
    options = f"train --data_dir data/films --seq_len 8 --steps 1 --micro_batch_size 1 {shape} --sample_prompts []"
    assert run(shlex.split(options)) == 0, capsys.readouterr().err


def test_rows_need_no_code(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rows, command = blocks(repository, "bash")[0].splitlines()
    Path("rows.jsonl").write_text(shlex.split(rows)[1].replace("\\n", "\n"), encoding="utf-8")
    assert run(shlex.split(command)[1:]) == 0
    meta = read_meta(tmp_path / "data/rows")
    assert meta.train.num_documents + meta.val.num_documents == 2
