"""SentencePiece-style vocabularies (Llama 2, TinyLlama, llama2.c) in GGUF's terms: pieces with scores, spaces as `▁`.

llama.cpp joins the two neighbours whose union has the highest score. A `tokenizer.json` says the same with a list of
merges, first ones first; the scores are read off that list where it is such a list, and else the tokenizer is refused.
The other way round each way to cut a piece in two is a merge, in the order of the scores.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from tiny_transformer.tokenizers.load import tokenizer_content

# Token types of the format.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
MAX_PIECE_CHARS = 128  # each way to cut a piece in two is looked at; the longest published ones have 48
SPACE = "▁"
_BYTES = frozenset(f"<0x{byte:02X}>" for byte in range(256))


def is_sentencepiece(content: dict[str, Any]) -> bool:
    """Whether a tokenizer's model is of this kind."""
    return content["model"].get("type") == "BPE" and bool(content["model"].get("byte_fallback"))


def why_not_pieces(content: dict[str, Any]) -> str | None:
    """Why llama.cpp would give other ids than this tokenizer, or None."""
    model = content["model"]
    if not model["vocab"].keys() >= _BYTES:
        return "it has no pieces for all bytes"
    if spaces(content) is None:
        return "it treats spaces in a way that llama.cpp's SentencePiece vocabularies do not"
    if model.get("ignore_merges"):
        return "it takes whole words from the vocabulary without merging, which llama.cpp does not"
    made, last = set(), None
    for left, right in _merges(model):
        token = left + right
        if token != last and token in made:
            return f"its merges do not come in the order of the pieces they make ({token!r})"
        made.add(token)
        last = token
    pairs = set(map(tuple, _merges(model)))
    for token in model["vocab"].keys() - _BYTES:
        cuts = ((token[:cut], token[cut:]) for cut in range(1, len(token)))
        if any(cut not in pairs and cut[0] in model["vocab"] and cut[1] in model["vocab"] for cut in cuts):
            return f"the piece {token!r} could be joined from two others, and no merge says so"
    return None


def spaces(content: dict[str, Any]) -> bool | None:
    """Whether a space is put before each text; None: spaces are neither kept nor written as `▁`."""
    normalizer, pre = content.get("normalizer") or {}, content.get("pre_tokenizer")
    steps = normalizer.get("normalizers") or [normalizer] if normalizer else []
    if pre is not None:
        wanted = {"type": "Metaspace", "replacement": SPACE, "split": False}
        if steps or not wanted.items() <= pre.items():
            return None
        return pre.get("prepend_scheme", "always") != "never"
    kinds = [(step.get("type"), step.get("prepend") or step.get("content")) for step in steps]
    written = ("Replace", SPACE)
    if written in kinds and any(step.get("pattern") != {"String": " "} for step in steps if step["type"] == "Replace"):
        return None
    if kinds in ([("Prepend", SPACE), written], [("Prepend", " ")]):  # the latter keeps spaces: llama2.c's
        return True
    return False if kinds == [written] else None


def piece_scores(content: dict[str, Any]) -> dict[str, float]:
    """The score of each piece that merges make: 0 for the first, then -1, and so on."""
    made = dict.fromkeys(left + right for left, right in _merges(content["model"]))
    return {token: -float(rank) for rank, token in enumerate(made)}


def _merges(model: dict[str, Any]) -> list[list[str]]:
    return [merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"]]


def content_of_pieces(
    tokens: Sequence[str], types: Sequence[int], scores: Sequence[float], *, adds_space: bool
) -> dict[str, Any]:
    """`tokenizer.json` content that gives the ids that llama.cpp gives, without `added_tokens` and a template.

    Args:
        tokens, types, scores: by id; spaces are written as `▁`.
        adds_space: whether a space is put before each text.

    Raises:
        ValueError: what has no such form, in words for the user.
    """
    kinds = dict(zip(tokens, types, strict=True))
    if not {token for token, kind in kinds.items() if kind == BYTE} >= _BYTES:
        raise ValueError("it has no pieces for all bytes")
    pieces = {t: score for t, kind, score in zip(tokens, types, scores, strict=True) if kind == NORMAL}
    if any(len(piece) > MAX_PIECE_CHARS for piece in pieces) or not all(map(math.isfinite, pieces.values())):
        raise ValueError(f"a piece has more than {MAX_PIECE_CHARS} characters, or a score that is no number")
    if missing := {character for piece in pieces for character in piece} - pieces.keys():
        raise ValueError(f"the character {min(missing)!r} of a piece is no piece itself")
    unknown = next((token for token, kind in kinds.items() if kind == UNKNOWN), None)
    vocab = {t: i for i, (t, kind) in enumerate(zip(tokens, types, strict=True)) if kind not in (USER_DEFINED, UNUSED)}
    steps: list[dict[str, Any]] = [{"type": "Replace", "pattern": {"String": " "}, "content": SPACE}]
    undone: list[dict[str, Any]] = [{"type": "Replace", "pattern": {"String": SPACE}, "content": " "}]
    undone += [{"type": "ByteFallback"}, {"type": "Fuse"}]
    if adds_space:
        steps.insert(0, {"type": "Prepend", "prepend": SPACE})
        undone.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    content = tokenizer_content(
        model={
            "type": "BPE",
            "unk_token": unknown,
            "fuse_unk": True,
            "byte_fallback": True,
            "vocab": vocab,
            "merges": _merges_by_score(pieces),
        },
        pre_tokenizer=None,
        decoder={"type": "Sequence", "decoders": undone},
        end_id=0,
    )
    return {**content, "normalizer": {"type": "Sequence", "normalizers": steps}, "added_tokens": []}


def _merges_by_score(pieces: Mapping[str, float]) -> list[list[str]]:
    merges: list[list[str]] = []
    last: tuple[float, str] | None = None  # the score and spelling of the piece made before
    for piece in sorted(pieces, key=pieces.__getitem__, reverse=True):
        cuts = [[piece[:cut], piece[cut:]] for cut in range(1, len(piece))]
        cuts = [cut for cut in cuts if cut[0] in pieces and cut[1] in pieces]
        if not cuts:
            continue
        if last is not None and last[0] == pieces[piece]:
            raise ValueError(f"the pieces {last[1]!r} and {piece!r} have one score, so neither is joined first")
        last = pieces[piece], piece
        merges += cuts
    return merges
