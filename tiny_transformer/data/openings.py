"""How documents of the validation split begin: prompts that fit the text, whatever its language."""

from __future__ import annotations

import numpy as np

from tiny_transformer.data.token_file import Dataset

READ_TOKENS = 96  # of a document
MOST_WORDS, MOST_CHARS = 5, 40
CHARS_WITHOUT_BLANKS = 10  # of a line in a script that puts no blanks between words


def openings(dataset: Dataset, count: int = 3) -> tuple[str, ...]:
    """The first words of `count` validation documents, spread over the split and all different; fewer where there are
    not so many."""
    starts = dataset.val.documents()
    stops = np.append(starts[1:], len(dataset.val))
    spread = [(2 * i + 1) * len(starts) // (2 * count) for i in range(count)]
    found: dict[str, None] = {}
    for place in [*spread, *range(min(len(starts), 20 * count))]:
        ids = dataset.val.read(int(starts[place]), min(int(starts[place]) + READ_TOKENS, int(stops[place])))
        if opening := opening_of(dataset.tokenizer.decode(ids.tolist())):
            found[opening] = None
        if len(found) == count:
            break
    return tuple(found)


def opening_of(text: str) -> str:
    """The first words of a text; "" where no line of it holds a letter or digit."""
    lines = (line.strip() for line in text.rstrip("\N{REPLACEMENT CHARACTER}").splitlines())
    line = next((line for line in lines if any(character.isalnum() for character in line)), "")
    words = line.split(" ")
    if len(words[0]) > MOST_CHARS // 2:
        return line[:CHARS_WITHOUT_BLANKS]
    kept = words[:1]
    for word in words[1:MOST_WORDS]:
        if len(" ".join([*kept, word])) > MOST_CHARS:
            break
        kept.append(word)
    return " ".join(kept).rstrip()
