"""A small good model directory of every kind of file we read: what the attacks and the fuzzer start from."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

SHAPE = {
    "model_type": "qwen3",
    "architectures": ["Qwen3ForCausalLM"],
    "vocab_size": 262,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "max_position_embeddings": 32,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
    "eos_token_id": 256,
}
LLAMA2C = (16, 24, 2, 2, 1, 263, 8)  # width, feed-forward, layers, heads, key/value heads, vocabulary, context
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


def tensors_of(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a Qwen3's weights, tied."""
    width, inner, size = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    queries, keys = config["num_attention_heads"] * size, config["num_key_value_heads"] * size
    shapes = {"model.embed_tokens.weight": (config["vocab_size"], width), "model.norm.weight": (width,)}
    for layer in range(config["num_hidden_layers"]):
        for name, shape in {
            "input_layernorm": (width,),
            "post_attention_layernorm": (width,),
            "self_attn.q_proj": (queries, width),
            "self_attn.k_proj": (keys, width),
            "self_attn.v_proj": (keys, width),
            "self_attn.o_proj": (width, queries),
            "self_attn.q_norm": (size,),
            "self_attn.k_norm": (size,),
            "mlp.gate_proj": (inner, width),
            "mlp.up_proj": (inner, width),
            "mlp.down_proj": (width, inner),
        }.items():
            shapes[f"model.layers.{layer}.{name}.weight"] = shape
    return shapes


def entries(shapes: dict[str, tuple[int, ...]]) -> dict[str, dict[str, Any]]:
    """The header of float32 tensors, one after the other."""
    header, offset = {}, 0
    for name, shape in shapes.items():
        num_bytes = 4
        for length in shape:
            num_bytes *= length
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [offset, offset + num_bytes]}
        offset += num_bytes
    return header


def safetensors(header: dict[str, Any] | bytes, num_bytes: int | None = None, length: int | None = None) -> bytes:
    """A file with this header and as many zero bytes as it describes, unless told otherwise."""
    if num_bytes is None:
        num_bytes = max((e["data_offsets"][1] for e in header.values() if "data_offsets" in e), default=0)
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(raw) if length is None else length).to_bytes(8, "little") + raw + bytes(num_bytes)


def write_good(directory: Path) -> None:
    """A directory that everything below opens: a model, its tokenizer, a llama2.c model."""
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps(SHAPE))
    (directory / "generation_config.json").write_text('{"eos_token_id": 256}')
    (directory / WEIGHTS).write_bytes(safetensors(entries(tensors_of(SHAPE))))
    (directory / "tokenizer.json").write_text(json.dumps(byte_tokenizer()))
    (directory / "tokenizer_config.json").write_text('{"eos_token": "<|endoftext|>"}')
    (directory / "model.bin").write_bytes(struct.pack("<7i", *LLAMA2C) + bytes(4 * llama2c_numbers(LLAMA2C)))
    (directory / "tok.bin").write_bytes(struct.pack("<i", 6) + b"".join(pieces()))


def byte_tokenizer() -> dict[str, Any]:
    """One token a byte, one merge, and the end token."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    vocab = {chr(byte) if byte in printable else chr(next(others)): byte for byte in range(256)}
    vocab["he"] = 257
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {
        "version": "1.0",
        "added_tokens": [{"id": 256, "content": "<|endoftext|>", **flags, "special": True}],
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": None,
        "decoder": byte_level,
        "model": {"type": "BPE", "vocab": {**vocab, "<|endoftext|>": 256}, "merges": [["h", "e"]]},
    }


def pieces() -> list[bytes]:
    """The records of a llama2.c tokenizer with 263 tokens."""
    texts = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "a", "b", "ab", " "]
    return [struct.pack("<fi", float(-i), len(text)) + text.encode() for i, text in enumerate(texts)]


def llama2c_numbers(header: tuple[int, ...]) -> int:
    """How many float32 follow the header."""
    dim, inner, layers, heads, groups, vocab, context = header
    kv = dim // heads * groups
    per_layer = 2 * dim + 2 * dim * dim + 2 * kv * dim + 3 * dim * inner
    return vocab * dim + layers * per_layer + dim + context * (dim // heads)
