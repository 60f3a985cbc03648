"""The attention weights of a text, as a file: what `generate --log_attention` leaves beside what it wrote.

`attention.safetensors` holds, for each block with attention, `attention.BLOCK`: (H, T, T) float32, how much the row's
token looks at the column's; rows sum to 1 and later tokens are exactly 0. Its metadata name the T tokens: `tokens` (a
JSON list of texts) and `ids`. Blocks without attention, such as delta-rule layers, have no tensor.

The text is read once more when it has been written. So the weights are those of the writing up to the rounding of
floating point, whoever computed it: the compiled step, a drafter, a cache.
"""

from __future__ import annotations

import importlib.util
import json
import math
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from safetensors.torch import save
from torch import Tensor

from tiny_transformer.errors import UserError
from tiny_transformer.inspection.observe import observe
from tiny_transformer.models.open import OpenCheckpoint
from tiny_transformer.storage import atomic_write

WEIGHTS_FILE, PICTURE_FILE = Path("attention.safetensors"), Path("attention.png")
MAX_BYTES = 2**28  # of the file; weights grow with the square of the text
MAX_PANELS = 64  # of the picture; of a model with more heads each block's mean is drawn
MAX_LABELS = 40  # tokens whose texts can be read beside a panel
_PANEL_INCHES = 2.6


def check_plot() -> None:
    """Raise UserError where nothing can draw, before a text is written."""
    if importlib.util.find_spec("matplotlib") is None:
        raise UserError("--plot needs matplotlib, which is not installed", remedy="pip install matplotlib")


def save_attention(opened: OpenCheckpoint, ids: Sequence[int], notes: Console, *, plot: bool = False) -> None:
    """Write `attention.safetensors` into the working directory, and with `plot` a picture of it.

    Args:
        opened: what wrote the text.
        ids: prompt and text.
        notes: gets what was written, and what was left out: of a text whose weights would take more than 256 MB, the
            first tokens alone are kept. No token looks at a later one, so their weights are the same.
        plot: draw `attention.png`.

    Raises:
        UserError: a model without attention, or a file that cannot be written.
    """
    config = opened.model.config
    most = math.isqrt(MAX_BYTES // (4 * config.num_hidden_layers * config.num_attention_heads))
    kept = list(ids)[: min(most, config.max_position_embeddings)]
    seen = observe(opened.model, kept)
    if not seen.attention:
        raise UserError("no block of this model computes attention", where=str(opened.path))
    weights = {block: one.float().cpu().contiguous() for block, one in seen.attention.items()}
    texts = [opened.tokenizer.decode([token], skip_special_tokens=False) for token in kept]
    metadata = {"format": "pt", "tokens": json.dumps(texts, ensure_ascii=False), "ids": json.dumps(kept)}
    atomic_write(WEIGHTS_FILE, save({f"attention.{block}": one for block, one in weights.items()}, metadata=metadata))
    cut = "" if len(kept) == len(ids) else f" of the first {len(kept):,} of {len(ids):,} tokens (all: over 256 MB)"
    written = f"{WEIGHTS_FILE}: attention weights{cut}"
    if plot:
        atomic_write(PICTURE_FILE, _picture(weights, texts))
        written += f"; {PICTURE_FILE}"
    notes.print(f"[dim]{escape(written)}[/]", highlight=False, soft_wrap=True)


def _picture(weights: dict[int, Tensor], texts: Sequence[str]) -> bytes:
    """A panel a head, a row a block, as PNG."""
    from io import BytesIO

    from matplotlib.figure import Figure

    num_heads = len(next(iter(weights.values())))
    if num_heads * len(weights) > MAX_PANELS:
        weights, num_heads = {block: one.mean(0, keepdim=True) for block, one in weights.items()}, 1
    figure = Figure(figsize=(1 + _PANEL_INCHES * num_heads, _PANEL_INCHES * len(weights) + 1), layout="constrained")
    panels = figure.subplots(len(weights), num_heads, squeeze=False)
    labels = [text.replace("\n", "\N{RETURN SYMBOL}").replace("$", r"\$") for text in texts]
    for row, (block, of_block) in zip(panels, weights.items(), strict=True):
        for head, panel in enumerate(row):
            panel.imshow(of_block[head].numpy(), vmin=0, vmax=1, cmap="viridis")
            panel.set_title(f"block {block}, head {head}" if num_heads > 1 else f"block {block}", fontsize=9)
            if len(labels) <= MAX_LABELS:
                panel.set_xticks(range(len(labels)), labels, rotation=90, fontsize=6)
                panel.set_yticks(range(len(labels)), labels, fontsize=6)
    figure.supxlabel("token looked at", fontsize=9)
    figure.supylabel("token that looks", fontsize=9)
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()
