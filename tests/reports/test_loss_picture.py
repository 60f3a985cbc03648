"""loss.svg: the curve stands where the numbers say."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

import made_up_run as made
import pytest

from tiny_transformer.reports.loss_svg import BOTTOM, LEFT, RIGHT, TOP, loss_svg
from tiny_transformer.reports.report import write_report

LOG = [made.log_row(step, evaluated=step % 200 == 0) for step in range(10, 2001, 10)]


def heights(svg: str) -> tuple[float, float]:
    """Slope and offset of the vertical axis, from the two outermost numbers beside the grid."""
    labels = re.findall(r'y="([\d.]+)" text-anchor="end">([\d.]+)</text>', svg)
    (y0, v0), (y1, v1) = [(float(y) - 4, float(v)) for y, v in (labels[0], labels[-1])]
    slope = (y1 - y0) / (v1 - v0)
    return slope, y0 - slope * v0


def points(svg: str, kind: str) -> list[tuple[float, float]]:
    path = re.search(rf'<path class="{kind}"[^>]* d="M([^"]+)"', svg)
    assert path is not None
    return [(float(x), float(y)) for x, y in (pair.split() for pair in path[1].split("L"))]


def test_curves_and_floor_stand_where_the_numbers_say() -> None:
    svg = loss_svg(LOG, 1.5)
    slope, offset = heights(svg)
    assert slope < 0  # a higher loss stands higher
    evaluated = [row for row in LOG if "val_loss" in row]
    for (x, y), row in zip(points(svg, "val"), evaluated, strict=True):
        assert x == pytest.approx(LEFT + (RIGHT - LEFT) * row["step"] / 2000, abs=0.06)
        assert y == pytest.approx(offset + slope * row["val_loss"], abs=0.3)
    floor = re.search(r'class="floor" d="M\d+ ([\d.]+)H', svg)
    assert floor is not None
    assert float(floor[1]) == pytest.approx(offset + slope * 1.5, abs=0.3)
    assert "best possible: 1.500" in svg
    last = points(svg, "raw")[-1]
    assert last == (RIGHT, pytest.approx(offset + slope * LOG[-1]["loss"], abs=0.3))


def test_everything_but_the_steep_beginning_is_inside_and_that_is_marked() -> None:
    svg = loss_svg(LOG, 1.5)
    inside = [TOP <= y <= BOTTOM for _, y in points(svg, "train")]
    assert all(inside[20:])
    assert f">up to {LOG[0]['loss']:.3f}</text>" in svg
    assert svg.count('class="clipped"') >= 1
    flat = loss_svg([{"step": step, "loss": 2 + 0.001 * step} for step in range(1, 50)], None)
    assert "up to" not in flat
    assert 'class="clipped"' not in flat


def test_the_unit_stands_above_the_axis_it_belongs_to() -> None:
    (x, y), *rest = re.findall(r'<text x="(\d+)" y="(\d+)">nats per token</text>', loss_svg(LOG, 1.5))
    assert (int(x) < LEFT, int(y) < TOP, rest) == (True, True, [])


def test_it_is_a_small_picture_that_parses_and_asks_for_nothing(tmp_path: Path) -> None:
    run = made.make_run(tmp_path, "demo")
    write_report(run)
    text = (run / "loss.svg").read_text(encoding="utf-8")
    assert ElementTree.fromstring(text).tag == "{http://www.w3.org/2000/svg}svg"
    assert len(text) < 40_000
    assert not re.search(r"url\((?!#area)|href|<script|@import|<image", text)


def test_a_long_log_gives_a_small_picture_too() -> None:
    assert len(loss_svg([{"step": step, "loss": 2 + 1 / step} for step in range(1, 50_000)], None)) < 40_000


@pytest.mark.parametrize(
    "log", [[], [{"step": 1, "loss": 2.0}], [{"step": 1, "loss": "</svg>"}, {"step": 2, "loss": None}]]
)
def test_too_little_gives_no_picture(log: list) -> None:
    assert loss_svg(log, None) == ""


def test_a_constant_loss_and_odd_numbers_give_a_picture() -> None:
    for values in ([2.0] * 20, [0.0] * 20, [1e300] * 20, [-3.0, 5.0] * 10):
        svg = loss_svg([{"step": step, "loss": value} for step, value in enumerate(values, 1)], None)
        assert svg.startswith("<svg")
