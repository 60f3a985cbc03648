"""What a model writes, read by the grammar of the story corpus: which of it is right, and which is not yet.

A loss says how much a model still has to learn; here is what a reader would notice. The model writes stories, each
from the first word of a fresh one, and `data.stories.proofreader` reads them. The corpus's own stories have 100 % in
every figure.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from tiny_transformer.data import stories
from tiny_transformer.data.stories.proofreader import CHECKS, Proof
from tiny_transformer.evaluation.stories import FRESH_SEED
from tiny_transformer.generation.rows import Generation
from tiny_transformer.generation.sampling import SamplingConfig
from tiny_transformer.generation.text import encode_prompt
from tiny_transformer.models.contract import CausalLM
from tiny_transformer.models.open import own_end_ids
from tiny_transformer.tokenizers import Tokenizer

TEMPERATURE = 0.8
KNOWN = 0.9  # of the places right: then a model is said to know it
FEW = 5  # places that tell nothing
FIGURES = {
    "sentences": "that the language has",
    "thread": "sentences that go on from the one before",
    **CHECKS,
    "endings": "that follow from what was told",
    "whole": "not one mistake from the first word to the end",
}
# What a model knows, or does not know yet, that has a figure.
_KNOWLEDGE = {
    "sentences": "the sentences",
    "thread": "what comes after what",
    "hero": "who is who",
    "others": "who else is there",
    "pronouns": "he from she",
    "things": "what was told before",
    "sums": "how to add and take away",
    "lists": "the order of things",
    "endings": "how a story ends",
}
_BATCH_SIZE = 50


class Text(NamedTuple):
    """A text, and whether it came to its end: the rest of one that was cut off is not known."""

    text: str
    is_ended: bool


@dataclass(frozen=True)
class Figure:
    """How much of one kind is right.

    Attributes:
        name: of `FIGURES`.
        right, places: counted over all texts.
        right_stories, stories: those in which all places are right, of those that have one.
    """

    name: str
    right: int
    places: int
    right_stories: int
    stories: int

    @property
    def share(self) -> float | None:
        """Of the places; None without one."""
        return self.right / self.places if self.places else None


def write_stories(
    model: CausalLM, tokenizer: Tokenizer, count: int, *, end_ids: Collection[int] = (), seed: int = 0
) -> list[Text]:
    """So many texts at temperature 0.8, written side by side; the model must be in evaluation mode.

    Each begins with the first word of a fresh story: a model of packed documents has never seen what stands before it.

    Raises:
        UserError: the model computes no numbers, or its tokenizer cannot write the first word.
    """
    firsts = [stories.story(FRESH_SEED, index).text.split(" ", 1)[0] for index in range(count)]
    ends = {*own_end_ids(tokenizer), *end_ids}
    texts: list[Text] = []
    for start in range(0, count, _BATCH_SIZE):
        rows = [encode_prompt(tokenizer, first) for first in firsts[start : start + _BATCH_SIZE]]
        room = model.config.max_position_embeddings - max(map(len, rows))
        settings = SamplingConfig(temperature=TEMPERATURE, max_new_tokens=max(1, room), seed=seed + start)
        generation = Generation(model, rows, settings, end_ids=ends, num_tokens=tokenizer.vocab_size)
        for new in generation:
            for row, token in zip(rows, new, strict=True):
                row.extend(() if token is None else (token,))
        reasons = generation.finish_reasons
        texts += [Text(tokenizer.decode(row), why == "end") for row, why in zip(rows, reasons, strict=True)]
    return texts


def read_stories(texts: Sequence[Text]) -> list[Figure]:
    """The figures of some texts, in the order of `FIGURES`."""
    counts: dict[str, list[tuple[int, int]]] = {name: [] for name in FIGURES}
    for text in texts:
        for name, right in _places(text, stories.proofread(text.text)).items():
            if right:
                counts[name].append((sum(right), len(right)))
    return [
        Figure(
            name,
            right=sum(right for right, _ in each),
            places=sum(places for _, places in each),
            right_stories=sum(right == places for right, places in each),
            stories=len(each),
        )
        for name, each in counts.items()
    ]


def _places(text: Text, proof: Proof) -> dict[str, list[bool]]:
    """Of each figure, whether each of its places in one text is right. A sentence that was cut off is no place."""
    sentences = proof.sentences if text.is_ended else proof.sentences[:-1]
    told = [sentence.is_told for sentence in sentences]
    goes_on = [sentence.goes_on for sentence in sentences]
    places = {kind: [check.is_right for check in proof.checks if check.kind == kind] for kind in CHECKS}
    places["sentences"] = told
    places["thread"] = [goes_on[i] for i in range(1, len(told)) if told[i] and told[i - 1]]
    places["endings"] = [proof.has_ending] if text.is_ended else []
    places["whole"] = [stories.score(text.text).failure_offset is None] if text.is_ended else []
    return places


def in_words(figures: Sequence[Figure]) -> str:
    """What a model knows, and what it does not know yet: "It knows the sentences, not yet who is who."."""
    shares = {f.name: f.share for f in figures if f.share is not None and f.places >= FEW and f.name in _KNOWLEDGE}
    known = [_KNOWLEDGE[name] for name, share in shares.items() if share >= KNOWN]
    lacking = [_KNOWLEDGE[name] for name, share in shares.items() if share < KNOWN]
    if not shares:
        return "It writes too little to tell what it knows."
    if not known:
        return f"It does not know yet: {_listed(lacking)}."
    return f"It knows {_listed(known)}{f'; not yet {_listed(lacking)}' if lacking else ''}."


def _listed(words: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(words[:-1]), words[-1])))
