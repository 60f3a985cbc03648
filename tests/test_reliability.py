"""docs/RELIABILITY.md is what the table and the tests say, and each test it names exists."""

from __future__ import annotations

import ast
import json
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import reliability
from reliability import FIGURES, PAGE, ROWS, Collector


def functions(path: Path) -> set[str]:
    return {node.name for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)}


def test_every_test_in_the_table_exists(repository: Path) -> None:
    for row in ROWS:
        for test in row.tests:
            file, _, function = test.partition("::")
            assert (repository / file).is_file(), test
            assert not function or function in functions(repository / file), test
    assert len({row.name for row in ROWS}) == len(ROWS)


def test_the_page_is_the_one_that_the_table_makes() -> None:
    figures = json.loads(FIGURES.read_text()) if FIGURES.exists() else {}
    assert PAGE.read_text(encoding="utf-8") == reliability.page(figures), "python tests/reliability.py writes it again"


def test_what_tests_say_is_noted_and_shown(tmp_path: Path) -> None:
    class Report:
        def __init__(self, nodeid: str, outcome: str, *figures: str) -> None:
            self.nodeid, self.outcome, self.when = nodeid, outcome, "call"
            self.user_properties = [("figure", figure) for figure in figures]

    row = next(row for row in ROWS if row.name == "D3")
    collector = Collector(tmp_path / "figures.json")
    for number, outcome in enumerate(("passed", "failed", "skipped")):
        collector.pytest_runtest_logreport(Report(f"{row.tests[0]}[{number}]", outcome, f"figure {number}"))
    collector.pytest_runtest_logreport(Report("tests/other.py::test_of_no_row", "passed"))
    collector.pytest_sessionfinish()
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert list(figures) == [row.tests[0]]
    assert reliability.figure_of(row, figures).startswith("1 of 2 (figure 0; figure 1; figure 2), 20")
    assert reliability.figure_of(row, {}) == "not shown"


def test_security_page(repository: Path) -> None:
    """Each promise in SECURITY.md names a row of the table."""
    text = (repository / "SECURITY.md").read_text(encoding="utf-8")
    named = set(re.findall(r"\b([DFP]\d+)\b", text))
    assert named and named <= {row.name for row in ROWS}, named - {row.name for row in ROWS}
    block = text[text.index("## What is promised") : text.index("## What is not")]
    sentences = [line for line in block.splitlines() if line.startswith("- ")]
    assert len(sentences) >= 8 and all(re.search(r"\([DFP]\d+", line) for line in sentences)
