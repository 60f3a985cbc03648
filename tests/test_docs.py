"""What the written pages say of the checkout is so: links, pictures, sources, blocks, commands, files, extras."""

from __future__ import annotations

import shlex
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import doc_blocks
import doc_checks
import pytest
import yaml

from tiny_transformer.cli import run
from tiny_transformer.config.aliases import ALIASES, SWITCHES, UNBUILT

PAGES = doc_checks.read_pages()
# The log tells of the day it was written: commands and files may since have other names, those of its last day not.
LOG = "docs/LOG.md"
OF_TODAY = {**PAGES, LOG: doc_checks.newest_day(PAGES[LOG])}

CHECKS = (
    doc_checks.dead_links,
    doc_checks.pictures_without_words,
    doc_checks.dead_sources,
    doc_checks.broken_blocks,
    doc_checks.wrong_commands,
    doc_checks.wrong_options,
    doc_checks.missing_files,
)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_the_pages_say_what_is_so(check: Callable[[doc_checks.Pages], list[str]]) -> None:
    assert check(OF_TODAY) == []


def test_the_extras_that_pages_install_are_there() -> None:
    project = (doc_checks.REPOSITORY / "pyproject.toml").read_text(encoding="utf-8")
    assert doc_checks.missing_extras(PAGES, project) == []


def test_numbers_of_files_on_the_roads_are_those_of_the_lists() -> None:
    assert doc_checks.stale_counts(PAGES) == []


def test_everything_public_has_a_docstring() -> None:
    assert doc_checks.undocumented(doc_checks.package_sources()) == []


def test_every_key_that_is_read_in_older_words_is_on_the_page_for_them() -> None:
    assert doc_checks.missing_old_keys(PAGES["docs/COMING_FROM.md"], [*ALIASES, *SWITCHES, *UNBUILT]) == []


DEMO = {
    "model": {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1,
              "intermediate_size": 64, "max_position_embeddings": 256},
    "data": {"max_bytes": 200_000, "vocab_size": 300, "seq_len": 64},
    "training": {"steps": 4, "micro_batch_size": 2, "sample_prompts": [], "eval_tokens": 64},
    "out_dir": "runs/demo",
}  # fmt: skip


@pytest.mark.slow
def test_the_tour_of_the_readme_is_walked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every line as it stands, a tiny run in the place of that of `make demo`."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    shutil.copy(doc_checks.REPOSITORY / "data/tiny_corpus.txt", "data")
    (tmp_path / "demo.yaml").write_text(yaml.safe_dump(DEMO), encoding="utf-8")
    assert run(["train", "--config", "demo.yaml"]) == 0
    (tour,) = [
        block
        for block in doc_blocks.blocks_of(doc_checks.REPOSITORY / "README.md")
        if "--out_dir runs/tour" in block.text
    ]

    def shell(words: list[str]) -> str:
        line = " ".join(word if word == ">" else shlex.quote(word) for word in words)
        return subprocess.run(["bash", "-c", line], check=True, capture_output=True, text=True).stdout

    assert doc_blocks.run_page([tour], doc_blocks.Console(), shell) == []
    made = ("data/tour/train.bin", "runs/tour/best", "inspect.html", "words.jsonl", "runs/words/best")
    assert [name for name in made if not (tmp_path / name).exists()] == []
    assert list(tmp_path.rglob("*.gguf"))
