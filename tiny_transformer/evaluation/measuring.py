"""Several checkpoints, measured for a comparison: the same documents, the same prompts, size and speed."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import reduce
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from tiny_transformer.data.token_file import open_dataset
from tiny_transformer.errors import UserError
from tiny_transformer.evaluation.comparison import Comparison, Measured, in_order, named_apart
from tiny_transformer.evaluation.prepared import data_dir_of
from tiny_transformer.evaluation.speed import tokens_per_second, weight_bytes
from tiny_transformer.evaluation.stories import Reading, document_costs, token_ends
from tiny_transformer.generation.prompt_files import given_prompt
from tiny_transformer.generation.sampling import SamplingConfig
from tiny_transformer.generation.text import complete
from tiny_transformer.hardware import choose_hardware
from tiny_transformer.models.contract import CausalLM
from tiny_transformer.models.find import RUNS_DIR, find_checkpoint
from tiny_transformer.models.open import OpenCheckpoint, open_checkpoint
from tiny_transformer.models.swaps import describe_swaps
from tiny_transformer.storage.runs import CONFIG_FILE, RunDirectory

DEFAULT_PROMPT = "Once upon a time"
MAX_PROMPTS = 3
RUN_INFO = "run_info.json"


@dataclass(frozen=True)
class MeasuringOptions:
    """What is measured.

    Attributes:
        data_dir: prepared data whose validation documents are read; None: what the first model learnt from.
        num_documents: at most so many of the first.
        prompts: what each model continues, `-` for standard input; empty: the sample prompts of the first run.
        max_new_tokens: of a continuation.
        tokenizer: `auto`, or a name that must mean every checkpoint's own.
        device: `auto`, `cpu`, `cuda` or `mps`.
        seed_spread: standard deviation between seeds of one config, as a share of bits per byte; None: measured or
            assumed.
    """

    data_dir: Path | None = None
    num_documents: int = 1000
    prompts: tuple[str, ...] = ()
    max_new_tokens: int = 60
    tokenizer: str = "auto"
    device: str = "auto"
    seed_spread: float | None = None


class _Costs(NamedTuple):
    """What one model pays for the tokens of each document, and where each token ends, in characters."""

    nats: list[np.ndarray]
    ends: Callable[[int], np.ndarray]
    predicts_first: bool


class _Look(NamedTuple):
    """What one model is and does, once it is out of memory again."""

    costs: _Costs
    texts: tuple[str, ...]
    num_parameters: int
    settings_id: str


def measure(names: Sequence[Path], options: MeasuringOptions, tell: Callable[[str], None]) -> Comparison:
    """Open each checkpoint and measure it.

    Args:
        names: paths of checkpoints and runs, see `models.find`.
        options: what is measured.
        tell: gets a line on what is done.

    Raises:
        UserError: not two different checkpoints, one that cannot be opened, no data, or a tokenizer that cannot encode
            the documents.
    """
    _check(options)
    named = _opened(names, options.device)
    for _, opened in named:
        opened.check_tokenizer(options.tokenizer)
    data_dir = options.data_dir or _common_data([opened for _, opened in named])
    texts = _documents(data_dir, options.num_documents)
    tell(f"{len(texts):,} validation documents of {data_dir}")
    prompts = tuple(dict.fromkeys(map(given_prompt, options.prompts))) or _prompts([opened for _, opened in named])
    seen = []
    for name, opened in named:  # one model in memory at a time
        tell(f"reading and writing with {name}")
        seen.append(_look(opened, texts, prompts, options))
    nats, sizes = same_parts(texts, [one.costs for one in seen])
    tell("timing them in turn")
    speeds = tokens_per_second(*(opened.read_model for _, opened in named))
    models = [
        Measured(
            name,
            str(opened.path),
            os.path.realpath(_run_of(opened)),
            *learnt_from(opened),
            one.settings_id,
            one.num_parameters,
            weight_bytes(opened.path),
            speed,
            paid,
            one.texts,
            0 if opened.run_config is None else opened.run_config.training.seed,
        )
        for (name, opened), one, speed, paid in zip(named, seen, speeds, nats, strict=True)
    ]
    return Comparison(in_order(named_apart(models)), sizes, str(data_dir), prompts, options.seed_spread)


def _check(options: MeasuringOptions) -> None:
    if options.num_documents < 1:
        raise UserError(f"num_documents = {options.num_documents} is not possible", remedy="num_documents: 1 or more")
    if options.seed_spread is not None and not 0 <= options.seed_spread < 1:
        raise UserError(f"--seed_spread {options.seed_spread} is not possible", remedy="--seed_spread: 0 to 0.1 or so")


def _opened(names: Sequence[Path], device: str) -> list[tuple[str, OpenCheckpoint]]:
    """Each different checkpoint, with its name."""
    found: dict[str, tuple[str, OpenCheckpoint]] = {}
    for path in names:
        opened = open_checkpoint(path, device=device, dtype=torch.float32)
        name = path.relative_to(RUNS_DIR) if path.is_relative_to(RUNS_DIR) else path
        found.setdefault(os.path.realpath(opened.path), (str(name), opened))
    if len(found) < 2:
        only = next(iter(found.values()))[1].path
        raise UserError(f"there is only one checkpoint to compare: {only}", remedy="name two or more, or a pattern")
    return list(found.values())


def _common_data(opened: Sequence[OpenCheckpoint]) -> Path:
    """The prepared data of the first checkpoint whose data is still there."""
    problems = []
    for one in opened:
        try:
            return data_dir_of(one.path, one.run_config)
        except UserError as error:
            problems.append(error)
    raise problems[0]


def _documents(data_dir: Path, most: int) -> list[str]:
    """The texts of the first validation documents; those of blanks alone are left out."""
    dataset = open_dataset(data_dir)
    starts = dataset.val.documents().tolist()
    bounds = zip(starts, [*starts[1:], len(dataset.val)], strict=True)
    texts = (dataset.tokenizer.decode(dataset.val.read(start, stop).tolist()) for start, stop in bounds)
    return list(islice((text for text in texts if text.strip()), most))


def _look(opened: OpenCheckpoint, texts: Sequence[str], prompts: Sequence[str], options: MeasuringOptions) -> _Look:
    """Have a model read the documents and continue the prompts."""
    model, settings = opened.read_model(), SamplingConfig(max_new_tokens=options.max_new_tokens)
    return _Look(
        _costs(opened, model, texts, options.device),
        tuple(complete(model, opened.tokenizer, prompts, settings, opened.end_ids)),
        sum(parameter.numel() for parameter in model.parameters()),
        _settings_id(opened, is_swapped=bool(describe_swaps(model))),
    )


def _costs(opened: OpenCheckpoint, model: CausalLM, texts: Sequence[str], device: str) -> _Costs:
    """What a model pays, reading each document from its beginning as it was trained to."""
    tokenizer, config = opened.tokenizer, opened.run_config
    packing = config.data.packing if config else "concat"
    seq_len = min(config.data.seq_len if config else 1024, opened.config.max_position_embeddings)
    has_first = packing == "concat" or tokenizer.begin_id is not None
    reading = Reading(tokenizer, seq_len, has_first, choose_hardware(device, "fp32"))
    ids = tokenizer.encode_batch(list(texts))
    nats = [paid[:-1] for paid in document_costs(model, ids, reading)]  # the end is no text
    if not all(np.isfinite(paid[1:]).all() for paid in nats):
        raise UserError("the model computed not-a-number", where=str(opened.path), remedy="use another checkpoint")
    return _Costs(nats, lambda i: token_ends(tokenizer, ids[i], texts[i]), has_first)


def same_parts(texts: Sequence[str], costs: Sequence[_Costs]) -> tuple[list[np.ndarray], np.ndarray]:
    """What each model pays for each document, (N,) nats, and the documents' bytes, (N,).

    A model that has never learnt to predict the first token of a document (one trained on packed documents without a
    begin token) pays nothing for it. Then nobody is asked for it: every document is counted from the first place on at
    which, for every model, a token ends.
    """
    if all(cost.predicts_first for cost in costs):
        return [np.array([paid.sum() for paid in cost.nats]) for cost in costs], _sizes(texts)
    totals: list[list[float]] = [[] for _ in costs]
    rests = []
    for i, text in enumerate(texts):
        ends = [cost.ends(i) for cost in costs]
        common = reduce(np.intersect1d, ends)
        cut = int(common[common > 0][0])
        for total, cost, of_model in zip(totals, costs, ends, strict=True):
            total.append(float(cost.nats[i][int(np.searchsorted(of_model, cut)) + 1 :].sum()))
        rests.append(text[cut:])
    kept = [i for i, rest in enumerate(rests) if rest]
    return [np.array(total)[kept] for total in totals], _sizes([rests[i] for i in kept])


def _sizes(texts: Sequence[str]) -> np.ndarray:
    return np.array([len(text.encode()) for text in texts])


def _prompts(opened: Sequence[OpenCheckpoint]) -> tuple[str, ...]:
    for one in opened:
        with suppress(UserError):
            if one.run_config and (prompts := one.run_config.training.sample_prompts):
                return tuple(dict.fromkeys(prompts))[:MAX_PROMPTS]
    return (DEFAULT_PROMPT,)


def _run_of(opened: OpenCheckpoint) -> Path:
    parent = opened.path.parent
    return parent if (parent / CONFIG_FILE).is_file() else opened.path


def _settings_id(opened: OpenCheckpoint, *, is_swapped: bool) -> str:
    """The settings of a checkpoint's run, but for its seed and its directories."""
    if opened.run_config is None:
        return ""
    settings = opened.run_config.model_dump(mode="json")
    settings.pop("out_dir", None)
    settings["data"].pop("data_dir", None)
    settings["training"].pop("seed", None)
    return json.dumps([settings, opened.path.name if is_swapped else ""], sort_keys=True)


def learnt_from(opened: OpenCheckpoint) -> tuple[str, str]:
    """What a model's training text is called, and what is the same for models of the same text; empty: not known.

    A quantized copy in a run learnt what the run learnt; a run that began with a model, first what that had learnt.
    """
    places = [opened.path]
    if (opened.path.parent / CONFIG_FILE).is_file():
        places += [one.path for one in reversed(RunDirectory(opened.path.parent).checkpoints())]
    for place in places:
        with suppress(OSError, ValueError):
            info: Any = json.loads((place / RUN_INFO).read_bytes())
            data = info.get("data") if isinstance(info, dict) else None
            if isinstance(data, dict) and data.get("val_text"):
                source, text = str(data.get("source") or "a text without a name"), str(data["val_text"])
                before = _learnt_before(opened)
                return f"{before[0]}, then {source}" if before[0] else source, f"{before[1]} {text}".strip()
    return "", ""


def _learnt_before(opened: OpenCheckpoint) -> tuple[str, str]:
    """What the model had learnt from with which the run began; its path where that is not known."""
    start = None if opened.run_config is None else opened.run_config.init_from
    if start is None:
        return "", ""
    with suppress(UserError):
        found = learnt_from(OpenCheckpoint(*find_checkpoint(start)))
        if found[1]:
            return found
    return str(start), str(start)
