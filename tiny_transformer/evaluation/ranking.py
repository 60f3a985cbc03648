"""Which of several checkpoints continues short prompts best: `tiny-transformer evaluate_checkpoints`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
import yaml
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from tiny_transformer.config.text import MAX_CONFIG_BYTES, parse_yaml
from tiny_transformer.data.prepare.unpack import bad
from tiny_transformer.errors import UserError
from tiny_transformer.evaluation.tasks import Item, TaskResult, run_task
from tiny_transformer.hardware import choose_hardware
from tiny_transformer.models.find import find_runs
from tiny_transformer.models.open import open_checkpoint
from tiny_transformer.storage.reading import read_regular

_FORM = "a list of `prompt` and `target`, each a text, or `cases` with that list"


class Ranked(NamedTuple):
    """One checkpoint and what it scores: the share of targets that greedy decoding writes, and their perplexity."""

    checkpoint: Path
    result: TaskResult


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
    items, hardware, ranked = read_cases(cases), choose_hardware(device, "fp32"), {}
    for name in find_runs(names)[0]:
        opened = open_checkpoint(name, device=device, dtype=torch.float32)
        opened.check_tokenizer(tokenizer)
        target = opened.path.resolve()  # best and last are often one checkpoint
        if target not in ranked:
            result = run_task(opened.path.name, items, opened.model, opened.tokenizer, hardware)
            ranked[target] = Ranked(opened.path, result)
    return sorted(ranked.values(), key=lambda one: one.result.perplexity or math.inf)


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


def show_ranking(ranked: Sequence[Ranked], console: Console) -> None:
    """A row a checkpoint, the best first."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heading in ("checkpoint", "perplexity of targets", "written greedily"):
        table.add_column(heading, justify="left" if heading == "checkpoint" else "right", no_wrap=True)
    for checkpoint, result in ranked:
        right = f"{round(result.accuracy * result.num_items)} of {result.num_items}"
        table.add_row(escape(str(checkpoint)), f"{result.perplexity:,.1f}", right)
    console.print(table)
