"""What a `tokenizer.json` may hold, judged before the `tokenizers` library sees it, and how its own errors are told.

The library trusts its input: some contents make it panic, abort the process, or write text that grows tenfold a step.
So only the components of published language models are let through, with short texts and a bounded growth.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tiny_transformer.errors import ExitCode, UserError
from tiny_transformer.tokenizers.patterns import KNOWN_PATTERNS

MAX_STEPS = 32  # of one part; the longest published has about ten
MAX_LIST = 256  # templates and lists of special tokens
MAX_TEXT_BYTES = 256  # of anything a component writes or looks for
MAX_AFFIX_BYTES = 16  # "##", "</w>"
MAX_TOKEN_BYTES = 1024  # of an added token
MAX_WORD_CHARACTERS = 1000  # WordPiece compares every piece of a word; published files say 100
MAX_GROWTH = 40  # NFKC (11), blanks as "▁" (3) and one before a piece make 36
MODELS = ("BPE", "Unigram", "WordPiece", "WordLevel")
# Part -> where a Sequence of it keeps its steps, and the types known. The most that a type can make of one byte of
# text is a number where the type itself decides it (the worst character of Unicode's forms; a byte that ByteLevel
# writes in two), and None where the file does: Replace, Prepend, Metaspace.
_PARTS: dict[str, tuple[str, dict[str, int | None]]] = {
    "normalizer": (
        "normalizers",
        {
            **dict.fromkeys(("NFKC", "NFKD"), 11),
            **dict.fromkeys(("NFC", "NFD", "BertNormalizer"), 3),
            **dict.fromkeys(("Lowercase", "ByteLevel"), 2),
            **dict.fromkeys(("Strip", "StripAccents", "Nmt"), 1),
            **dict.fromkeys(("Replace", "Prepend")),
        },
    ),
    "pre_tokenizer": (
        "pretokenizers",
        {
            "ByteLevel": 2,
            **dict.fromkeys(("Split", "Digits", "Punctuation", "Whitespace", "WhitespaceSplit"), 1),
            **dict.fromkeys(("BertPreTokenizer", "UnicodeScripts", "CharDelimiterSplit"), 1),
            "Metaspace": None,
        },
    ),
    "post_processor": (
        "processors",
        dict.fromkeys(("TemplateProcessing", "ByteLevel", "BertProcessing", "RobertaProcessing"), 1),
    ),
    "decoder": (
        "decoders",
        {
            **dict.fromkeys(("ByteLevel", "ByteFallback", "Fuse", "Strip", "Metaspace", "WordPiece", "BPEDecoder"), 1),
            "Replace": None,
        },
    ),
}


def check_content(content: Any, where: Path) -> None:
    """Refuse what would make a model huge, an encoder hang, or the library end the process.

    Args:
        content: a parsed `tokenizer.json`.
        where: the file, for the message.

    Raises:
        UserError: says which component, text or number is not read here.
    """
    try:
        ids = _check_ids(content)
        _check_model(content["model"])
        growth = 1.0
        for part in _PARTS:
            steps = _steps(part, content.get(part))
            for step in steps:
                _check_step(part, step, ids)
            written = _growth(part, steps, 1.0 if part == "decoder" else growth)  # text is either encoded or decoded
            growth = growth if part == "decoder" else written
            if written > MAX_GROWTH:
                raise ValueError(f"its {part} can make text {written:.3g} times as long; at most {MAX_GROWTH}")
    except ValueError as error:
        raise bad_tokenizer(where, str(error)) from None


def bad_tokenizer(file: Path, problem: str) -> UserError:
    """The error for a tokenizer's file."""
    return UserError(
        f"not a usable tokenizer: {problem}",
        where=str(file),
        remedy="fetch the file again, or choose another tokenizer (byte, char, bpe)",
        exit_code=ExitCode.BAD_DATA,
    )


@contextmanager
def library_errors(what: str, where: str | None = None) -> Generator[None]:
    """Turn what the library raises by itself into a UserError: plain `Exception`s, and the panics of its Rust code.

    A panic is pyo3's `PanicException`, which is no `Exception` and has no module to import it from.
    """
    try:
        yield
    except BaseException as error:
        if type(error) is not Exception and type(error).__name__ != "PanicException":
            raise
        raise UserError(
            f"{what}: {str(error)[:200]}",
            where=where,
            remedy="fetch the tokenizer again, or choose another one (byte, char, bpe)",
            exit_code=ExitCode.BAD_DATA,
        ) from None


def _check_ids(content: Any) -> set[int]:
    """The ids, once they are whole numbers without large gaps."""
    model = content.get("model") if isinstance(content, dict) else None
    vocab = model.get("vocab") if isinstance(model, dict) else None
    if not isinstance(vocab, dict | list) or not vocab:
        raise ValueError("it has no model with a vocabulary")
    added = content.get("added_tokens") or []
    if not isinstance(added, list) or not all(isinstance(t, dict) and type(t.get("id")) is int for t in added):
        raise ValueError("its added_tokens are not a list of tokens with an id")
    for token in added:
        _check_text(token.get("content"), MAX_TOKEN_BYTES, "an added token")
    numbers = list(vocab.values()) if isinstance(vocab, dict) else list(range(len(vocab)))
    if not all(type(i) is int for i in numbers) or len(ids := set(numbers)) != len(vocab):
        raise ValueError("two tokens share an id, or an id is not a whole number")
    ids.update(token["id"] for token in added)
    if min(ids) < 0 or max(ids) >= 2 * len(ids):
        raise ValueError(f"ids run from {min(ids)} to {max(ids)} for {len(ids)} tokens")
    return ids


def _check_model(model: dict[str, Any]) -> None:
    kind = model.get("type", "BPE")  # older files do not say
    if not isinstance(kind, str) or kind not in MODELS:
        raise ValueError(f"its model is of type {_short(kind)}; read are {', '.join(MODELS)}")
    if model.get("dropout") not in (None, 0):
        raise ValueError(f"dropout {_short(model['dropout'])}: the same text would get other ids each time")
    for name in ("continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(name) is not None:
            _check_text(model[name], MAX_AFFIX_BYTES, f"its {name}", may_be_empty=True)
    prefix, merges = model.get("continuing_subword_prefix"), model.get("merges")
    if prefix and isinstance(merges, list):  # the library cuts it off unseen
        pairs = [merge.split(" ") if isinstance(merge, str) else merge for merge in merges]
        if not all(isinstance(pair, list) and pair and str(pair[-1]).startswith(prefix) for pair in pairs):
            raise ValueError(f"a merge whose second part does not begin with {_short(prefix)}")
    length = model.get("max_input_chars_per_word", 100)
    if type(length) is not int or not 0 < length <= MAX_WORD_CHARACTERS:
        raise ValueError(f"max_input_chars_per_word {_short(length)} is not from 1 to {MAX_WORD_CHARACTERS}")


def _steps(part: str, value: Any) -> list[dict[str, Any]]:
    """The steps of a part in order, Sequences opened; each is of a type known here."""
    inner, known = _PARTS[part]
    waiting, steps = [] if value is None else [value], []
    while waiting:
        step = waiting.pop(0)
        kind = step.get("type") if isinstance(step, dict) else None
        if kind == "Sequence" and isinstance(step.get(inner), list):
            waiting = step[inner] + waiting
        elif isinstance(kind, str) and kind in known:
            steps.append(step)
        else:
            raise ValueError(f"its {part} has {_short(kind)}; read are Sequence, {', '.join(known)}")
        if len(steps) + len(waiting) > MAX_STEPS:
            raise ValueError(f"its {part} has more than {MAX_STEPS} steps")
    return steps


def _check_step(part: str, step: dict[str, Any], ids: set[int]) -> None:
    """The texts, lists and expressions of one step."""
    pattern = step.get("pattern")
    for key, value in _entries(step):
        if key == "Regex":
            if value not in KNOWN_PATTERNS:
                raise ValueError(f"it cuts text with an expression we do not know to be safe: {str(value)[:60]!r}")
        elif isinstance(value, str):
            _check_text(value, MAX_TEXT_BYTES, f"a text in its {part} ({step['type']})", may_be_empty=True)
        elif isinstance(value, list) and len(value) > MAX_LIST:
            raise ValueError(f"a list in its {part} ({step['type']}) has {len(value):,} entries; at most {MAX_LIST}")
        elif key == "ids" and not (isinstance(value, list) and all(type(i) is int and i in ids for i in value)):
            raise ValueError(f"its {part} names ids that are not in the vocabulary")
    is_pattern = isinstance(pattern, dict) and len(pattern) == 1 and pattern.keys() <= {"String", "Regex"}
    if step["type"] in ("Replace", "Split") and not (is_pattern and all(pattern.values())):
        raise ValueError(f"its {part} has a {step['type']} that looks for nothing")


def _entries(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every key (None in lists) and value anywhere inside."""
    waiting = [value]
    while waiting:
        group = waiting.pop()
        for key, inner in group.items() if isinstance(group, dict) else ((None, entry) for entry in group):
            yield key, inner
            if isinstance(inner, dict | list):
                waiting.append(inner)


def _growth(part: str, steps: list[dict[str, Any]], growth: float) -> float:
    """The most bytes that these steps make of one that has become `growth` already.

    What stands before a piece of text stands there once, however long the piece has become.
    """
    for step in steps:
        factor = _PARTS[part][1][step["type"]]
        if factor is not None:
            growth *= 2 * factor if step["type"] == "ByteLevel" and step.get("add_prefix_space", True) else factor
            continue
        key = {"Replace": "content", "Prepend": "prepend", "Metaspace": "replacement"}[step["type"]]
        if not isinstance(step.get(key), str):
            raise ValueError(f"its {part} has a {step['type']} without {key}")
        written = len(step[key].encode("utf-8", "replace"))
        if step["type"] == "Replace":
            growth *= max(1, written / len(str(step["pattern"].get("String", "x")).encode("utf-8", "replace")))
        else:
            growth = growth * (max(1, written) if step["type"] == "Metaspace" else 1) + written
    return growth


def _check_text(value: Any, most: int, what: str, *, may_be_empty: bool = False) -> None:
    if not isinstance(value, str) or not (value or may_be_empty):
        raise ValueError(f"{what} is no text, or an empty one: {_short(value)}")
    if (length := len(value.encode("utf-8", "replace"))) > most:
        raise ValueError(f"{what} has {length:,} bytes; at most {most:,}")


def _short(value: Any) -> str:
    return repr(value)[:60]
