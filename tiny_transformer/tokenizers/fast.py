"""The fast encoder: a byte-level BPE handed to tiktoken, cut into words by an expression without look-ahead.

Two things make it fast. tiktoken joins pieces several times faster than the `tokenizers` library. And the expressions
of GPT-2 and Qwen2 look ahead in one place, `\\s+(?!\\S)`: of several blanks before a word, the last belongs to the
word. That one place forces tiktoken onto a backtracking matcher at half the speed. So the blanks are found beforehand,
with numpy, and a separator is put where the look-ahead would have ended its match; what is left of the expression runs
as a finite automaton, in time linear in the text whatever the text is.

Separators are characters U+0000 and U+0001, which tiktoken knows as control tokens; a text that has one of them is
encoded by the `tokenizers` library, and so is every text when this BPE is not one that both treat alike.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from tiny_transformer.tokenizers.documents import DocumentEncoder, EncodedDocuments
from tiny_transformer.tokenizers.patterns import GPT2_PATTERN, LLAMA3_PATTERN, QWEN2_PATTERN, byte_characters

if TYPE_CHECKING:
    import tokenizers

_LOOK_AHEAD = r"\s+(?!\S)|"
_CUT, _END = "\0", "\1"  # ends a piece before its last blank; ends a document
_SOLID, _BLANK, _LINE_BREAK, _END_KIND = range(4)
# Unicode's White_Space, which is what \s means in both libraries.
_WHITE_SPACE = "\t\n\v\f\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(map(chr, range(0x2000, 0x200B)))
_NFC = {"type": "NFC"}
_OTHER_RULES = (
    "dropout",
    "unk_token",
    "continuing_subword_prefix",
    "end_of_word_suffix",
    "byte_fallback",
    "ignore_merges",
)


def fast_encoder(
    content: dict[str, Any], backend: tokenizers.Tokenizer, *, end_id: int, slow: DocumentEncoder
) -> DocumentEncoder | None:
    """An encoder with the same ids as `slow`, several times faster; None when tiktoken or the right kind of BPE lacks.

    Args:
        content: a `tokenizer.json`.
        backend: the same, built.
        end_id: what ends a document.
        slow: encodes the few texts that this one cannot.
    """
    try:
        import tiktoken
    except ImportError:
        return None
    pattern = pattern_of(content)
    ranks = ranks_of(content, backend)
    if pattern is None or ranks is None or content.get("normalizer") not in (None, _NFC):
        return None
    cut_id = max(max(ranks.values()), end_id) + 1
    core = tiktoken.Encoding(
        "fast",
        pat_str=pattern.replace(_LOOK_AHEAD, ""),
        mergeable_ranks=ranks,
        special_tokens={_CUT: cut_id, _END: end_id},
    )
    added = [t["content"] for t in content.get("added_tokens") or [] if not t["special"]]  # found before any word
    kinds = _kinds(line_breaks_are_blanks=pattern == GPT2_PATTERN)
    changes = None if content.get("normalizer") is None else _changed_by_nfc()

    def encode(texts: Sequence[str]) -> EncodedDocuments:
        joined = _END.join([*texts, ""])
        if _CUT in joined or joined.count(_END) != len(texts) or any(word in joined for word in added):
            return slow(texts)
        codes = _codes(joined)
        if changes is not None and _look_up(changes, codes).any():
            joined = backend.normalizer.normalize_str(joined)
            if any(word in joined for word in added):
                return slow(texts)
            codes = _codes(joined)
        cut = _cut_at_blanks(joined, _look_up(kinds, codes))
        ids = core.encode_to_numpy(cut, allowed_special={_CUT, _END}, disallowed_special=())
        ids = ids[ids != cut_id]
        ends = np.flatnonzero(ids == end_id)
        return EncodedDocuments(ids, np.diff(ends, prepend=-1))

    return encode


def _codes(text: str) -> np.ndarray:
    if text.isascii():
        return np.frombuffer(text.encode("ascii"), dtype=np.uint8)
    return np.frombuffer(text.encode("utf-32-le"), dtype="<u4")


def _look_up(table: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """The entry of each character; the last one stands for all above it."""
    return table[codes] if codes.dtype == np.uint8 else table[np.minimum(codes, table.size - 1)]


def _cut_at_blanks(text: str, kinds: np.ndarray) -> str:
    """`text` with a separator before the last of several blanks that something other than the end follows.

    `kinds` has the kind of each character.
    """
    blank = kinds == _BLANK
    cuts = np.flatnonzero(blank[:-2] & blank[1:-1] & (kinds[2:] == _SOLID)) + 1
    if not cuts.size:
        return text
    return _CUT.join([text[start:stop] for start, stop in pairwise([0, *cuts.tolist(), len(text)])])


def _kinds(*, line_breaks_are_blanks: bool) -> np.ndarray:
    """The kind of each character by its code, up to the first above the last blank."""
    kinds = np.full(ord(max(_WHITE_SPACE)) + 2, _SOLID, dtype=np.uint8)
    kinds[[ord(c) for c in _WHITE_SPACE]] = _BLANK
    if not line_breaks_are_blanks:
        kinds[[ord("\n"), ord("\r")]] = _LINE_BREAK  # Qwen2: a run of blanks ends with its last line break
    kinds[ord(_END)] = _END_KIND
    return kinds


def _changed_by_nfc() -> np.ndarray:
    """Which characters, by their code, NFC may change or join with a neighbour.

    A text of the others is as NFC would have it. Characters that this Python's Unicode tables do not have yet count as
    changed, so that the answer holds for newer tables too.
    """
    codes = range(0x300, 0x20000)
    second_halves = {*range(0x1161, 0x1176), *range(0x11A8, 0x11C3)}  # vowels and final consonants of Hangul
    changed = np.zeros(codes.stop + 1, dtype=bool)
    for code in codes:
        character = chr(code)
        parts = unicodedata.decomposition(character)
        if parts and parts[0] != "<":
            second_halves.update(int(part, 16) for part in parts.split()[1:])
        same = unicodedata.normalize("NFC", character) == character and not unicodedata.combining(character)
        changed[code] = not same or unicodedata.category(character) == "Cn"
    changed[sorted(second_halves)] = True
    changed[-1] = True
    return changed


def pattern_of(content: dict[str, Any]) -> str | None:
    """The expression that cuts a text into words, when it is one we know to take apart."""
    pre = content.get("pre_tokenizer") or {}
    if pre.get("type") == "ByteLevel" and pre.get("use_regex", True) and not pre.get("add_prefix_space", True):
        return GPT2_PATTERN
    steps = pre.get("pretokenizers") or []
    if len(steps) != 2 or pre.get("type") != "Sequence":
        return None
    split, byte_level = steps
    is_split = split.get("type") == "Split" and split.get("behavior") == "Isolated" and not split.get("invert")
    is_bytes = byte_level.get("type") == "ByteLevel" and not byte_level.get("add_prefix_space", True)
    pattern = (split.get("pattern") or {}).get("Regex")
    known = (GPT2_PATTERN, QWEN2_PATTERN, LLAMA3_PATTERN)
    return pattern if is_split and is_bytes and not byte_level.get("use_regex", True) and pattern in known else None


def ranks_of(content: dict[str, Any], backend: tokenizers.Tokenizer) -> dict[bytes, int] | None:
    """The id of each byte string, when joining by lowest id is the same as joining by the list of merges.

    It is when every merge joins tokens known before it and makes a new one, ids rise with the merges, and each token,
    encoded alone, gives itself. (A BPE made by training is so; a list of merges written by hand need not be.)
    """
    from tokenizers import Tokenizer as Backend

    model = content["model"]
    if model.get("type") != "BPE" or any(model.get(option) for option in _OTHER_RULES):
        return None
    if any(not token["content"].strip() for token in content.get("added_tokens") or []):
        return None  # runs of blanks matched as a whole before any word
    vocab, characters = model["vocab"], byte_characters()
    if not all(character in vocab for character in characters):
        return None
    byte_of = {character: byte for byte, character in enumerate(characters)}
    ranks = {bytes([byte]): vocab[character] for character, byte in byte_of.items()}
    known, made, last_id = set(characters), [], -1
    for merge in model["merges"]:
        first, second = merge.split(" ") if isinstance(merge, str) else merge
        token = first + second
        if first not in known or second not in known or vocab[token] <= last_id:
            return None
        known.add(token)
        made.append(token)
        last_id = vocab[token]
        ranks[bytes(byte_of[character] for character in token)] = last_id
    encoded = Backend(backend.model).encode_batch_fast(made, add_special_tokens=False)  # no cutting into words
    return ranks if all(len(e.ids) == 1 for e in encoded) else None
