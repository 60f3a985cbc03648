"""The loss curve of a run as an SVG picture, for a README or a talk: plain text, no program needed to draw it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from tiny_transformer.reports.charts import close_up, column, smoothed, thinned
from tiny_transformer.reports.run_reader import next_token_key

WIDTH, HEIGHT = 720, 360
LEFT, RIGHT, TOP, BOTTOM = 56, 704, 46, 316  # the plotting area
MAX_POINTS = 400  # of one curve; one every other pixel

_STYLE = """<style>
text { font: 13px system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; fill: #5c6470; }
.paper { fill: #ffffff; }
path { fill: none; stroke-linejoin: round; }
path.grid { stroke: #ebe9e4; }
path.clipped { fill: #5c6470; }
text.clipped { paint-order: stroke; stroke: #ffffff; stroke-width: 4px; }
path.raw { stroke: #2f6db3; stroke-opacity: 0.3; }
path.train { stroke: #2f6db3; stroke-width: 2.2; }
path.val { stroke: #c2560c; stroke-width: 2; }
path.floor { stroke: #17795e; stroke-width: 1.6; stroke-dasharray: 6 4; }
text.train { fill: #2f6db3; }
text.val, circle.val { fill: #c2560c; }
text.floor { fill: #17795e; }
@media (prefers-color-scheme: dark) {
  .paper { fill: #14161a; }
  text { fill: #9aa1ac; }
  path.grid { stroke: #292d34; }
  path.clipped { fill: #9aa1ac; }
  text.clipped { stroke: #14161a; }
  path.raw, path.train { stroke: #79b0ee; }
  path.val { stroke: #f2985a; }
  path.floor { stroke: #5cc4a3; }
  text.train { fill: #79b0ee; }
  text.val, circle.val { fill: #f2985a; }
  text.floor { fill: #5cc4a3; }
}
</style>"""


def loss_svg(log: list[dict[str, Any]], floor: float | None, target: str = "token") -> str:
    """Training and validation loss in nats per `target` by step, beside the best loss possible where it is known.

    Numbers only: no text of a run gets into it. Empty when the log holds fewer than two losses.
    """
    steps, losses = column(log, next_token_key(log))
    val_steps, val_losses = column(log, "val_loss")
    if len(steps) < 2:
        return ""
    smooth = smoothed(losses)
    frame = _Frame.around(steps, smooth, (val_steps, val_losses), floor)
    parts = [frame.grid(target)]
    kept = thinned(losses, MAX_POINTS)
    parts.append(frame.curve("raw", steps[kept], losses[kept]))
    parts.append(frame.curve("train", steps[kept], smooth[kept]))
    if len(val_steps):
        parts.append(frame.curve("val", val_steps, val_losses))
        parts += [
            f'<circle class="val" cx="{frame.x(s):.1f}" cy="{frame.y(v):.1f}" r="3"/>'
            for s, v in zip(val_steps, val_losses, strict=True)
            if v <= frame.high
        ]
    names = [("train", "training"), *([("val", "validation")] if len(val_steps) else [])]
    if floor is not None:
        names.append(("floor", f"best possible: {floor:.3f}"))
        parts.append(f'<path class="floor" d="M{LEFT} {frame.y(floor):.1f}H{RIGHT}"/>')
    places = np.cumsum([LEFT] + [9 * len(name) + 24 for _, name in names])
    parts += [f'<text class="{k}" x="{x}" y="18">{name}</text>' for (k, name), x in zip(names, places, strict=False)]
    body = "\n".join([*parts, frame.clipped(steps, losses)])
    return f"""<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}">
<title>Loss by step</title>
{_STYLE}
<clipPath id="area"><rect x="{LEFT}" y="{TOP}" width="{RIGHT - LEFT}" height="{BOTTOM - TOP}"/></clipPath>
<rect class="paper" width="{WIDTH}" height="{HEIGHT}"/>
{body}
</svg>
"""


class _Frame:
    """Where a step and a loss stand in the picture."""

    def __init__(self, last_step: float, low: float, high: float) -> None:
        self.last_step, self.low, self.high = last_step, low, high

    @classmethod
    def around(
        cls, steps: np.ndarray, smooth: np.ndarray, validation: tuple[np.ndarray, np.ndarray], floor: float | None
    ) -> _Frame:
        """The frame in which everything but a steep beginning can be seen."""
        floors = [] if floor is None else [floor]
        view = close_up([(steps, smooth), validation], floors)
        if view is None:
            shown = [*smooth.tolist(), *validation[1].tolist(), *floors]
            margin = 0.06 * (max(shown) - min(shown)) or 0.05 * abs(max(shown)) or 0.1
            view = [min(shown) - margin, max(shown) + margin]
        return cls(float(steps[-1]), max(0.0, view[0]) if min(smooth) >= 0 else view[0], view[1])

    def x(self, step: float) -> float:
        """Pixels from the left."""
        return LEFT + (RIGHT - LEFT) * step / self.last_step

    def y(self, value: float) -> float:
        """Pixels from the top."""
        return BOTTOM - (BOTTOM - TOP) * (value - self.low) / (self.high - self.low)

    def curve(self, kind: str, steps: np.ndarray, values: np.ndarray) -> str:
        """A line through points; what is above the frame is cut off."""
        points = [f"{self.x(s):.1f} {self.y(v):.1f}" for s, v in zip(steps, values, strict=True)]
        return f'<path class="{kind}" clip-path="url(#area)" d="M{"L".join(points)}"/>'

    def clipped(self, steps: np.ndarray, losses: np.ndarray) -> str:
        """A mark where the curve leaves the frame at its top, with how far up it goes; empty where it does not."""
        above = np.flatnonzero(losses > self.high)
        if not len(above):
            return ""
        stretches = np.split(above, np.flatnonzero(np.diff(steps[above]) > self.last_step / 20) + 1)
        peaks = [int(stretch[np.argmax(losses[stretch])]) for stretch in stretches]
        marks = [f'<path class="clipped" d="M{self.x(steps[i]) - 5:.1f} {TOP + 8}h10l-5 -7z"/>' for i in peaks]
        peak = max(peaks, key=lambda i: losses[i])
        is_left = self.x(steps[peak]) < (LEFT + RIGHT) / 2
        x, anchor = self.x(steps[peak]) + (9 if is_left else -9), "start" if is_left else "end"
        words = (
            f'<text class="clipped" x="{x:.1f}" y="{TOP + 10}" text-anchor="{anchor}">up to {losses[peak]:.3f}</text>'
        )
        return "\n".join([*marks, words])

    def grid(self, target: str) -> str:
        """Lines with their numbers."""
        lines = []
        for value in _round_numbers(self.low, self.high, 6):
            y = self.y(value)
            lines.append(f'<path class="grid" d="M{LEFT} {y:.1f}H{RIGHT}"/>')
            lines.append(f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{value:g}</text>')
        for step in _round_numbers(0.0, self.last_step, 8):
            lines.append(f'<text x="{self.x(step):.1f}" y="{BOTTOM + 18}" text-anchor="middle">{step:,.0f}</text>')
        lines.append(f'<text x="{RIGHT}" y="{BOTTOM + 38}" text-anchor="end">step</text>')
        lines.append(f'<text x="2" y="{TOP - 12}">nats per {target}</text>')
        return "\n".join(lines)


def _round_numbers(low: float, high: float, at_most: int) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten inside a range."""
    raw = (high - low) / at_most
    power = 10.0 ** math.floor(math.log10(raw))
    stride = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw)
    first, last = math.ceil(low / stride), math.floor(high / stride)
    return [round(index * stride, 10) for index in range(first, last + 1)]
