"""SentencePiece-style vocabularies (Llama 2, TinyLlama, llama2.c) in GGUF's terms: pieces with scores, spaces as `▁`.

llama.cpp joins the two neighbours whose union has the highest score. A `tokenizer.json` says the same with a list of
merges, first ones first; the scores are read off that list where it is such a list, and else the tokenizer is refused.
"""

from __future__ import annotations

from typing import Any

UNKNOWN, BYTE = 2, 6  # token types of the format
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
