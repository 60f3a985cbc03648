"""Each cell of docs/MATRIX.md within its bound, and planted bugs that turn the right ones red."""

from __future__ import annotations

import re
import sys
from itertools import count
from pathlib import Path

import pytest
import torch

pytest.importorskip("transformers")
sys.path.insert(0, str(Path(__file__).parent))

from matrix import CELLS, DTYPES, FAMILIES, WAYS, bound, difference, expected_of, greedy_texts_agree

from tiny_transformer.generation.drafters import MtpDrafter
from tiny_transformer.layers import cache
from tiny_transformer.layers.recurrent_cache import RecurrentCache

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("way", WAYS)
def test_every_cell_is_within_its_bound(way):
    if way == "fast kernels":
        pytest.importorskip("numba")
    torch.compiler.reset()
    found = {cell: difference(*cell) for cell in CELLS if cell[0] == way}
    assert found
    assert {cell: value for cell, value in found.items() if value > bound(*cell[1:])} == {}


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_texts_with_drafters_are_those_without(family):
    assert greedy_texts_agree(family)


def test_the_page_has_every_cell(repository):
    """Its figures are another day's; which cells there are, and that all are within bounds, is checked."""
    page = (repository / "docs/MATRIX.md").read_text(encoding="utf-8")
    lines = [line[1:-1].split("|") for line in re.findall(r"^\|.*\|$", page, re.MULTILINE)]
    rows = {line[0].strip(): line[1:] for line in lines}
    columns = [(family, dtype) for family in FAMILIES for dtype in DTYPES]
    assert [cell.strip() for cell in rows["way"]] == [f"{family} {dtype}" for family, dtype in columns]
    for way in WAYS:
        for column, cell in zip(columns, rows[way], strict=True):
            assert bool(cell.strip()) == ((way, *column) in CELLS)
            assert not cell.strip() or float(cell) <= bound(*column), (way, column)


def window_off_by_one(patch):
    for name in ("llama", "qwen3"):
        module = sys.modules[f"tiny_transformer.models.{name}.model"]
        right = module.attention_mask
        patch.setattr(
            module,
            "attention_mask",
            lambda *args, window, right=right, **rest: right(*args, window=window and window + 1, **rest),
        )


def leaking_state(patch):
    patch.setattr(cache, "count_beginnings", lambda doc_ids, *_: torch.zeros_like(doc_ids))


def wrong_rope_offset(patch):
    for name in FAMILIES:
        module = sys.modules[f"tiny_transformer.models.{name}.model"]
        right = module.find_place

        def wrong(ids, positions, docs, memory, right=right):
            had = memory is not None and memory.length > 0
            place = right(ids, positions, docs, memory)
            return place._replace(positions=place.positions + 1) if had else place

        patch.setattr(module, "find_place", wrong)


def sign_of_a_log(patch):
    module = sys.modules["tiny_transformer.models.qwen3_next.model"]
    right, calls = module.at_least_float32, count()
    patch.setattr(module, "at_least_float32", lambda x: -right(x) if next(calls) % 4 == 2 else right(x))


def stale_mtp_cache(patch):
    right = MtpDrafter.__init__

    def wrong(self, *args):
        right(self, *args)
        self._cache.rollback = lambda n: None

    patch.setattr(MtpDrafter, "__init__", wrong)


def state_is_not_taken_back(patch):
    patch.setattr(RecurrentCache, "rollback", lambda self, kept: None)


BUGS = {
    window_off_by_one: [("sliding window", "llama"), ("sliding window", "qwen3")],
    leaking_state: [("packed", "qwen3_next")],
    wrong_rope_offset: [(way, f) for way in ("cached", "chunked prefill", "speculative", "int8") for f in FAMILIES],
    sign_of_a_log: [(way, "qwen3_next") for way in WAYS if way != "sliding window"],
    stale_mtp_cache: [("speculative", "qwen3_next")],
    state_is_not_taken_back: [("speculative", "qwen3_next")],
}


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.__name__)
def test_a_planted_bug_turns_its_cells_red_and_leaves_the_others(bug, monkeypatch):
    """In fp32. A bug of the hybrid leaves the other families alone, one of a window all ways without one."""
    torch.compiler.reset()
    cells = [cell for cell in CELLS if cell[2] == "fp32" and cell[0] not in ("compiled", "fast kernels")]
    for cell in cells:
        expected_of(*cell)  # before the bug
    bug(monkeypatch)
    red = {cell[:2] for cell in cells if difference(*cell) > bound(*cell[1:])}
    assert set(BUGS[bug]) & {cell[:2] for cell in cells} <= red
    if bug in (window_off_by_one, leaking_state, stale_mtp_cache, state_is_not_taken_back):
        assert red == set(BUGS[bug])
