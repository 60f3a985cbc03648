"""What `compare` measured, as sections of its page: figures with their intervals drawn, and the same prompts.

The drawings are plain SVG, so they need no script; every number in them stands in the table too.
"""

from __future__ import annotations

from tiny_transformer.evaluation.comparison import Comparison, Measured
from tiny_transformer.evaluation.paired import Difference, Interval
from tiny_transformer.reports.formats import NOTHING, count, large, loss, shorten, signed, size
from tiny_transformer.reports.page import MAX_PROMPT_CHARS, MAX_SAMPLE_CHARS, esc

WIDTH, HEIGHT, MARGIN = 170, 24, 8  # of a drawing, in pixels


def measured_section(found: Comparison, places: dict[str, int]) -> str:
    """The models on the same documents, the best first; `places` gives each its colour."""
    best, is_ranked = found.models[0], not found.why_not_ranked
    differences = {one.name: found.difference(one, best) for one in found.models[1:]} if is_ranked else {}
    heads = ["", "bits per byte", "95 % interval"]
    heads += ["than the best", "", "verdict"] if is_ranked else ["learnt from"]
    heads += ["parameters", "weights", "tokens/s"]
    head = "".join(f'<th scope="col">{esc(name)}</th>' for name in heads)
    scale = _scale(list(differences.values()))
    rows = "".join(_row(found, one, differences, places, scale) for one in found.models)
    foot = f"<tfoot><tr><td colspan='4'></td><td>{_axis(scale)}</td></tr></tfoot>" if is_ranked else ""
    return (
        f'<section id="measured"><h2>On the same documents</h2><p class="note">{esc(_explained(found))}</p>'
        f'<div class="scroll"><table class="rows compared measured"><thead><tr>{head}</tr></thead>'
        f"<tbody>{rows}</tbody>{foot}</table></div></section>"
    )


def _explained(found: Comparison) -> str:
    documents = f"{count(len(found.sizes))} validation documents of {found.documents_of}"
    words = (
        f"Each model reads {documents} ({size(float(found.sizes.sum()))} of text), each from its beginning. Intervals "
        "are bootstrapped over documents, of a difference over the same documents for both models; each holds with "
        "95 % by itself."
    )
    if found.why_not_ranked or not found.seed_spread.share:
        return words
    return (
        f"{words} The band is what seeds of one config differ by in 95 of 100 cases, the best and the worst of as many "
        f"as are compared here (a standard deviation of {found.spread_in_words()}): a model is worse only where its "
        "difference is more than both together explain."
    )


def _row(
    found: Comparison,
    one: Measured,
    differences: dict[str, Difference],
    places: dict[str, int],
    scale: tuple[float, float],
) -> str:
    own = found.bits_per_byte(one)
    cells = [loss(own.value), in_brackets(own)]
    if found.why_not_ranked:
        cells.append(one.learnt_from or "not known")
    else:
        difference = differences.get(one.name)
        cells += [NOTHING, "", "best"] if difference is None else [signed(difference.interval.value), "", ""]
        cells[4] = "best" if difference is None else difference.verdict
    cells += [large(one.num_parameters), size(one.num_bytes), count(one.tokens_per_second)]
    shown = [f"<td>{esc(cell)}</td>" for cell in cells]
    if not found.why_not_ranked:
        shown[3] = f"<td>{_drawn(differences.get(one.name), places[one.name], scale)}</td>"
    key = f'<span class="key run-{places[one.name]}"></span>'
    return f'<tr><th scope="row">{key}{esc(one.name)}</th>{"".join(shown)}</tr>'


def in_brackets(interval: Interval, words: object = None) -> str:
    """An interval as `0.812 to 0.834`; with `signed` as words, with signs."""
    if not interval.is_known:
        return "too few documents"
    written = signed if words is signed else loss
    return f"{written(interval.low)} to {written(interval.high)}"


def _scale(differences: list[Difference]) -> tuple[float, float]:
    """The smallest and the largest difference that is drawn."""
    values = [0.0]
    for one in differences:
        values += [one.interval.low, one.interval.high, one.seed_margin, -one.seed_margin]
    low, high = min(values), max(values)
    return (low, high) if high > low else (low - 0.001, high + 0.001)


def _at(value: float, scale: tuple[float, float]) -> float:
    low, high = scale
    return MARGIN + (value - low) / (high - low) * (WIDTH - 2 * MARGIN)


def _drawn(difference: Difference | None, place: int, scale: tuple[float, float]) -> str:
    """A dot at the difference and a line over its interval, above the band of two seeds."""
    zero, middle = _at(0.0, scale), HEIGHT / 2
    marks = f'<path class="zero" d="M{zero:.1f} 0V{HEIGHT}"/>'
    interval = Interval(0.0, 0.0, 0.0) if difference is None else difference.interval
    if difference is not None and difference.seed_margin:
        left, right = (_at(side * difference.seed_margin, scale) for side in (-1, 1))
        marks = f'<rect class="seeds" x="{left:.1f}" y="0" width="{right - left:.1f}" height="{HEIGHT}"/>{marks}'
    low, value, high = (_at(one, scale) for one in (interval.low, interval.value, interval.high))
    marks += f'<path d="M{low:.1f} {middle}H{high:.1f}"/><circle cx="{value:.1f}" cy="{middle}" r="4.5"/>'
    words = "the best" if difference is None else f"{signed(interval.value)}, {in_brackets(interval, signed)}"
    return (
        f'<svg class="interval" style="color:var(--run-{place})" width="{WIDTH}" height="{HEIGHT}" '
        f'viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{esc(words)}">{marks}</svg>'
    )


def _axis(scale: tuple[float, float]) -> str:
    """Zero and the ends, in bits per byte more than the best."""
    low, high = scale
    kept = [0.0] + [end for end in (low, high) if abs(end) > 0.25 * (high - low)]
    ticks = "".join(
        f'<text x="{min(max(_at(value, scale), 22), WIDTH - 22):.1f}" y="13" text-anchor="middle">'
        f"{esc('0' if value == 0 else signed(value))}</text>"
        for value in kept
    )
    return (
        f'<svg class="interval" width="{WIDTH}" height="18" viewBox="0 0 {WIDTH} 18" aria-hidden="true">{ticks}</svg>'
    )


def prompts_section(found: Comparison, places: dict[str, int]) -> str:
    """How each model continues each prompt."""
    parts = []
    for i, prompt in enumerate(found.prompts):
        rows = "".join(
            f'<tr><th scope="row"><span class="key run-{places[one.name]}"></span>{esc(one.name)}</th>'
            f'<td class="story">{esc(shorten(one.texts[i], MAX_SAMPLE_CHARS)) or _EMPTY}</td></tr>'
            for one in found.models
        )
        given = esc(shorten(prompt, MAX_PROMPT_CHARS))
        parts.append(
            f'<h3><span class="prompt">{given}</span></h3>'
            f'<table class="rows through-time"><tbody>{rows}</tbody></table>'
        )
    note = '<p class="note">Drawn at temperature 0.8 with seed 0; the marked words were given.</p>'
    return f'<section id="prompts"><h2>The same prompts</h2>{note}{"".join(parts)}</section>'


_EMPTY = '<em class="note">(nothing)</em>'
