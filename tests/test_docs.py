"""What the written pages say of the checkout is so: links, pictures, sources, blocks, commands, files, extras."""

from __future__ import annotations

from collections.abc import Callable

import doc_checks
import pytest

PAGES = doc_checks.read_pages()
# The log tells of the day it was written: its commands and files may since have other names.
OF_TODAY = {name: text for name, text in PAGES.items() if name != "docs/LOG.md"}

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
