"""What the written pages say of the checkout is so: links, pictures, sources, blocks, commands, files, extras."""

from __future__ import annotations

from collections.abc import Callable

import doc_checks
import pytest

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
