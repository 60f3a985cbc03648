"""One HTML page on what a model does with one text: its guesses, where each head looks, what each block already knows.

The page needs no network. Its numbers are those of a single forward pass; attention weights lie in it as 32-bit floats.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Sequence
from importlib import resources
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor

from tiny_transformer.errors import plain
from tiny_transformer.generation.prompt_files import given_prompt
from tiny_transformer.inspection.head_scores import (
    COPYING,
    COST,
    COST_OF_REPEATS,
    FIRST_TOKEN,
    LOOKS_AT_NEXT,
    MAX_ABLATIONS,
    TOKEN_BEFORE,
)
from tiny_transformer.inspection.model_look import ModelLook, look, mean_loss
from tiny_transformer.models.open import open_checkpoint
from tiny_transformer.reports.formats import count
from tiny_transformer.reports.page import esc
from tiny_transformer.reports.report import guarded, whole_page
from tiny_transformer.storage import atomic_write

DEFAULT_OUT = Path("inspect.html")
HEAD_NOTES = {
    LOOKS_AT_NEXT: "share on places where the KIND that comes next stands already",
    COST_OF_REPEATS: "nats a token more when the head gives zeros, where a KIND comes that stands in the text already",
    COST: "nats a token more when the head gives zeros, for all tokens; below zero the text gets cheaper",
    TOKEN_BEFORE: "share on the token just before",
    COPYING: "share on what followed this token earlier, in random tokens written twice: such a head copies anything",
    FIRST_TOKEN: "share on the very first token, where attention goes that has nothing to do",
}
COSTS = (COST, COST_OF_REPEATS)
BLANKS = {"\n": "\N{RETURN SYMBOL}", "\t": "\N{RIGHTWARDS ARROW TO BAR}", "": "\N{OPEN BOX}"}


def inspect_model(name: Path | None, prompt: str, out: Path | None, console: Console, *, device: str = "auto") -> Path:
    """Look at a model while it reads `prompt`, and write the page; returns its path.

    Args:
        name: a checkpoint or run directory, or a run's name; None for the newest.
        prompt: the text; `-` for standard input.
        out: the page; None: `inspect.html` in the working directory.
        console: gets what was chosen and where the page is.
        device: `auto`, `cpu`, `cuda` or `mps`.

    Raises:
        UserError: no such checkpoint, no text, one that is too long, or a page that cannot be written.
    """
    opened = open_checkpoint(name, device=device, dtype=torch.float32)
    page, path = look(opened, given_prompt(prompt)), out or DEFAULT_OUT
    atomic_write(path, page_html(page))
    console.print(f"[dim]{plain(opened.sentence)}[/]", highlight=False, soft_wrap=True)
    console.print(plain(str(path)), highlight=False, soft_wrap=True)
    return path


def page_html(page: ModelLook) -> str:
    """The whole page; a part that cannot be drawn says so and takes no other with it."""
    sections = {
        "Heading": lambda: _heading(page),
        "Guesses": lambda: _guesses(page),
        "Attention": lambda: _attention(page),
        "Heads": lambda: _heads(page),
        "Blocks": lambda: _blocks(page),
        "Experts": lambda: _experts(page),
        "Memories": lambda: _memories(page),
    }
    parts = [guarded(title, make) for title, make in sections.items()]
    parts.append(f'<script type="application/json" id="model-data">{_data(page)}</script>')
    folder = resources.files("tiny_transformer.inspection")
    script, style = (folder.joinpath(f"model_page.{kind}").read_text(encoding="utf-8") for kind in ("js", "css"))
    return whole_page(f"{Path(page.name).name} · inside a model", parts, script=script, style=style)


def _data(page: ModelLook) -> str:
    """What the script draws from, as JSON that cannot end its element."""
    values, ids = page.guesses
    rows = zip(values.tolist(), ids.tolist(), strict=True)
    data = {
        "tokens": page.texts,
        "guesses": [[[page.text_of(i), p] for p, i in zip(*row, strict=True)] for row in rows],
        "probability": [None, *_chosen(page)],
        "attention": {str(block): _lower(weights) for block, weights in page.seen.attention.items()},
        "withoutHead": {str(block): costs.tolist() for block, costs in page.without.heads.items()},
        "withoutBlock": page.without.blocks.tolist(),
        "start": page.copier and {name: getattr(page.copier, name) for name in ("block", "head", "token")},
    }
    return json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")


def _chosen(page: ModelLook) -> list[float]:
    """The probability that each token but the first had."""
    probabilities = torch.softmax(page.seen.logits[:-1], -1)
    return [probabilities[t, i].item() for t, i in enumerate(page.seen.ids[1:])]


def _lower(weights: Tensor) -> str:
    """(H, T, T) as base64 of 32-bit little-endian floats: head by head, row by row, each up to its own column."""
    rows, columns = torch.tril_indices(weights.shape[1], weights.shape[1])
    return base64.b64encode(weights[:, rows, columns].float().cpu().numpy().astype("<f4").tobytes()).decode()


# --- sections
# -----------------------------------------------------------------------------------------------------------


def _heading(page: ModelLook) -> str:
    num = len(page.texts)
    cost = f" It pays {mean_loss(page.seen.logits, page.seen.ids):.3f} nats a token for this text." if num > 1 else ""
    words = f"{count(page.num_parameters)} parameters in {len(page.seen.hidden)} blocks read {num} tokens.{cost}"
    return f"""<header><p class="state">{esc(page.name)}</p><h1>Inside a model</h1>
<p class="outcome">{esc(words)}</p></header>"""


def _guesses(page: ModelLook) -> str:
    """The text with how likely each token was; the script shows the guesses at the token that is chosen."""
    tokens = "".join(
        f'<button type="button" class="token" data-token="{t}" style="--p:{1.0 if p is None else p:.4f}" '
        f'title="{"the beginning" if p is None else f"probability {p:.2%}"}">{esc(_shown(text))}</button>'
        for t, (text, p) in enumerate(zip(page.texts, [None, *_chosen(page)], strict=True))
    )
    values, ids = (part[-1].tolist() for part in page.guesses)
    rows = "".join(
        f'<tr><th scope="row">{esc(_shown(page.text_of(i)))}</th><td>{p:.2%}</td>'
        f'<td class="bar"><span style="width:{100 * p:.1f}%"></span></td></tr>'
        for p, i in zip(values, ids, strict=True)
    )
    return f"""<section><h2>What it expected</h2>
<p class="note">The stronger a token's colour, the less likely the model found it before it came. Choose one to see
the guesses after it, and where each head looks from it: the stronger the line under a token, the more the head that is
chosen below looks at it.</p>
<div class="tokens" role="group" aria-label="the tokens of the text">{tokens}</div>
<div class="chosen"><div id="guesses" aria-live="polite"><h3>after the last token</h3>
<table class="rows guesses"><tbody>{rows}</tbody></table></div><div id="without"></div></div></section>"""


def _attention(page: ModelLook) -> str:
    """Places for the script to draw in."""
    if not page.seen.attention:
        return ""
    thumbs = "".join(
        f'<div class="block-row"><span class="note">block {block}</span>{_thumbs(block, len(weights))}</div>'
        for block, weights in page.seen.attention.items()
    )
    return f"""<section id="attention"><h2>Where each head looks</h2>
<p class="note">A row is a token that reads, a column a token it looks at; nobody looks ahead. Choose a head to see it
large, and a token to see its row as lines.</p>
<noscript><p class="note">The pictures need JavaScript.</p></noscript>
<div class="thumbs">{thumbs}</div>
<div class="large"><figure><figcaption class="note" id="head-title"></figcaption>
<canvas id="matrix" tabindex="0" role="img"></canvas>
<p class="note" id="cell" aria-live="polite"></p></figure>
<div class="scroll lines" tabindex="0"><svg id="arcs" role="img"></svg></div></div></section>"""


def _thumbs(block: int, num_heads: int) -> str:
    return "".join(
        f'<button type="button" class="thumb" data-block="{block}" data-head="{head}" aria-pressed="false" '
        f'aria-label="block {block}, head {head}"><canvas></canvas><span>{head}</span></button>'
        for head in range(num_heads)
    )


def _heads(page: ModelLook) -> str:
    tables = []
    for name, values in page.scores.items():
        if values.isnan().all():
            continue
        top = (values.nan_to_num(0).abs().max().item() or 1.0) if name in COSTS else 1.0
        rows = (
            (f"block {block}", [_heat(value, top) for value in row])
            for block, row in enumerate(values.tolist())
            if block in page.seen.attention
        )
        table = _table("heat", [str(head) for head in range(values.shape[1])], rows, corner="head")
        tables.append(
            f'<div class="scores" data-score="{esc(name)}"><h3>{esc(name)}</h3>'
            f'<p class="note">{esc(HEAD_NOTES[name].replace("KIND", page.repeats.kind))}</p>{table}</div>'
        )
    if not tables:
        return ""
    too_many = sum(map(len, page.seen.attention.values())) > MAX_ABLATIONS
    note = f"The model has more than {MAX_ABLATIONS} heads: they were not left out one by one." if too_many else ""
    return f"""<section><h2>What each head does</h2>{_copier(page)}<p class="note">{note}</p>
<div class="tables">{"".join(tables)}</div></section>"""


def _copier(page: ModelLook) -> str:
    """Which head copies what comes again, in words, with a button that shows it at work."""
    found, kind = page.copier, page.repeats.kind
    if found is None:
        return '<p class="note">Nothing comes twice in this text, so it does not show which head copies.</p>'
    where = f"block {found.block}, head {found.head}"
    share = f"{found.share:.0%} of its attention ({found.by_chance:.0%} if it looked everywhere equally)"
    if found.share < 2 * found.by_chance:
        told = (
            f"No head copies {kind}s here. Where a {kind} comes that stands in the text already, {where} looks there "
        )
        return f'<p id="copier">{esc(told)}most, with {share}.</p>'
    told = f"Where a {kind} comes that stands in the text already, {where} looks there with {share}."
    if found.cost <= 0:
        told += (
            f" Without it such a {kind} costs no more ({found.cost:+.2f} nats): other parts of the model do the same."
        )
    elif found.cost > 0:
        own = page.without.heads[found.block][found.head, found.token].item()
        token = _shown(page.texts[found.token + 1])
        told += f" Without this head such a {kind} costs {found.cost:+.2f} nats more on average, “{token}” {own:+.2f}."
    button = (
        f'<button type="button" class="show" data-block="{found.block}" data-head="{found.head}" '
        f'data-token="{found.token}">show that</button>'
    )
    return f'<p id="copier"><strong>The head that copies {kind}s: {where}.</strong> {esc(told)} {button}</p>'


def _blocks(page: ModelLook) -> str:
    """The logit lens, and what the text costs without each block."""
    values, ids = (part.tolist() for part in page.lens)
    rows = (
        (
            f"block {block}",
            [
                f'<td style="--v:{p:.3f}" title="{p:.2%}">{esc(_shown(page.text_of(i)))}</td>'
                for p, i in zip(*row, strict=True)
            ],
        )
        for block, row in enumerate(zip(values, ids, strict=True))
    )
    costs = "".join(
        f'<tr><th scope="row">block {block}</th><td data-value="{cost!r}">{cost:+.3f}</td></tr>'
        for block, cost in enumerate(page.without.blocks.mean(1).tolist())
        if cost == cost
    )
    without = (
        f"""<h3>cost without a block</h3><p class="note">Nats a token more when the block gives on what it gets.</p>
<table class="rows costs"><tbody>{costs}</tbody></table>"""
        if costs
        else ""
    )
    return f"""<section><h2>What each block already knows</h2>
<p class="note">The head's likeliest next token had the model ended after each block (the logit lens); the stronger
the colour, the surer. The last row is what the model says.</p>
{_table("heat lens", map(_shown, page.texts), rows)}{without}</section>"""


def _experts(page: ModelLook) -> str:
    rows = (
        (
            f"block {block}",
            [
                f'<td title="{esc(", ".join(f"{w:.2f}" for w in weights))}">{esc(" ".join(map(str, chosen)))}</td>'
                for chosen, weights in zip(routing.chosen.tolist(), routing.weights.tolist(), strict=True)
            ],
        )
        for block, routing in page.seen.experts.items()
    )
    if not page.seen.experts:
        return ""
    return f"""<section><h2>Which experts each token chose</h2><p class="note">The weightiest first.</p>
{_table("rows experts", map(_shown, page.texts), rows)}</section>"""


def _memories(page: ModelLook) -> str:
    if not page.seen.memories:
        return ""
    decays = {block: memory.decay for block, memory in page.seen.memories.items()}
    norms = {block: memory.norm for block, memory in page.seen.memories.items()}
    return f"""<section><h2>Memories of the delta rule</h2>
<h3>what stays of the memory</h3><p class="note">The share that outlives the token; 0 forgets everything.</p>
{_by_token(page, "decay", decays, top=1.0)}
<h3>how much is held</h3><p class="note">The norm of the memory after the token.</p>
{_by_token(page, "norm", norms)}</section>"""


def _by_token(page: ModelLook, name: str, values: dict[int, Tensor], top: float | None = None) -> str:
    """A row a head, a column a token; (T, H) of each block. `top` has the full colour; None: the most of each block."""
    rows = []
    for block, of_block in values.items():
        most = of_block.abs().max().item() or 1.0 if top is None else top
        for head, row in enumerate(of_block.T.tolist()):
            rows.append((f"block {block}, head {head}", [_heat(value, most) for value in row]))
    return f'<div data-memory="{name}">{_table("heat", map(_shown, page.texts), rows)}</div>'


def _table(kind: str, heads: Iterable[str], rows: Iterable[tuple[str, Sequence[str]]], corner: str = "") -> str:
    """A table that may be wider than the page; cells are HTML already."""
    head = "".join(f'<th scope="col">{esc(name)}</th>' for name in heads)
    body = "".join(f'<tr><th scope="row">{esc(name)}</th>{"".join(cells)}</tr>' for name, cells in rows)
    return f"""<div class="scroll" tabindex="0"><table class="{kind}">
<thead><tr><th>{corner}</th>{head}</tr></thead><tbody>{body}</tbody></table></div>"""


def _heat(value: float, top: float) -> str:
    if value != value:
        return '<td class="none"></td>'
    return f'<td data-value="{value!r}" style="--v:{abs(value) / top:.3f}">{value:.2f}</td>'


def _shown(text: str) -> str:
    """A token as one can see it: its line breaks and tabs, and that it is no text at all."""
    return BLANKS[""] if not text else text.replace("\n", BLANKS["\n"]).replace("\t", BLANKS["\t"])
