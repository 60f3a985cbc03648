"""Which runs can be compared, and which of those came out best.

Nats per token are compared between runs with the same validation text and tokenizer, bits per byte between those with
the same text, and nothing between different texts. What a run was judged by stands in its checkpoints; a run without
one is taken to be judged as a run whose settings of `data` are the same.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from tiny_transformer.reports.formats import loss, shorten
from tiny_transformer.reports.outcome import Outcome, evaluated_part, outcome_of
from tiny_transformer.reports.page import MAX_KEY_CHARS
from tiny_transformer.reports.run_reader import RunFiles, section

MAX_KIND_CHARS = 200  # of what a loss is, in words
_CUT = ("seq_len", "packing")  # of the settings of `data`, those that change neither text nor tokens


@dataclass(frozen=True)
class Entry:
    """One of the runs: `place` decides its colour, `name` is its own on its page, and `told` says what it was judged
    by: its newest run_info.json, or that of a run with the same data. Empty: not known."""

    place: int
    name: str
    run: RunFiles
    outcome: Outcome
    told: dict[str, Any]

    @property
    def source(self) -> str:
        """What the text is called."""
        told = section(self.told, "data").get("source") or section(self.run.config, "data").get("source")
        return shorten(str(told or "a text that is not named"), MAX_KEY_CHARS)

    def text(self, *, by_hash: bool) -> str:
        """The same for runs that are judged by the same validation text: its hash, or, for runs from before there was
        one, what it is called and how many documents it has."""
        data = section(self.told, "data")
        if not self.told:
            return _data_settings(self.run) or self.name
        return str(data.get("val_text")) if by_hash else f"{self.source} {data.get('val_documents')}"

    @property
    def tokenizer(self) -> str:
        """The same for runs whose losses per token mean the same."""
        told = section(self.told, "tokenizer")
        return str(told.get("fingerprint") or told.get("name"))

    @property
    def measure(self) -> tuple[str, float | None, str]:
        """The same for runs whose losses were measured alike: how the text was packed, and how many tokens of it were
        read, of which tokenizer; None and nothing where that is all of it."""
        packing = str(section(self.run.config, "data").get("packing") or "concat")
        read = evaluated_part(self.run.config, self.told)
        return packing, read, "" if read is None else self.tokenizer

    @property
    def judged(self) -> str:
        """The same for runs whose losses are of one kind: a mean over what, and of preferences by which method, which
        weight, and against which base."""
        told = [f"nats per {self.outcome.target}"]
        if self.outcome.target == "pair":
            align = section(self.run.config, "align")
            told += [f"align.{key} {align.get(key)}" for key in ("method", "beta")]
            told += [f"init_from {self.run.config.get('init_from')}"] if align.get("method") == "dpo" else []
        return shorten(", ".join(told), MAX_KIND_CHARS)


def entries_of(runs: list[RunFiles], places: list[int] | None = None) -> list[Entry]:
    """The runs in the order in which they were named, which decides about their colours unless `places` does."""
    saved = {_data_settings(run): run.newest.info for run in reversed(runs) if run.newest and _data_settings(run)}
    return [
        Entry(place, name, run, outcome_of(run), run.newest.info if run.newest else saved.get(_data_settings(run), {}))
        for place, run, name in zip(places or range(len(runs)), runs, unique_names(runs), strict=True)
    ]


def _data_settings(run: RunFiles) -> str:
    """The settings that decide about text and tokens, as a text; empty where they cannot be read."""
    data = section(run.config, "data")
    decisive = {str(key): data[key] for key in data if key not in _CUT}
    return json.dumps(decisive, sort_keys=True, default=str) if decisive else ""


def same_text(entries: list[Entry]) -> list[list[Entry]]:
    """The runs by validation text: only those of one group can be compared."""
    by_hash = all(section(entry.told, "data").get("val_text") for entry in entries if entry.told)
    groups: dict[str, list[Entry]] = {}
    for entry in entries:
        groups.setdefault(entry.text(by_hash=by_hash), []).append(entry)
    return list(groups.values())


def share_a_tokenizer(group: list[Entry]) -> bool:
    """Whether nats per token of these runs can be compared; bits per byte can across tokenizers."""
    return len({entry.tokenizer for entry in group if entry.told}) <= 1


def targets_of(group: list[Entry]) -> str:
    """What the losses of these runs are means over, in the plural: `tokens`, `pairs`; of several kinds `targets`."""
    words = {f"{entry.outcome.target}s" for entry in group}
    return words.pop() if len(words) == 1 else "targets"


def unit_of(group: list[Entry]) -> str:
    """In what the held-out losses of runs on one text are compared."""
    return f"nats per {targets_of(group)[:-1]}" if share_a_tokenizer(group) else "bits per byte"


def verdict(groups: list[list[Entry]]) -> list[str]:
    """Which run came out best, in a sentence for each text; without a common text, that there is no such thing."""
    if len(groups) == 1:
        return [_best(groups[0])]
    told, known = [], [group for group in groups if group[0].told]
    if len(known) > 1:
        told.append(
            "Trained on different texts: no ranking. A text can be easier to predict than another for any model."
        )
    if unknown := [entry.name for group in groups for entry in group if not entry.told]:
        told.append(f"Without a checkpoint, so it is not known which text judged them: {', '.join(unknown)}.")
    return told + [
        f"On {group[0].source}: {_best(group)[0].lower()}{_best(group)[1:]}" for group in groups if len(group) > 1
    ]


def _best(group: list[Entry]) -> str:
    by_token = share_a_tokenizer(group)
    scored = {
        entry.name: (value, entry)
        for entry in group
        if (value := entry.outcome.val_loss if by_token else entry.outcome.val_bits_per_byte) is not None
    }
    if not scored:
        return "None of them was evaluated on held-out text."
    if why := " ".join(unlike([entry for _, entry in scored.values()])):
        return f"No ranking. {why}"
    name, (value, _) = min(scored.items(), key=lambda item: item[1][0])
    missing = len(group) - len(scored)
    rest = f" ({missing} of them {'was' if missing == 1 else 'were'} never evaluated)" if missing else ""
    return f"Best on held-out text: {name}, with {loss(value)} {unit_of(group)}{rest}."


def unlike(entries: list[Entry]) -> list[str]:
    """How runs on one text were measured differently, in a sentence each; empty where they were measured alike."""
    told = []
    if len(kinds := dict.fromkeys(entry.judged for entry in entries)) > 1:
        told.append(f"Their losses are not of one kind: {'; '.join(kinds)}.")
    measures = [entry.measure for entry in entries]
    if len({packing for packing, _, _ in measures}) > 1:
        told.append(
            "Their validation text was packed differently (data.packing), so they were asked for different tokens."
        )
    if len({(read, tokenizer) for _, read, tokenizer in measures}) > 1:
        told.append(
            "They were evaluated on parts of the text of different length (training.eval_tokens): "
            "tiny-transformer evaluate RUN measures each on all of it."
        )
    return told


def unique_names(runs: list[RunFiles]) -> list[str]:
    """The runs' names, shortened, numbered where two are the same."""
    names: list[str] = []
    for run in runs:
        name = shorten(run.name, 40)
        names.append(name if name not in names else f"{name} ({len(names) + 1})")
    return names
