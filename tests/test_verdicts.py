"""docs/ITEMS_VERDICTS.md: each item has one verdict, and the tests and pages that it names are there."""

from __future__ import annotations

import re
from pathlib import Path


def test_each_of_the_242_items_has_a_verdict_and_what_it_names_is_there(repository: Path) -> None:
    page = (repository / "docs/ITEMS_VERDICTS.md").read_text(encoding="utf-8")
    rows = [line.strip("|").split(" | ") for line in page.splitlines() if re.match(r"\| \d+ \|", line)]
    assert [int(row[0]) for row in rows] == list(range(1, 243))
    verdicts = [row[-1].strip() for row in rows]
    kinds = [re.split(r"[ :,;]", verdict)[0] for verdict in verdicts]
    assert set(kinds) == {"works", "differs", "not"}
    assert (
        f"{kinds.count('works')} work, {kinds.count('differs')} differ and say why, {kinds.count('not')} were" in page
    )
    named = re.findall(r"`?((?:tests|docs|configs|notebooks)/[\w/.]*\w)`?", " ".join(verdicts))
    missing = [name for name in named if not (repository / name).exists()]
    assert len(named) > 100 and not missing
