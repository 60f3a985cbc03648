"""What a comparison of models found: figures, intervals and verdicts, in words and for programs. No torch here."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from tiny_transformer.evaluation.paired import (
    ASSUMED_SPREAD,
    MIN_DOCUMENTS,
    Difference,
    Interval,
    SeedSpread,
    measured_spread,
    ratio_interval,
)


@dataclass(frozen=True)
class Measured:
    """One model.

    Attributes:
        name: what it is called, as the user named it.
        path: of its checkpoint.
        run: the directory of its run; the checkpoint itself where it stands alone.
        learnt_from: what its training text is called; empty: not known.
        text_id: the same for models that learnt from the same text; empty: not known.
        settings_id: the same for runs whose settings differ in the seed alone; empty: not known.
        num_parameters: of the model.
        num_bytes: of its weights on disk.
        tokens_per_second: new tokens of one text, plain engine.
        nats: (N,) what it pays for each document.
        texts: how it continues each prompt.
        seed: of its run; says nothing where the settings are not known.
    """

    name: str
    path: str
    run: str
    learnt_from: str
    text_id: str
    settings_id: str
    num_parameters: int
    num_bytes: int
    tokens_per_second: float
    nats: np.ndarray
    texts: tuple[str, ...] = ()
    seed: int = 0


@dataclass(frozen=True)
class Comparison:
    """Several models on the same documents.

    Attributes:
        models: the one with the fewest bits per byte first.
        sizes: (N,) bytes of text in each document.
        documents_of: the directory of the prepared data.
        prompts: what each model continued.
        asked_spread: of seeds, as a share of bits per byte; None: measured where seeds of one config are compared,
            else assumed.
    """

    models: tuple[Measured, ...]
    sizes: np.ndarray
    documents_of: str
    prompts: tuple[str, ...]
    asked_spread: float | None = None

    def bits_per_byte(self, model: Measured) -> Interval:
        """Of one model, with the interval over documents."""
        return ratio_interval(model.nats / math.log(2), self.sizes)

    def difference(self, model: Measured, other: Measured) -> Difference:
        """What `model` pays more than `other`, in bits per byte. Two checkpoints of one run share their seed."""
        interval = ratio_interval((model.nats - other.nats) / math.log(2), self.sizes)
        mean, num_runs = (self._bits(model) + self._bits(other)) / 2, len({one.run for one in self.models})
        margin = 0.0 if model.run == other.run else self.seed_spread.margin(mean, num_runs)
        return Difference(interval, margin, len(self.models))

    @cached_property
    def seed_spread(self) -> SeedSpread:
        """How much seeds of one config differ: as asked, else as measured on these models, else as assumed."""
        if self.asked_spread is not None:
            return SeedSpread(self.asked_spread)
        groups: dict[str, dict[int, float]] = {}  # one figure a seed: a copy of a run is no second one
        for model in self.models:
            if model.settings_id:
                groups.setdefault(model.settings_id, {}).setdefault(model.seed, self._bits(model))
        return measured_spread([list(group.values()) for group in groups.values()]) or ASSUMED_SPREAD

    def spread_in_words(self) -> str:
        """Where the spread of seeds comes from."""
        share = f"{100 * self.seed_spread.share:.2g} %"
        if self.asked_spread is not None:
            return f"{share}, as asked"
        if self.seed_spread is not ASSUMED_SPREAD:
            return f"{share}, measured on those of these runs that differ in their seed alone"
        return f"{share}, assumed; it is measured where several seeds of one config are compared"

    def _bits(self, model: Measured) -> float:
        return float(model.nats.sum() / math.log(2) / self.sizes.sum())

    @property
    def why_not_ranked(self) -> str:
        """Why these models are not ranked, in a sentence or two; empty where they are."""
        if unknown := [model.name for model in self.models if not model.text_id]:
            return (
                f"No ranking: it is not known what {_listed(unknown)} learnt from. A model may have read these very "
                "documents, or never a text of their kind."
            )
        if len({model.text_id for model in self.models}) > 1:
            return (
                f"No ranking: these models learnt from different texts ({self._who_learnt_what()}). Fewer bits per "
                "byte may only say whose text the documents resemble."
            )
        if len(self.sizes) < MIN_DOCUMENTS:
            return (
                f"No ranking: {len(self.sizes)} documents are too few to tell a difference from chance "
                f"({MIN_DOCUMENTS} are needed)."
            )
        return ""

    def _who_learnt_what(self) -> str:
        groups: dict[str, list[Measured]] = {}
        for model in self.models:
            groups.setdefault(model.text_id, []).append(model)
        told: list[str] = []
        for group in groups.values():
            source = group[0].learnt_from
            is_known = any(one.endswith(f"from {source}") for one in told)  # two data sets of one source
            other = f"another selection of {source}" if is_known else source
            told.append(f"{_listed([model.name for model in group])} from {other}")
        return "; ".join(told)

    def outcome(self) -> list[str]:
        """Who came out best, and against whom that cannot be said."""
        if why := self.why_not_ranked:
            return [why]
        best, *others = self.models
        found = {model.name: self.difference(model, best) for model in others}
        equal = [name for name, one in found.items() if one.verdict == "no difference"]
        worse = [name for name, one in found.items() if one.verdict == "worse"]
        if not worse:
            return [f"No difference between {_listed([model.name for model in self.models])}."]
        together = f"{_listed([best.name, *equal])}, between which there is no difference" if equal else best.name
        return [f"Best on these documents: {together}. Worse: {_listed(worse)}."]

    def as_json(self) -> dict[str, Any]:
        """Everything, for programs; `pairs` holds what the first of two pays more than the second."""
        models = [
            {
                "name": one.name,
                "checkpoint": one.path,
                "learnt_from": one.learnt_from or None,
                "num_parameters": one.num_parameters,
                "weight_bytes": one.num_bytes,
                "tokens_per_second": one.tokens_per_second,
                "bits_per_byte": _interval_json(self.bits_per_byte(one)),
                "texts": list(one.texts),
            }
            for one in self.models
        ]
        pairs = []
        for place, other in enumerate(self.models):
            for one in self.models[place + 1 :]:
                found = self.difference(one, other)
                verdict = None if self.why_not_ranked else found.verdict
                more = {"seed_margin": found.seed_margin, "verdict": verdict}
                pairs.append({"model": one.name, "than": other.name, **_interval_json(found.interval), **more})
        return {
            "data_dir": self.documents_of,
            "num_documents": len(self.sizes),
            "num_bytes": int(self.sizes.sum()),
            "prompts": list(self.prompts),
            "why_not_ranked": self.why_not_ranked or None,
            "outcome": self.outcome(),
            "seed_spread": {"share": self.seed_spread.share, "from": self.spread_in_words()},
            "models": models,
            "pairs": pairs,
        }


def in_order(models: Sequence[Measured]) -> tuple[Measured, ...]:
    """The fewest nats first."""
    return tuple(sorted(models, key=lambda one: float(one.nats.sum())))


def named_apart(models: Sequence[Measured]) -> list[Measured]:
    """The same models, numbered where two have one name."""
    names: list[str] = []
    for model in models:
        names.append(model.name if model.name not in names else f"{model.name} ({len(names) + 1})")
    return [replace(model, name=name) for model, name in zip(models, names, strict=True)]


def _interval_json(interval: Interval) -> dict[str, float | None]:
    ends = (interval.low, interval.high) if interval.is_known else (None, None)
    return {"value": interval.value, "low": ends[0], "high": ends[1]}


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
