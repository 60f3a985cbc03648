"""The reference page says what the schema says."""

from __future__ import annotations

from pathlib import Path

import pytest

from tiny_transformer.config import reasons
from tiny_transformer.config.keys import valid_keys
from tiny_transformer.config.reference import reference_markdown


def test_the_page_in_docs_is_the_one_the_schema_gives(repository: Path) -> None:
    page = (repository / "docs/CONFIG_REFERENCE.md").read_text(encoding="utf-8")
    assert page == reference_markdown(), "run: python -m tiny_transformer.config.reference > docs/CONFIG_REFERENCE.md"


def test_every_key_is_explained() -> None:
    page = reference_markdown()
    for key in valid_keys():
        row = next(line for line in page.splitlines() if line.startswith(f"| `{key}` |"))
        assert len(row.split("|")[5].strip()) > 10, row


def test_every_key_has_its_reason_and_no_other(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert set(reasons.read_reasons()) == set(valid_keys()), "see tiny_transformer/config/reasons.txt"
    for key, reason in reasons.read_reasons().items():
        assert all(reason), key
    broken = tmp_path / "reasons.txt"
    broken.write_text("training.steps | why | costs\n", encoding="utf-8")
    monkeypatch.setattr(reasons, "REASONS", broken)
    with pytest.raises(ValueError, match=r"reasons.txt: training.steps"):
        reasons.read_reasons()


def test_at_least_25_keys_have_a_measured_effect() -> None:
    rows = [line.split(" | ") for line in reasons.effects_markdown().splitlines() if line.startswith("| `")]
    assert len({row[0].split("`")[1] for row in rows}) >= 25
    assert {row[0].split("`")[1] for row in rows} <= set(valid_keys())
    assert all(len(row) == 9 for row in rows)
