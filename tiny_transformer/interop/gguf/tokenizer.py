"""A tokenizer as the keys of a GGUF file, in llama.cpp's terms, and back: SentencePiece-style pieces
(`gguf/pieces.py`), or byte-level BPE with a known split expression.

llama.cpp's own converter recognises tokenizers by a hash of some test text and refuses every one that was trained at
home. The loader asks only for a known name of the split expression, and our names are true: the expressions are equal.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tiny_transformer.errors import ExitCode, UserError
from tiny_transformer.interop.gguf.pieces import (
    BYTE,
    CONTROL,
    NORMAL,
    SPACE,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    content_of_pieces,
    is_sentencepiece,
    piece_scores,
    spaces,
    why_not_pieces,
)
from tiny_transformer.storage.reading import at_home
from tiny_transformer.tokenizers.load import byte_level_content, has_tokenizer, load_tokenizer
from tiny_transformer.tokenizers.make import char_tokenizer
from tiny_transformer.tokenizers.patterns import GPT2_PATTERN, LLAMA3_PATTERN, QWEN2_PATTERN
from tiny_transformer.tokenizers.published import PUBLISHED
from tiny_transformer.tokenizers.tokenizer import Tokenizer
from tiny_transformer.tokenizers.validate import check_content

# llama.cpp's name for how a text is cut -> the expression, and whether whole words of the vocabulary are taken without
# merging. `smollm` cuts digits one by one first.
_PRE_NAMES = {
    "qwen2": (QWEN2_PATTERN, False),
    "gpt-2": (GPT2_PATTERN, False),
    "smollm": (GPT2_PATTERN, False),
    "llama-bpe": (LLAMA3_PATTERN, True),
    "dbrx": (LLAMA3_PATTERN, False),
}
_DIGITS_FIRST = {
    "type": "Sequence",
    "pretokenizers": [
        {"type": "Digits", "individual_digits": True},
        {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
    ],
}
_BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False}
# llama.cpp wants at least one merge. In a vocabulary of single bytes neither side of this one ever comes about.
_MERGE_THAT_NEVER_APPLIES = "ĀĀ ĀĀ"
CHAT_TEMPLATE = "tokenizer.chat_template"
TOKENIZER_LISTS = frozenset(f"tokenizer.ggml.{name}" for name in ("tokens", "token_type", "merges", "scores"))
NO_BEGIN_TOKEN = "tiny_transformer.config_without_bos_token_id"  # a key of our own, which other readers pass over


@dataclass(frozen=True)
class GgufTokenizer:
    """What `tokenizer.ggml.*` says.

    Attributes:
        model: `gpt2`, a byte-level BPE, or `llama`, SentencePiece-style pieces.
        pre: llama.cpp's name of the split expression.
        tokens: spellings by id; bytes as GPT-2's printable characters, added tokens as they are.
        types: of each token, in the format's numbers.
        merges: "left right", best first; none of a `llama`.
        scores: of each token of a `llama`.
        adds_space: whether a `llama` puts a space before each text.
        unknown_id: of what stands for a character that has no token, or None.
        end_id: ends a text. It also begins one where no other token does.
        begin_id: what the tokenizer puts before a text, or None.
    """

    model: str
    pre: str
    tokens: list[str]
    types: list[int]
    merges: list[str]
    scores: list[float]
    adds_space: bool
    unknown_id: int | None
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
    has_pieces = is_sentencepiece(content)
    scores = piece_scores(content) if has_pieces else {}
    lowest = -float(len(scores))
    by_id = [lowest] * vocab_size
    for token, i in model["vocab"].items():
        tokens[i], types[i], by_id[i] = token, NORMAL, scores.get(token, lowest)
        if has_pieces:
            tokens[i] = token.replace(" ", SPACE)  # llama2.c's pieces keep them
            types[i] = BYTE if tokenizer.is_byte_piece(i) else UNKNOWN if token == model.get("unk_token") else NORMAL
    for token in added:
        i = tokenizer.token_id(token["content"])
        if i is not None:
            tokens[i] = token["content"]
            if types[i] != UNKNOWN:
                types[i] = CONTROL if token["special"] else USER_DEFINED
    if len(set(tokens)) != len(tokens) or "" in tokens:
        raise _refused(
            f"the {tokenizer.name} tokenizer has an empty token or two of one spelling; llama.cpp has no way"
        )
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    return GgufTokenizer(
        model="llama" if has_pieces else "gpt2",
        # Without merges it does not matter how a text is cut: its bytes are its tokens.
        pre="default" if has_pieces else _pre_name(content) or "gpt-2",
        tokens=tokens,
        types=types,
        merges=[] if has_pieces else merges or [_MERGE_THAT_NEVER_APPLIES],
        scores=by_id if has_pieces else [],
        adds_space=bool(spaces(content)),
        unknown_id=model["vocab"].get(model.get("unk_token")),
        end_id=tokenizer.end_id,
        begin_id=tokenizer.begin_id,
    )


def name_refusal(name: str, data_dir: Path) -> str | None:
    """Why the tokenizer of a config cannot be put into a GGUF file, or None: told before there is a checkpoint.

    Args:
        name: as `make_tokenizer` takes it.
        data_dir: where prepared data are, or will be; a tokenizer that lies there is the one that counts.

    Raises:
        UserError: a damaged tokenizer file.
    """
    _, _, directory = name.partition(":")
    path = data_dir if has_tokenizer(data_dir) else at_home(directory or name)
    if path.exists():
        reason = _why_not(load_tokenizer(path).content)
    elif name in {"bpe", "auto", "byte", *PUBLISHED}:
        return None
    elif name == "char":
        reason = _why_not(char_tokenizer("a").content)
    else:
        return f"not known yet: the tokenizer {name} is not on this machine; prepare the data, then profile again"
    return f"its GGUF file cannot hold the tokenizer {name}: {reason}" if reason else None


def tokenizer_from_gguf(keys: dict[str, Any], where: Path) -> Tokenizer:
    """The tokenizer that a GGUF file's keys describe: what `gguf_tokenizer` was given, where it wrote them.

    Args:
        keys: of the file.
        where: the file, for messages.

    Raises:
        UserError: neither pieces with scores nor a byte-level BPE with a split expression that is known here, or keys
            that do not fit together.
    """
    kind, pre = (keys.get(f"tokenizer.ggml.{key}") for key in ("model", "pre"))
    tokens, types = _entries(keys, "tokens", str, where), _entries(keys, "token_type", int, where)
    if not len(tokens) == len(types) == len(set(tokens)):
        raise _not_read(where, "its tokens and token_type do not fit together, or two tokens are spelled alike")
    if keys.get("tokenizer.ggml.add_eos_token") is True:
        raise _not_read(where, "its tokenizer ends each text with a token, as those of models that do not write do")
    if kind == "llama" and pre in (None, "default"):
        content = _pieces(keys, tokens, types, where)
    elif kind == "gpt2" and pre in _PRE_NAMES:
        content = _byte_level(keys, tokens, types, where)
    else:
        what = f"its tokenizer is {str(kind)[:40]!r} with the split expression {str(pre)[:40]!r}"
        known = f"'llama' (pieces with scores), and 'gpt2' (byte-level BPE) with one of {', '.join(_PRE_NAMES)}"
        raise _not_read(where, f"{what}; read are {known}")
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    content["added_tokens"] = [
        {"id": i, "content": token, **flags, "special": kind != USER_DEFINED}
        for i, (token, kind) in enumerate(zip(tokens, types, strict=True))
        if kind in (UNKNOWN, CONTROL, USER_DEFINED)
    ]
    begin, end = (_token(tokens, keys.get(f"tokenizer.ggml.{name}_token_id")) for name in ("bos", "eos"))
    if keys.get("tokenizer.ggml.add_bos_token", kind == "llama" or pre == "llama-bpe"):
        if begin is None:
            raise _not_read(where, "a token is to begin each text, but its bos_token_id names none")
        content["post_processor"] = _begins_with(begin, tokens.index(begin))
    check_content(content, where)
    return Tokenizer(content, name=where.name, config={} if end is None else {"eos_token": end})


def _byte_level(keys: dict[str, Any], tokens: list[str], types: list[int], where: Path) -> dict[str, Any]:
    """The content of a byte-level BPE."""
    if set(types) - {NORMAL, CONTROL, USER_DEFINED, UNUSED}:
        raise _not_read(where, "its tokens and token_type do not fit together: bytes are ordinary tokens there")
    merges = _entries(keys, "merges", str, where)
    pairs = [] if merges == [_MERGE_THAT_NEVER_APPLIES] else [merge.split(" ") for merge in merges]
    if any(len(pair) != 2 for pair in pairs):
        raise _not_read(where, "one of its merges is not two tokens with one space between")
    pre = keys["tokenizer.ggml.pre"]
    pattern, whole_words = _PRE_NAMES[pre]
    vocab = {token: i for i, (token, kind) in enumerate(zip(tokens, types, strict=True)) if kind == NORMAL}
    content = byte_level_content(vocab, pairs, pattern=pattern if pairs else None)
    if pre == "smollm" and pairs:
        content["pre_tokenizer"] = _DIGITS_FIRST
    content["model"]["ignore_merges"] = whole_words and bool(pairs)
    return content


def _pieces(keys: dict[str, Any], tokens: list[str], types: list[int], where: Path) -> dict[str, Any]:
    """The content of SentencePiece-style pieces."""
    scores = _entries(keys, "scores", float, where)
    if len(scores) != len(tokens) or not set(types) <= {NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE}:
        raise _not_read(where, "its tokens, token_type and scores do not fit together")
    rewrites = ("precompiled_charsmap", "remove_extra_whitespaces")
    if altered := [name for name in rewrites if keys.get(f"tokenizer.ggml.{name}")]:
        raise _not_read(where, f"its tokenizer rewrites texts ({altered[0]}), which is not done here")
    adds_space = keys.get("tokenizer.ggml.add_space_prefix", True)
    try:
        return content_of_pieces(tokens, types, scores, adds_space=adds_space is not False)
    except ValueError as error:
        raise _not_read(where, f"its tokenizer has no form here: {error}") from None


def _entries(keys: dict[str, Any], name: str, kind: type, where: Path) -> list[Any]:
    value = keys.get(f"tokenizer.ggml.{name}")
    if not isinstance(value, list) or not all(type(entry) is kind for entry in value):
        raise _not_read(where, f"tokenizer.ggml.{name} is missing or of another kind")
    return value


def _token(tokens: list[str], i: Any) -> str | None:
    return tokens[i] if type(i) is int and 0 <= i < len(tokens) else None


def _begins_with(token: str, i: int) -> dict[str, Any]:
    """tokenizer.json's words for a token before each text."""
    special, text = {"SpecialToken": {"id": token, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}
    return {
        "type": "TemplateProcessing",
        "single": [special, text],
        "pair": [special, text, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {token: {"id": token, "ids": [i], "tokens": [token]}},
    }


def _not_read(where: Path, what: str) -> UserError:
    remedy = "import the Hugging Face directory the file was made from"
    return UserError(what, where=str(where), remedy=remedy, exit_code=ExitCode.BAD_DATA)


def _why_not(content: dict[str, Any]) -> str | None:
    """What is in the way, or None."""
    model = content["model"]
    if model.get("type") != "BPE":
        return f"its model is {model.get('type')!r}, and GGUF has byte-level BPE for what is trained here"
    if is_sentencepiece(content):
        return why_not_pieces(content)
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
        return (
            "it cuts text into words in a way llama.cpp has no name for; known are those of Qwen2, GPT-2, SmolLM2, "
            "Llama 3 and OLMo 2"
        )
    whole_words = bool(model.get("ignore_merges"))
    if pre is not None and whole_words != _PRE_NAMES[pre][1]:
        return f"ignore_merges is {whole_words}, and llama.cpp's {pre!r} does the opposite"
    return None


def _pre_name(content: dict[str, Any]) -> str | None:
    """llama.cpp's name for how the text is cut into words, or None when it has none."""
    pre = content.get("pre_tokenizer") or {}
    if pre.get("type") == "Sequence" and len(pre.get("pretokenizers") or []) == 2:
        split, byte_level = pre["pretokenizers"]
        plain_split = split.get("type") == "Split" and split.get("behavior") == "Isolated" and not split.get("invert")
        if plain_split and byte_level.items() >= {**_BYTE_LEVEL, "use_regex": False}.items():
            pattern, whole_words = split["pattern"].get("Regex"), bool(content["model"].get("ignore_merges"))
            names = [name for name, (known, _) in _PRE_NAMES.items() if known == pattern and name != "smollm"]
            return next((name for name in names if _PRE_NAMES[name][1] == whole_words), names[0] if names else None)
        digits = split.get("type") == "Digits" and split.get("individual_digits")
        if digits and byte_level.items() >= _BYTE_LEVEL.items() and byte_level.get("use_regex", True):
            return "smollm"
    elif pre.items() >= _BYTE_LEVEL.items() and pre.get("use_regex", True):
        return "gpt-2"
    return None


def _refused(what: str) -> UserError:
    remedy = "the checkpoint directory itself opens in transformers, vLLM and mlx-lm with any tokenizer"
    return UserError(what, remedy=remedy, exit_code=ExitCode.BAD_DATA)
