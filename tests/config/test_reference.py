"""The reference page says what the schema says."""

from __future__ import annotations

from pathlib import Path

from tiny_transformer.config.load import valid_keys
from tiny_transformer.config.reference import reference_markdown


def test_the_page_in_docs_is_the_one_the_schema_gives(repository: Path) -> None:
    page = (repository / "docs/CONFIG_REFERENCE.md").read_text(encoding="utf-8")
    assert page == reference_markdown(), "run: python -m tiny_transformer.config.reference > docs/CONFIG_REFERENCE.md"


def test_every_key_is_explained() -> None:
    page = reference_markdown()
    for key in valid_keys():
        row = next(line for line in page.splitlines() if line.startswith(f"| `{key}` |"))
        assert len(row.split("|")[5].strip()) > 10, row
