"""Which of several checkpoints continues short prompts best: `tiny-transformer compare --cases`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import yaml
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from tiny_transformer.config.text import MAX_CONFIG_BYTES, parse_yaml
from tiny_transformer.data.prepare.unpack import bad
from tiny_transformer.errors import UserError
from tiny_transformer.evaluation.loss import perplexity_in_words
from tiny_transformer.evaluation.paired import MIN_DOCUMENTS, Difference, ratio_interval
from tiny_transformer.evaluation.tasks import Item, TaskResult, score_items, summarize
from tiny_transformer.hardware import choose_hardware
from tiny_transformer.models.find import find_runs
from tiny_transformer.models.open import open_checkpoint
from tiny_transformer.storage.reading import read_regular

_FORM = "a list of `prompt` and `target`, each a text, or `cases` with that list"


class Ranked(NamedTuple):
    """One checkpoint and what it scores.

    Attributes:
        checkpoint: where it is.
        result: the share of targets that greedy decoding writes, and their perplexity.
        nats: (N,) what each case's target costs.
        behind: nats a case more than the best, with the interval over cases; None for the best.
    """

    checkpoint: Path
    result: TaskResult
    nats: np.ndarray
    behind: Difference | None = None


def rank_checkpoints(names: Sequence[Path], cases: Path, tokenizer: str, device: str = "auto") -> list[Ranked]:
    """Checkpoints by the perplexity of the targets, each after its prompt; the best first.

    Args:
        names: checkpoints, runs, names of runs, or patterns of them.
        cases: a YAML file of prompts and targets, see `read_cases`.
        tokenizer: `auto`, or a name that must mean every checkpoint's own.
        device: `auto`, `cpu`, `cuda` or `mps`.

    Raises:
        UserError: a bad case file, no checkpoint of that name, or one with another tokenizer.
    """
    items, hardware, seen = read_cases(cases), choose_hardware(device, "fp32"), {}
    for name in find_runs(names)[0]:
        opened = open_checkpoint(name, device=device, dtype=torch.float32)
        opened.check_tokenizer(tokenizer)
        target = opened.path.resolve()  # best and last are often one checkpoint
        if target not in seen:
            scores, num_cut = score_items(opened.path.name, items, opened.model, opened.tokenizer, hardware)
            nats = np.array([-score.log_likelihood for (score,) in scores])
            seen[target] = Ranked(opened.path, summarize(opened.path.name, items, scores, num_cut), nats)
    best, *others = sorted(seen.values(), key=lambda one: float(one.nats.sum()))
    ones = np.ones(len(items))
    found = [Difference(ratio_interval(one.nats - best.nats, ones), num_models=len(others) + 1) for one in others]
    return [best, *(one._replace(behind=behind) for one, behind in zip(others, found, strict=True))]


def read_cases(path: Path) -> list[Item]:
    """The prompts and targets of a YAML file.

    Raises:
        UserError: not a file, not YAML, or a case that is not two texts, naming it.
    """
    try:
        tree = parse_yaml(read_regular(path, MAX_CONFIG_BYTES).decode("utf-8-sig"))[0]
    except FileNotFoundError:
        raise UserError(f"no such case file: {path}", remedy=f"name a YAML file: {_FORM}") from None
    except (ValueError, yaml.YAMLError) as error:
        raise bad(f"not a case file ({str(error).splitlines()[0]})", path, remedy=f"YAML with {_FORM}") from None
    rows = tree.get("cases") if isinstance(tree, dict) else tree
    if not isinstance(rows, list) or not rows:
        raise bad("there is no case in it", path, remedy=f"YAML with {_FORM}")
    return [_case(row, path, number) for number, row in enumerate(rows, start=1)]


def _case(row: object, path: Path, number: int) -> Item:
    pair = (row.get("prompt"), row.get("target")) if isinstance(row, dict) else (None, None)
    prompt, target = pair
    if not isinstance(prompt, str) or not isinstance(target, str) or not prompt.strip() or not target.strip():
        raise bad(f"case {number} is not a prompt and a target", path, remedy=f"YAML with {_FORM}")
    return Item(((prompt.rstrip(), f" {target.strip()}"),), None, (1,))


def ranking_json(ranked: Sequence[Ranked]) -> list[dict[str, Any]]:
    """The same for programs."""
    rows = []
    for checkpoint, result, _, behind in ranked:
        row: dict[str, Any] = {
            "checkpoint": str(checkpoint),
            "perplexity": result.perplexity,
            "greedy": result.accuracy,
        }
        if behind is not None and behind.interval.is_known:
            row |= {"nats_behind": behind.interval._asdict(), "verdict": behind.verdict}
        rows.append(row)
    return rows


def show_ranking(ranked: Sequence[Ranked], console: Console) -> None:
    """A row a checkpoint, the best first."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heading in ("checkpoint", "perplexity of targets", "written greedily", "than the best"):
        is_text = heading in ("checkpoint", "than the best")
        table.add_column(heading, justify="left" if is_text else "right", no_wrap=heading != "checkpoint")
    for checkpoint, result, _, behind in ranked:
        right = f"{round(result.accuracy * result.num_items)} of {result.num_items}"
        verdict = "" if behind is None else behind.verdict
        table.add_row(escape(str(checkpoint)), perplexity_in_words(math.log(result.perplexity or 1)), right, verdict)
    console.print(table)
    if len(ranked) > 1 and ranked[0].result.num_items < MIN_DOCUMENTS:
        told = f"\n{ranked[0].result.num_items} cases are too few to tell a difference from chance"
        console.print(f"{told} ({MIN_DOCUMENTS} are needed)", highlight=False, soft_wrap=True)
    if any(one.behind is not None and one.behind.verdict == "worse" for one in ranked):
        told = "\nThese verdicts are on these very weights: other seeds of the same configs may rank otherwise."
        console.print(told, highlight=False, soft_wrap=True, style="dim")
