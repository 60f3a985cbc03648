"""Tokenizers in the forms in which the small checkpoints that people really use are published, trained here on a text.

Vocabularies are small; everything else is as in those repositories: components and their options, control tokens and
their flags, templates, and `tokenizer_config.json` with the class it names.
"""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

from tiny_transformer.tokenizers.patterns import LLAMA3_PATTERN, QWEN2_PATTERN, byte_characters

TEXT = (
    "Once upon a time there was a little cat who sat on 12 mats. It's 'fine', she'LL say! The café — 你好 — had "
    "1,234 cups of tea; naïve dogs weren't there.\n\n  Two  spaces\tand a tab.\n"
)
WORDS = (
    "Once upon a time there was a little cat who sat on the mat and she said that it is fine to have tea with dogs "
    "in two small cups because they were not there but all of us can go home now"
)
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
FLAGS = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)


def merges_of(texts: list[str], count: int) -> list[list[str]]:
    """The `count` merges that byte-pair encoding learns from these words, one at a time, ties by spelling."""
    words: dict[tuple[str, ...], int] = {}
    for word in texts:
        words[tuple(word)] = words.get(tuple(word), 0) + 1
    merges: list[list[str]] = []
    while len(merges) < count:
        pairs: dict[tuple[str, str], int] = {}
        for word, times in words.items():
            for pair in pairwise(word):
                pairs[pair] = pairs.get(pair, 0) + times
        if not pairs:
            break
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(list(best))
        joined = {}
        for word, times in words.items():
            out: list[str] = []
            for piece in word:
                out.append(piece)
                if len(out) > 1 and (out[-2], out[-1]) == best:
                    out[-2:] = ["".join(best)]
            joined[tuple(out)] = joined.get(tuple(out), 0) + times
        words = joined
    return merges


def sentencepiece_content(count: int = 120) -> dict[str, Any]:
    """Llama 2's and TinyLlama's `tokenizer.json`: pieces by falling score, every way to make one a merge."""
    words = [f"▁{word}" for word in (WORDS + " " + TEXT).split()]
    pieces = ["".join(pair) for pair in merges_of(words, count)]
    pieces = list(dict.fromkeys(pieces))
    characters = sorted({character for word in words for character in word} | {"▁"})
    known = {*pieces, *characters}
    vocab = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *pieces, *characters]
    merges = [
        [piece[:cut], piece[cut:]]
        for piece in pieces
        for cut in range(1, len(piece))
        if piece[:cut] in known and piece[cut:] in known
    ]
    begin = {"SpecialToken": {"id": "<s>", "type_id": 0}}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": i, "content": token, **FLAGS, "special": True} for i, token in enumerate(("<unk>", "<s>", "</s>"))
        ],
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "Prepend", "prepend": "▁"},
                {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
            ],
        },
        "pre_tokenizer": None,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [begin, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [
                begin,
                {"Sequence": {"id": "A", "type_id": 0}},
                {"SpecialToken": {"id": "<s>", "type_id": 1}},
                {"Sequence": {"id": "B", "type_id": 1}},
            ],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
        },
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            ],
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": "<unk>",
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": {piece: i for i, piece in enumerate(vocab)},
            "merges": merges,
        },
    }


def byte_level_content(
    pre_tokenizer: dict[str, Any],
    tokens: list[tuple[str, bool]],
    *,
    first: bool = False,
    normalizer: dict[str, Any] | None = None,
    post_processor: dict[str, Any] | None = None,
    ignore_merges: bool = False,
) -> dict[str, Any]:
    """A byte-level BPE: `tokens` are (spelling, special), with the first ids or the last ones."""
    from tokenizers import Tokenizer, models, trainers

    empty = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": normalizer,
        "pre_tokenizer": pre_tokenizer,
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {"type": "BPE", "vocab": {}, "merges": []},
    }
    backend = Tokenizer.from_str(json.dumps(empty))
    backend.model = models.BPE()
    trainer = trainers.BpeTrainer(vocab_size=330, initial_alphabet=byte_characters(), show_progress=False)
    backend.train_from_iterator([TEXT, WORDS] * 20, trainer)
    content = json.loads(backend.to_str())
    model = content["model"]
    size, shift = len(model["vocab"]), len(tokens) if first else 0
    model["vocab"] = {token: i + shift for token, i in model["vocab"].items()}
    if first:  # SmolLM2's control tokens stand in the vocabulary too
        model["vocab"] = {**{token: i for i, (token, _) in enumerate(tokens)}, **model["vocab"]}
    start = 0 if first else size
    content["added_tokens"] = [
        {"id": start + i, "content": token, **FLAGS, "special": special} for i, (token, special) in enumerate(tokens)
    ]
    model["ignore_merges"] = ignore_merges
    content["post_processor"] = post_processor
    return content


def split(pattern: str) -> dict[str, Any]:
    """The pre-tokenizer of Qwen2, Llama 3 and OLMo 2."""
    return {
        "type": "Sequence",
        "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False},
            {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
        ],
    }


def tinyllama() -> tuple[dict[str, Any], dict[str, Any]]:
    config = {
        "add_bos_token": True,
        "add_eos_token": False,
        "bos_token": "<s>",
        "chat_template": "{% for message in messages %}<|{{ message['role'] }}|>\n{{ message['content'] }}</s>\n"
        "{% endfor %}",
        "clean_up_tokenization_spaces": False,
        "eos_token": "</s>",
        "legacy": False,
        "model_max_length": 2048,
        "pad_token": "</s>",
        "padding_side": "right",
        "sp_model_kwargs": {},
        "tokenizer_class": "LlamaTokenizer",
        "unk_token": "<unk>",
        "use_default_system_prompt": False,
    }
    return sentencepiece_content(), config


def qwen(*, version: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Qwen2.5 and Qwen3, instruction-tuned: some of the added words are no control tokens."""
    tokens = [("<|endoftext|>", True), ("<|im_start|>", True), ("<|im_end|>", True), ("<tool_call>", False)]
    tokens += [("</tool_call>", False)]
    if version == 3:
        tokens += [("<think>", False), ("</think>", False)]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    content = byte_level_content(split(QWEN2_PATTERN), tokens, normalizer={"type": "NFC"}, post_processor=byte_level)
    config = {
        "add_bos_token": False,
        "add_prefix_space": False,
        "added_tokens_decoder": {
            str(token["id"]): {key: token[key] for key in (*FLAGS, "content", "special")}
            for token in content["added_tokens"]
        },
        "additional_special_tokens": ["<|im_start|>", "<|im_end|>"],
        "bos_token": None,
        "chat_template": CHATML,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>",
        "errors": "replace",
        "model_max_length": 131072,
        "pad_token": "<|endoftext|>",
        "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
    }
    return content, config


def llama3() -> tuple[dict[str, Any], dict[str, Any]]:
    names = ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
    content = byte_level_content(split(LLAMA3_PATTERN), [(name, True) for name in names], ignore_merges=True)
    begin = content["added_tokens"][0]["id"]
    special, text = {"SpecialToken": {"id": names[0], "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}
    content["post_processor"] = {
        "type": "Sequence",
        "processors": [
            {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True},
            {
                "type": "TemplateProcessing",
                "single": [special, text],
                "pair": [
                    special,
                    text,
                    {"SpecialToken": {"id": names[0], "type_id": 1}},
                    {"Sequence": {"id": "B", "type_id": 1}},
                ],
                "special_tokens": {names[0]: {"id": names[0], "ids": [begin], "tokens": [names[0]]}},
            },
        ],
    }
    config = {
        "added_tokens_decoder": {
            str(token["id"]): {key: token[key] for key in (*FLAGS, "content", "special")}
            for token in content["added_tokens"]
        },
        "bos_token": "<|begin_of_text|>",
        "clean_up_tokenization_spaces": True,
        "eos_token": "<|end_of_text|>",
        "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": 131072,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    return content, config


def smollm2() -> tuple[dict[str, Any], dict[str, Any]]:
    names = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<repo_name>", "<file_sep>")
    pre_tokenizer = {
        "type": "Sequence",
        "pretokenizers": [
            {"type": "Digits", "individual_digits": True},
            {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        ],
    }
    content = byte_level_content(pre_tokenizer, [(name, True) for name in names], first=True)
    config = {
        "add_prefix_space": False,
        "added_tokens_decoder": {
            str(token["id"]): {key: token[key] for key in (*FLAGS, "content", "special")}
            for token in content["added_tokens"]
        },
        "additional_special_tokens": ["<|im_start|>", "<|im_end|>"],
        "bos_token": "<|im_start|>",
        "chat_template": CHATML,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>",
        "model_max_length": 8192,
        "pad_token": "<|im_end|>",
        "tokenizer_class": "GPT2Tokenizer",
        "unk_token": "<|endoftext|>",
        "vocab_size": 49152,
    }
    return content, config


def olmo2() -> tuple[dict[str, Any], dict[str, Any]]:
    names = [("<|endoftext|>", True), ("<|fim_prefix|>", False), ("<|im_start|>", False), ("<|im_end|>", False)]
    names += [("<|pad|>", True)]
    byte_level = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True}
    content = byte_level_content(split(LLAMA3_PATTERN), names, post_processor=byte_level)
    config = {
        "add_prefix_space": False,
        "added_tokens_decoder": {
            str(token["id"]): {key: token[key] for key in (*FLAGS, "content", "special")}
            for token in content["added_tokens"]
        },
        "bos_token": "<|endoftext|>",
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|endoftext|>",
        "model_max_length": 4096,
        "pad_token": "<|pad|>",
        "tokenizer_class": "GPT2Tokenizer",
        "unk_token": "<|endoftext|>",
    }
    return content, config


FORMS = {
    "tinyllama": tinyllama,
    "qwen2.5": lambda: qwen(version=2),
    "qwen3": lambda: qwen(version=3),
    "llama3": llama3,
    "smollm2": smollm2,
    "olmo2": olmo2,
}


def write_tokenizer(name: str, directory: Path) -> None:
    """One of `FORMS`, as its repository has it."""
    directory.mkdir(parents=True, exist_ok=True)
    for file, value in zip(("tokenizer.json", "tokenizer_config.json"), FORMS[name](), strict=True):
        (directory / file).write_text(json.dumps(value, ensure_ascii=False, indent=2), encoding="utf-8")
