"""Hostile `tokenizer.json` files: what the library would panic, abort or swell over, and what our own checks refuse."""

from __future__ import annotations

import base64
import json
import os
from pathlib import Path
from typing import Any

from attack import Attack, change, replaced_by, write
from good_files import byte_tokenizer

NESTED = '{"a":' * 100_000


def tokenizer(*words: str, **values: Any) -> Attack:
    """Keys of tokenizer.json changed, `a__b` for a key inside another."""
    return Attack("tokenizer", change("tokenizer.json", **values), words)


def sequence(name: str, *steps: dict[str, Any]) -> dict[str, Any]:
    return {"type": "Sequence", name: list(steps)}


def replace(old: str, new: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": {"String": old}, "content": new}


def renamed_end(config: str) -> Attack:
    """No end token of a known spelling, and this tokenizer_config.json."""
    text = json.dumps(byte_tokenizer()).replace("<|endoftext|>", "<|other|>")
    return Attack(
        "tokenizer",
        lambda d: (write("tokenizer_config.json", config)(d), write("tokenizer.json", text)(d)),
        ("no token that ends",),
    )


BEGINS_BEYOND = {
    "type": "TemplateProcessing",
    "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
    "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
    "special_tokens": {"<s>": {"id": "<s>", "ids": [2**31], "tokens": ["<s>"]}},
}
WORD_PIECE = {"type": "WordPiece", "unk_token": "a", "continuing_subword_prefix": "##", "vocab": {"a": 0, "b": 1}}
TOKENIZER_ATTACKS = {
    "tokenizer-empty": Attack("tokenizer", write("tokenizer.json", ""), ("not JSON",)),
    "tokenizer-list": Attack("tokenizer", write("tokenizer.json", "[]"), ("not a JSON object",)),
    "tokenizer-nested": Attack("tokenizer", write("tokenizer.json", NESTED), ("not JSON",)),
    "tokenizer-latin1": Attack("tokenizer", write("tokenizer.json", b"\xe9"), ("invalid UTF-8",)),
    "tokenizer-no-model": Attack("tokenizer", write("tokenizer.json", "{}"), ("no model with a vocabulary",)),
    # ids and tokens
    "tokenizer-id-far-beyond": tokenizer("ids run", model__vocab__he=2**31),
    "tokenizer-negative-id": tokenizer("ids run", model__vocab__he=-1),
    "tokenizer-id-twice": tokenizer("share an id", model__vocab__he=5),
    "tokenizer-id-is-text": tokenizer("whole number", model__vocab__he="5"),
    "tokenizer-added-without-id": tokenizer("added_tokens", added_tokens=[{"content": "x"}]),
    "tokenizer-added-far-beyond": tokenizer("ids run", added_tokens__0__id=2**40),
    "tokenizer-added-empty": tokenizer("an added token is no text", added_tokens__0__content=""),
    "tokenizer-added-without-end": tokenizer("an added token has 100,000", added_tokens__0__content="x" * 100_000),
    "tokenizer-begins-beyond": tokenizer("post_processor names ids", post_processor=BEGINS_BEYOND),
    "tokenizer-half-a-surrogate": Attack(
        "tokenizer",
        write("tokenizer.json", json.dumps(byte_tokenizer()).replace('"he"', '"\\ud800"')),
        ("cannot be built",),
    ),
    "tokenizer-no-end": renamed_end("{}"),
    "tokenizer-eos-is-a-list": renamed_end('{"eos_token": [1]}'),
    # the model
    "tokenizer-unknown-model": tokenizer("of type 'Oracle'", model__type="Oracle"),
    "tokenizer-model-type-is-a-list": tokenizer("of type ['BPE']", model__type=["BPE"]),
    "tokenizer-merge-of-nothing": tokenizer("cannot be built", model__merges=[["q?", "z!"]]),
    "tokenizer-merge-is-no-pair": tokenizer("cannot be built", model__merges=[["h"]]),
    "tokenizer-dropout": tokenizer("dropout 0.5", model__dropout=0.5),
    "tokenizer-prefix-without-end": tokenizer(
        "continuing_subword_prefix has 1,000", model__continuing_subword_prefix="x" * 1000
    ),
    "tokenizer-prefix-longer-than-its-piece": tokenizer(
        "second part does not begin", model__continuing_subword_prefix="##"
    ),
    "tokenizer-suffix-is-a-list": tokenizer("end_of_word_suffix is no text", model__end_of_word_suffix=["</w>"]),
    "tokenizer-words-without-end": tokenizer(
        "max_input_chars_per_word", added_tokens=[], model={**WORD_PIECE, "max_input_chars_per_word": 10**18}
    ),
    # what rewrites and cuts text
    "tokenizer-endless-expression": tokenizer(
        "do not know to be safe", pre_tokenizer={"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Removed"}
    ),
    "tokenizer-endless-normalizer": tokenizer(
        "do not know to be safe", normalizer={"type": "Replace", "pattern": {"Regex": "(a|aa)+b"}, "content": ""}
    ),
    "tokenizer-empty-table": tokenizer("'Precompiled'", normalizer={"type": "Precompiled", "precompiled_charsmap": ""}),
    "tokenizer-table-beyond-its-bytes": tokenizer(
        "'Precompiled'",
        normalizer={"type": "Precompiled", "precompiled_charsmap": base64.b64encode(b"\xff" * 40).decode()},
    ),
    "tokenizer-growth": tokenizer(
        "can make text 1e+08 times", normalizer=sequence("normalizers", *[replace("a", "a" * 10)] * 8)
    ),
    "tokenizer-growth-through-bytes": tokenizer(
        "times as long",
        pre_tokenizer=sequence("pretokenizers", *[{"type": "ByteLevel", "add_prefix_space": False}] * 8),
    ),
    "tokenizer-growth-of-two-parts": tokenizer(
        "its pre_tokenizer can make",
        normalizer=replace("a", "a" * 20),
        pre_tokenizer=sequence("pretokenizers", *[{"type": "ByteLevel"}] * 2),
    ),
    "tokenizer-growth-when-read": tokenizer("its decoder can make", decoder=replace("a", "a" * 41)),
    "tokenizer-replaces-nothing": tokenizer("looks for nothing", normalizer=replace("", "x")),
    "tokenizer-replaces-without-pattern": tokenizer("looks for nothing", normalizer={"type": "Replace", "content": ""}),
    "tokenizer-prepends-megabytes": tokenizer(
        "normalizer (Prepend) has 100,000 bytes", normalizer={"type": "Prepend", "prepend": "a" * 100_000}
    ),
    "tokenizer-prepends-a-number": tokenizer("Prepend without prepend", normalizer={"type": "Prepend", "prepend": 5}),
    "tokenizer-cuts-at-nothing": tokenizer("'FixedLength'", pre_tokenizer={"type": "FixedLength", "length": 0}),
    "tokenizer-steps-without-end": tokenizer(
        "more than 32 steps", normalizer=sequence("normalizers", *[{"type": "NFC"}] * 33)
    ),
    "tokenizer-sequence-of-nothing": tokenizer("pre_tokenizer has None", pre_tokenizer=sequence("pretokenizers", None)),
    "tokenizer-unknown-decoder": tokenizer("decoder has 'CTC'", decoder={"type": "CTC", "pad_token": "x"}),
    "tokenizer-template-without-end": tokenizer(
        "entries; at most 256", post_processor={**BEGINS_BEYOND, "special_tokens": {}, "single": [{}] * 1000}
    ),
    # what is no file, and what is said beside
    "tokenizer-name-is-no-text": Attack(
        "tokenizer", change("tokenizer_config.json", tiny_transformer_name={"a": 1}), ("tiny_transformer_name",)
    ),
    "tokenizer-config-is-a-pipe": Attack(
        "tokenizer", replaced_by("tokenizer_config.json", os.mkfifo), ("not a regular file",)
    ),
    "tokenizer-is-a-pipe": Attack("tokenizer", replaced_by("tokenizer.json", os.mkfifo), ("not a regular file",)),
    "tokenizer-is-a-directory": Attack("tokenizer", replaced_by("tokenizer.json", Path.mkdir), ("not a regular file",)),
}
