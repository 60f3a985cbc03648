"""The last tables of docs/CONFIG_REFERENCE.md: why each default is what it is, and what some keys were measured to do.

The reasons stand in `reasons.txt` beside this file; the figures come from the newest result of benchmarks/effects.py.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

REASONS = Path(__file__).with_name("reasons.txt")
RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"

WHY_HEAD = """## Why these defaults, what they cost, and what is seen when they are wrong

| key | why this default | costs in memory and time | when it is wrong |
| --- | --- | --- | --- |"""

EFFECTS_HEAD = """## What was measured

Each row is a run of {steps} steps beside the same run with one key set otherwise: a Qwen3 of two layers of 64 on the
built-in stories, {tokens:,} tokens, validation loss in nats per token at equal seeds. Three seeds of the first run
differ by {spread:.2f}: a smaller difference says little. So few steps are the beginning of a run, where whatever keeps
the rate high is ahead; at the end of a long one it would not be. Tokens of another vocabulary are other tokens, so
there the bits per byte are compared. *Memory* is what the tensors of a step take, *disk* the directory of the run,
*time* the processor time of a step, taken in turn; each as a multiple. An empty cell was not measured.
`python benchmarks/effects.py --only KEY` measures a row again. On {device}, PyTorch {torch}, {date}; the file is
`benchmarks/results/{file}`.

| key | from | to | loss, from | loss, to | memory | disk | time | what else changed |
| --- | --- | --- | --- | --- | --- | --- | --- | --- |"""


class Reason(NamedTuple):
    """What is said of a key besides its meaning."""

    why: str
    costs: str
    when_wrong: str


def read_reasons() -> dict[str, Reason]:
    """Each key's reason.

    Raises:
        ValueError: a line that has not four parts, or a key twice.
    """
    found: dict[str, Reason] = {}
    for line in REASONS.read_text(encoding="utf-8").splitlines():
        if not line or line.startswith("#"):
            continue
        key, *parts = (part.strip() for part in line.split(" | "))
        if len(parts) != len(Reason._fields) or key in found:
            raise ValueError(f"{REASONS.name}: {line}")
        found[key] = Reason(*parts)
    return found


def reasons_markdown() -> str:
    """The table of reasons."""
    rows = [f"| `{key}` | {' | '.join(reason)} |" for key, reason in read_reasons().items()]
    return "\n".join([WHY_HEAD, *rows]) + "\n"


def effects_markdown() -> str:
    """The table of what was measured."""
    path = max(RESULTS.glob("effects-*.json"), key=lambda file: file.name)
    results = json.loads(path.read_text(encoding="utf-8"))
    effects, about = results["effects"], results["machine"]
    seeds = [row for row in effects if row["key"] == "training.seed"]
    losses = [seeds[0]["without"]["val_loss"], *(row["with"]["val_loss"] for row in seeds)]
    head = EFFECTS_HEAD.format(
        steps=results["base"]["training.steps"],
        tokens=seeds[0]["without"]["tokens"],
        spread=max(losses) - min(losses),
        device=about["device"],
        torch=about["versions"]["torch"],
        date=about["date"][:10],
        file=path.name,
    )
    return "\n".join([head, *(_effect_row(row) for row in effects)]) + "\n"


def _effect_row(row: dict[str, Any]) -> str:
    before, after = row["without"], row["with"]
    beside = ", ".join(f"`{key.split('.')[-1]}: {_value(value)}`" for key, value in row["beside"].items())
    key = f"`{row['key']}`" + (f" with {beside}" if beside else "")
    if row["key"] in ("data.tokenizer", "data.vocab_size"):
        losses = [f"{run['bits_per_byte']:.3f} bits" for run in (before, after)]
    else:
        losses = [f"{run['val_loss']:.3f}" for run in (before, after)]
    time = f"× {row['processor_time']:.2f}" if "processor_time" in row else ""
    ratios = [_ratio(before[name], after[name]) for name in ("step_memory", "run_bytes")]
    cells = [key, f"`{_value(row['from'])}`", f"`{_value(row['to'])}`", *losses, *ratios, time, _else(before, after)]
    return f"| {' | '.join(cells)} |"


def _value(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _ratio(before: int | None, after: int | None) -> str:
    return f"× {after / before:.2f}" if before and after else ""


def _else(before: dict[str, Any], after: dict[str, Any]) -> str:
    """Other figures that differ."""
    said = []
    if before["parameters"] != after["parameters"]:
        said.append(f"{before['parameters']:,} to {after['parameters']:,} parameters")
    if before["cache_per_token"] != after["cache_per_token"]:
        said.append(f"a cache of {before['cache_per_token']:,} to {after['cache_per_token']:,} bytes a token")
    if before["steps"] != after["steps"]:
        said.append(f"{before['steps']} to {after['steps']} steps")
    if after["quantized_bytes"]:
        said.append(f"beside {after['model_bytes']:,} bytes of weights {after['quantized_bytes']:,}")
    if after["best_val_loss"] < after["val_loss"] - 0.005:
        said.append(f"best {after['best_val_loss']:.3f}")
    return "; ".join(said)


if __name__ == "__main__":
    print(reasons_markdown(), effects_markdown(), sep="\n", end="")
