"""A small good GGUF file in parts, and hostile ones made of them."""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Callable
from pathlib import Path

from attack import Attack, replaced_by, write
from good_files import SHAPE, byte_tokenizer, tensors_of


def gguf_text(text: str) -> bytes:
    """A text as GGUF has it: its length in bytes, then the bytes."""
    return struct.pack("<Q", len(text.encode())) + text.encode()


def gguf_key(name: str, kind: int, value: bytes) -> bytes:
    """A key with its value; `kind` is the format's number of the type."""
    return gguf_text(name) + struct.pack("<I", kind) + value


def gguf_record(name: str, shape: tuple[int, ...], *, kind: int = 0, offset: int = 0) -> bytes:
    """What the header says of one tensor; kind 0 is f32."""
    sizes = struct.pack(f"<{len(shape)}Q", *reversed(shape))
    return gguf_text(name) + struct.pack("<I", len(shape)) + sizes + struct.pack("<IQ", kind, offset)


def gguf_keys() -> list[bytes]:
    """The keys of `SHAPE` and of the tokenizer."""
    numbers = {
        "context_length": SHAPE["max_position_embeddings"],
        "embedding_length": SHAPE["hidden_size"],
        "feed_forward_length": SHAPE["intermediate_size"],
        "block_count": SHAPE["num_hidden_layers"],
        "attention.head_count": SHAPE["num_attention_heads"],
        "attention.head_count_kv": SHAPE["num_key_value_heads"],
        "attention.key_length": SHAPE["head_dim"],
    }
    content = byte_tokenizer()
    tokens = {i: (token, 1) for token, i in content["model"]["vocab"].items()} | {256: ("<|endoftext|>", 3)}
    tokens |= {i: (f"<unused {i}>", 5) for i in range(len(tokens), SHAPE["vocab_size"])}
    texts, types = zip(*(tokens[i] for i in range(len(tokens))), strict=True)
    lists = {"tokens": texts, "merges": [" ".join(pair) for pair in content["model"]["merges"]]}
    return [
        gguf_key("general.architecture", 8, gguf_text("qwen3")),
        *(gguf_key(f"qwen3.{name}", 4, struct.pack("<I", value)) for name, value in numbers.items()),
        gguf_key("qwen3.attention.layer_norm_rms_epsilon", 6, struct.pack("<f", 1e-6)),
        gguf_key("tokenizer.ggml.model", 8, gguf_text("gpt2")),
        gguf_key("tokenizer.ggml.pre", 8, gguf_text("gpt-2")),
        *(
            gguf_key(f"tokenizer.ggml.{name}", 9, struct.pack("<IQ", 8, len(values)) + b"".join(map(gguf_text, values)))
            for name, values in lists.items()
        ),
        gguf_key("tokenizer.ggml.token_type", 9, struct.pack(f"<IQ{len(types)}i", 5, len(types), *types)),
        gguf_key("tokenizer.ggml.eos_token_id", 4, struct.pack("<I", 256)),
    ]


def gguf_tensors() -> list[bytes]:
    """The records of `SHAPE`'s weights in f32, tied, each at a multiple of 32 bytes."""
    short = {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "self_attn.o_proj": "attn_output"}
    records, offset = [], 0
    for name, shape in tensors_of(SHAPE).items():
        place, _, part = name.removesuffix(".weight").removeprefix("model.layers.").partition(".")
        part = short.get(part, part.replace("self_attn.", "attn_").replace("mlp.", "ffn_").replace("_proj", ""))
        whole = {"model.embed_tokens.weight": "token_embd", "model.norm.weight": "output_norm"}
        records.append(gguf_record(f"{whole.get(name, f'blk.{place}.{part}')}.weight", shape, offset=offset))
        offset += -(-4 * math.prod(shape) // 32) * 32
    return records


def gguf_good(directory: Path) -> None:
    """Write model.gguf, of which every byte is right."""
    gguf(rest=good_weights())(directory)


def good_weights() -> bytes:
    """The bytes of the tensors that `gguf_tensors` describes: zeros."""
    return bytes(sum(-(-4 * math.prod(shape) // 32) * 32 for shape in tensors_of(SHAPE).values()))


def gguf(
    keys: list[bytes] | None = None,
    tensors: list[bytes] | None = None,
    *,
    head: bytes | None = None,
    rest: bytes = b"",
) -> Callable[[Path], object]:
    """A GGUF file of these parts, or the good one's; `head` in place of magic, version and counts."""
    keys, tensors = gguf_keys() if keys is None else keys, gguf_tensors() if tensors is None else tensors
    first = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(keys)) if head is None else head
    header = first + b"".join(keys + tensors)
    return write("model.gguf", header + bytes(-len(header) % 32) + rest)


def counts(version: int = 3, tensors: int = 0, keys: int = 0, magic: bytes = b"GGUF") -> bytes:
    return magic + struct.pack("<IQQ", version, tensors, keys)


def one(entry: bytes) -> list[bytes]:
    """The good keys and one more."""
    return [*gguf_keys(), entry]


def instead(entry: bytes) -> list[bytes]:
    """The good keys with another in the place of the one of its name."""
    name = entry[: 8 + entry[0]]
    return [entry if key.startswith(name) else key for key in gguf_keys()]


NORM_RECORD = ("output_norm.weight", (16,))  # what spoilt tensors are made of

GGUF_ATTACKS = {
    "gguf-empty": Attack("gguf", write("model.gguf", b""), ("ends inside its header",)),
    "gguf-magic-alone": Attack("gguf", write("model.gguf", b"GGUF"), ("ends inside its header",)),
    "gguf-other-magic": Attack("gguf", gguf(head=counts(magic=b"GGUG")), ("does not begin with GGUF",)),
    "gguf-other-byte-order": Attack(
        "gguf", gguf(head=b"GGUF" + struct.pack(">IQQ", 3, 0, 0)), ("version is 50331648",)
    ),
    "gguf-version-1": Attack("gguf", gguf(head=counts(version=1)), ("version is 1;",)),
    "gguf-version-4": Attack("gguf", gguf(head=counts(version=4)), ("version is 4;",)),
    "gguf-all-ones": Attack("gguf", write("model.gguf", b"GGUF\3\0\0\0" + b"\xff" * 64), ("it claims 18,446,744",)),
    "gguf-million-tensors": Attack("gguf", gguf(head=counts(tensors=10**6)), ("it claims 1,000,000 tensors",)),
    "gguf-million-keys": Attack("gguf", gguf(head=counts(keys=10**6)), ("and 1,000,000 keys",)),
    "gguf-keys-that-are-not-there": Attack("gguf", gguf([], [], head=counts(keys=9_999)), ("ends inside its header",)),
    "gguf-tensors-that-are-not-there": Attack("gguf", gguf([], [], head=counts(tensors=9_999)), ("ends inside",)),
    "gguf-name-beyond": Attack("gguf", gguf([struct.pack("<Q", 2**40)]), ("a text of 1,099,511,627,776 bytes",)),
    "gguf-text-beyond": Attack(
        "gguf", gguf(one(gguf_text("x") + struct.pack("<IQ", 8, 2**20))), ("inside its header",)
    ),
    "gguf-text-petabytes": Attack("gguf", gguf(one(gguf_text("x") + struct.pack("<IQ", 8, 2**50))), ("a text of",)),
    "gguf-text-not-utf8": Attack(
        "gguf", gguf(one(gguf_text("x") + struct.pack("<IQ", 8, 1) + b"\xff")), ("not UTF-8",)
    ),
    "gguf-key-twice": Attack("gguf", gguf(one(gguf_keys()[0])), ("'general.architecture' stands there twice",)),
    "gguf-key-of-unknown-type": Attack("gguf", gguf(one(gguf_key("x", 13, b""))), ("'x' is of unknown type 13",)),
    "gguf-list-of-lists": Attack(
        "gguf", gguf(one(gguf_key("x", 9, struct.pack("<IQ", 9, 1) * 10_000))), ("'x' is a list of lists",)
    ),
    "gguf-list-beyond": Attack(
        "gguf", gguf(one(gguf_key("x", 9, struct.pack("<IQ", 0, 10**6)))), ("inside its header",)
    ),
    "gguf-list-petabytes": Attack(
        "gguf", gguf(one(gguf_key("x", 9, struct.pack("<IQ", 12, 2**60)))), ("'x' has 1,152,921,504",)
    ),
    "gguf-lists-of-empty-texts": Attack(
        "gguf",
        gguf(
            [
                gguf_key("x", 9, struct.pack("<IQ", 8, 10) + bytes(80)),
                *one(gguf_key("y", 9, struct.pack("<IQ", 8, 2**20))),
            ]
        ),
        ("its lists have 1,048,8",),
    ),
    "gguf-bad-text-in-a-list": Attack(
        "gguf",
        gguf(instead(gguf_key("tokenizer.ggml.tokens", 9, struct.pack("<IQQ", 8, 1, 1) + b"\xff"))),
        ("not UTF-8",),
    ),
    "gguf-shape-is-a-list": Attack(
        "gguf",
        gguf(instead(gguf_key("qwen3.block_count", 9, struct.pack("<IQ2I", 4, 2, 1, 1))), rest=good_weights()),
        ("num_hidden_layers",),
    ),
    "gguf-template-without-end": Attack(
        "gguf",
        gguf(one(gguf_key("tokenizer.chat_template", 8, gguf_text("x" * (2**20 + 1))))),
        ("a text of 1,048,577",),
    ),
    "gguf-template-is-a-list": Attack(
        "gguf",
        gguf(
            one(gguf_key("tokenizer.chat_template", 9, struct.pack("<IQ", 8, 1) + gguf_text("x"))), rest=good_weights()
        ),
        ("not one text",),
    ),
    "gguf-list-of-endless-texts": Attack(
        "gguf", gguf(one(gguf_key("x", 9, struct.pack("<IQ", 8, 10**6) + bytes(8_000))), []), ("inside its header",)
    ),
    "gguf-tensor-twice": Attack(
        "gguf", gguf(tensors=[gguf_record(*NORM_RECORD), gguf_record(*NORM_RECORD)]), ("stands there twice",)
    ),
    "gguf-tensor-without-dimensions": Attack("gguf", gguf(tensors=[gguf_record("x", ())]), ("has 0 dimensions",)),
    "gguf-tensor-of-many-dimensions": Attack("gguf", gguf(tensors=[gguf_record("x", (1,) * 5)]), ("has 5 dimensions",)),
    "gguf-tensor-of-zero-size": Attack("gguf", gguf(tensors=[gguf_record("x", (0, 4))]), ("impossible shape",)),
    "gguf-tensor-shape-overflows": Attack("gguf", gguf(tensors=[gguf_record("x", (2**39,) * 4)]), ("end at",)),
    "gguf-tensor-of-unknown-type": Attack("gguf", gguf(tensors=[gguf_record("x", (4,), kind=99)]), ("of type 99",)),
    "gguf-tensor-of-half-a-block": Attack("gguf", gguf(tensors=[gguf_record("x", (33,), kind=8)]), ("for Q8_0",)),
    "gguf-tensors-overlap": Attack(
        "gguf",
        gguf(tensors=[gguf_record(*NORM_RECORD), gguf_record("x", (16,), offset=32)], rest=bytes(512)),
        ("'x' do not begin where",),
    ),
    "gguf-tensors-apart": Attack(
        "gguf",
        gguf(tensors=[gguf_record(*NORM_RECORD), gguf_record("x", (16,), offset=4096)], rest=bytes(8192)),
        ("'x' do not begin where",),
    ),
    "gguf-offset-beyond": Attack("gguf", gguf(tensors=[gguf_record("x", (16,), offset=2**63)]), ("do not begin",)),
    "gguf-offset-not-aligned": Attack("gguf", gguf(tensors=[gguf_record("x", (16,), offset=3)]), ("do not begin",)),
    "gguf-one-byte-short": Attack("gguf", gguf(tensors=[gguf_record("x", (16,))], rest=bytes(63)), ("the file at",)),
    "gguf-surplus-bytes": Attack(
        "gguf", gguf(tensors=[gguf_record("x", (16,))], rest=bytes(5000)), ("bytes follow its last tensor",)
    ),
    "gguf-alignment-zero": Attack(
        "gguf", gguf(one(gguf_key("general.alignment", 4, struct.pack("<I", 0)))), ("not a power of two",)
    ),
    "gguf-alignment-odd": Attack(
        "gguf", gguf(one(gguf_key("general.alignment", 4, struct.pack("<I", 33)))), ("not a power of two",)
    ),
    "gguf-alignment-is-text": Attack(
        "gguf", gguf(one(gguf_key("general.alignment", 8, gguf_text("32")))), ("not a power of two",)
    ),
    "gguf-no-architecture": Attack("gguf", gguf([], []), ("architecture 'None'",)),
    "gguf-architecture-is-a-path": Attack(
        "gguf", gguf([gguf_key("general.architecture", 8, gguf_text("../x"))], []), ("architecture '../x'",)
    ),
    "gguf-no-embedding": Attack("gguf", gguf(tensors=[gguf_record(*NORM_RECORD)], rest=bytes(64)), ("token_embd",)),
    "gguf-is-a-pipe": Attack("gguf", replaced_by("model.gguf", os.mkfifo), ("not a regular file",)),
}
