"""A tokenizer as the keys of a GGUF file, in llama.cpp's terms: byte-level BPE with a split expression it knows.

llama.cpp's own converter recognises tokenizers by a hash of some test text and refuses every one that was trained at
home. The loader asks only for a known name of the split expression, and our names are true: the expressions are equal.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tiny_transformer.errors import ExitCode, UserError
from tiny_transformer.tokenizers.patterns import GPT2_PATTERN, LLAMA3_PATTERN, QWEN2_PATTERN
from tiny_transformer.tokenizers.tokenizer import Tokenizer

# The split expression -> llama.cpp's name for it, and whether it takes whole words from the vocabulary without merging.
_PRE_NAMES = {QWEN2_PATTERN: ("qwen2", False), GPT2_PATTERN: ("gpt-2", False), LLAMA3_PATTERN: ("llama-bpe", True)}
_BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False}
# llama.cpp wants at least one merge. In a vocabulary of single bytes neither side of this one ever comes about.
_MERGE_THAT_NEVER_APPLIES = "ĀĀ ĀĀ"
# Token types of the format.
NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5


@dataclass(frozen=True)
class GgufTokenizer:
    """What `tokenizer.ggml.*` says.

    Attributes:
        pre: llama.cpp's name of the split expression.
        tokens: spellings by id; bytes as GPT-2's printable characters, added tokens as they are.
        types: of each token, in the format's numbers.
        merges: "left right", best first.
        end_id: ends a text. It also begins one where no other token does.
        begin_id: what the tokenizer puts before a text, or None.
    """

    pre: str
    tokens: list[str]
    types: list[int]
    merges: list[str]
    end_id: int
    begin_id: int | None


def gguf_tokenizer(tokenizer: Tokenizer, vocab_size: int) -> GgufTokenizer:
    """The tokenizer in GGUF's terms, with unused entries up to the model's `vocab_size`.

    Raises:
        UserError: a kind of tokenizer that the format does not have (the message says why), one that llama.cpp would
            apply differently, or more tokens than the model's embedding has rows.
    """
    content = tokenizer.content
    if tokenizer.vocab_size > vocab_size:
        raise _refused(f"the tokenizer has {tokenizer.vocab_size} ids, but the model's embedding has {vocab_size} rows")
    if reason := _why_not(content):
        raise _refused(f"the {tokenizer.name} tokenizer cannot be put into a GGUF file: {reason}")
    model, added = content["model"], content.get("added_tokens") or []
    tokens = [f"<unused {i}>" for i in range(vocab_size)]  # a space: no byte-level token is spelled like this
    types = [UNUSED] * vocab_size
    for token, i in model["vocab"].items():
        tokens[i], types[i] = token, NORMAL
    for token in added:
        i = tokenizer.token_id(token["content"])
        if i is not None:
            tokens[i], types[i] = token["content"], CONTROL if token["special"] else USER_DEFINED
    if len(set(tokens)) != len(tokens) or "" in tokens:
        raise _refused(
            f"the {tokenizer.name} tokenizer has an empty token or two of one spelling; llama.cpp has no way"
        )
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    return GgufTokenizer(
        pre=_pre_name(content) or "gpt-2",  # nothing to merge: however a text is cut, its bytes are its tokens
        tokens=tokens,
        types=types,
        merges=merges or [_MERGE_THAT_NEVER_APPLIES],
        end_id=tokenizer.end_id,
        begin_id=tokenizer.begin_id,
    )


def _why_not(content: dict[str, Any]) -> str | None:
    """What is in the way, or None."""
    model = content["model"]
    if model.get("type") != "BPE":
        return f"its model is {model.get('type')!r}, and GGUF has byte-level BPE for what is trained here"
    if model.get("byte_fallback"):
        return "it is a SentencePiece vocabulary with merges, and GGUF keeps those by scores, which it does not have"
    if (content.get("decoder") or {}).get("type") != "ByteLevel":
        return "it works on characters, and GGUF's BPE works on bytes; train with --tokenizer bpe or byte"
    altered = [key for key in ("continuing_subword_prefix", "end_of_word_suffix", "unk_token") if model.get(key)]
    if altered:
        return f"it has {', '.join(altered)}, which llama.cpp does not apply"
    # Qwen's own files compose accents first (NFC) and are read by llama.cpp all the same: most text is composed.
    if (content.get("normalizer") or {"type": "NFC"}).get("type") != "NFC":
        return "it rewrites text before cutting it (a normalizer), which llama.cpp does not"
    pre = _pre_name(content)
    if pre is None and model["merges"]:
        return "it cuts text into words in a way llama.cpp has no name for; known are those of Qwen2, GPT-2 and Llama 3"
    whole_words = bool(model.get("ignore_merges"))
    if pre is not None and whole_words != dict(_PRE_NAMES.values())[pre]:
        return f"ignore_merges is {whole_words}, and llama.cpp's {pre!r} does the opposite"
    return None


def _pre_name(content: dict[str, Any]) -> str | None:
    """llama.cpp's name for how the text is cut into words, or None when it has none."""
    pre = content.get("pre_tokenizer") or {}
    if pre.get("type") == "Sequence" and len(pre.get("pretokenizers") or []) == 2:
        split, byte_level = pre["pretokenizers"]
        plain_split = split.get("type") == "Split" and split.get("behavior") == "Isolated" and not split.get("invert")
        if plain_split and byte_level.items() >= {**_BYTE_LEVEL, "use_regex": False}.items():
            return _PRE_NAMES.get(split["pattern"].get("Regex"), (None, False))[0]
    elif pre.items() >= _BYTE_LEVEL.items() and pre.get("use_regex", True):
        return "gpt-2"
    return None


def _refused(what: str) -> UserError:
    remedy = "the checkpoint directory itself opens in transformers, vLLM and mlx-lm with any tokenizer"
    return UserError(what, remedy=remedy, exit_code=ExitCode.BAD_DATA)
