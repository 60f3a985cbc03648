"""Import of llama2.c models (the TinyStories models `stories260K.bin` and larger).

Shapes: V vocab_size, C hidden_size, F intermediate_size, N layers, H query heads, G key/value heads, D head_dim.

A file is seven little-endian int32 (C, F, N, H, G, V, context length; V negative when the head is not the embedding)
and then float32 arrays, each stacked over the layers, in the order of `_layout`. Its RoPE turns neighbouring features
(2j, 2j + 1); Hugging Face's turns (j, j + D/2), so the rows of the query and key projections change places.
Source: the format's description in the llama2.c repository, version 0 ("legacy").
"""

from __future__ import annotations

import lzma
import math
import struct
import tempfile
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING

import numpy as np
import torch
from pydantic import ValidationError

from tiny_transformer.config.shapes import LlamaConfig
from tiny_transformer.errors import ExitCode, UserError
from tiny_transformer.interop.row_order import half_split, is_rotated
from tiny_transformer.interop.writing import write_import
from tiny_transformer.models import empty_model
from tiny_transformer.tokenizers.llama2c import load_llama2c_tokenizer
from tiny_transformer.tokenizers.tokenizer import Tokenizer

if TYPE_CHECKING:
    from tiny_transformer.models.contract import CausalLM

HEADER = struct.Struct("<7i")
BEGIN_ID, END_ID = 1, 2
MAX_EXPANSION = 100  # of a packed model; trained weights shrink by a tenth, zeros by a factor of 7,000
MAX_PIECES, MAX_PIECE_BYTES = 2**18, 512
MAX_TOKENIZER_BYTES = 8 * 2**20  # that of 32,000 pieces has 434 thousand
SKIPPED = None  # an array of the file that Hugging Face computes instead of storing


def import_llama2c(model_path: Path | str, tokenizer_path: Path | str, out_dir: Path | str) -> None:
    """Write a llama2.c model and its tokenizer as a Hugging Face Llama directory, all or nothing.

    Args:
        model_path: `.bin`, or packed as `.bin.xz`.
        tokenizer_path: `.bin`, or packed as `.bin.xz`.
        out_dir: a directory that does not exist yet.

    Raises:
        UserError: a file that is not what it should be, a vocabulary of another size, or `out_dir` exists.
    """
    model_path, tokenizer_path = Path(model_path), Path(tokenizer_path)
    tokenizer = _read_tokenizer(tokenizer_path)
    with _open(model_path) as file:
        config = _read_header(file, model_path)
        if config.vocab_size != tokenizer.vocab_size:
            raise _bad(tokenizer_path, f"{tokenizer.vocab_size} tokens, but the model has {config.vocab_size}")
        model = _read_model(file, config)
    # A story ends where the next one's begin token stands: llama2.c stops there, and so should others.
    token_ids = {"bos_token_id": BEGIN_ID, "eos_token_id": [BEGIN_ID, END_ID]}
    write_import(model, tokenizer, out_dir, source=model_path, token_ids=token_ids)


def _read_header(file: IO[bytes], path: Path) -> LlamaConfig:
    """The shape, once it has been compared with the file's size; leaves the file after the header."""
    head = file.read(HEADER.size)
    if len(head) < HEADER.size:
        raise _bad(path, f"{len(head)} bytes are too few for a header of {HEADER.size}")
    hidden_size, intermediate_size, layers, heads, groups, vocab_size, context_length = HEADER.unpack(head)
    try:
        config = LlamaConfig(
            vocab_size=abs(vocab_size),
            hidden_size=hidden_size,
            intermediate_size=intermediate_size,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=groups,
            max_position_embeddings=context_length,
            rms_norm_eps=1e-5,
            rope_theta=10_000.0,
            tie_word_embeddings=vocab_size > 0,
        )
    except ValidationError as error:
        problem = error.errors()[0]
        raise _bad(path, f"impossible header {HEADER.unpack(head)}: {problem['msg']}") from None
    expected = HEADER.size + sum(4 * math.prod(shape) for _, shape in _layout(config))
    on_disk = path.stat().st_size
    if path.suffix == ".xz" and expected > MAX_EXPANSION * on_disk:
        raise _bad(path, f"{on_disk:,} packed bytes are too few for the {expected:,} that its header describes")
    # A packed file is unpacked once to find its end, in small pieces and no further than it should reach.
    size = file.seek(expected + 1) if path.suffix == ".xz" else on_disk
    if size != expected:
        raise _bad(path, f"{size:,} bytes, but its header describes {expected:,}")
    file.seek(HEADER.size)
    return config


@torch.no_grad()
def _read_model(file: IO[bytes], config: LlamaConfig) -> CausalLM:
    model = empty_model(config)
    parameters = dict(model.named_parameters())
    for name, shape in _layout(config):
        array = np.frombuffer(file.read(4 * math.prod(shape)), "<f4").astype("=f4").reshape(shape)
        if name is not SKIPPED:
            weight = torch.from_numpy(array)
            parameters[name].copy_(half_split(weight, config.head_dim) if is_rotated(name) else weight)
    return model


def _layout(config: LlamaConfig) -> Iterator[tuple[str | None, tuple[int, ...]]]:
    """The arrays of the file in order: our parameter's name (or SKIPPED) and the shape."""
    width, inner, head_dim = config.hidden_size, config.intermediate_size, config.head_dim
    table = (config.vocab_size or 0, width)
    yield "model.embed_tokens.weight", table
    for name, shape in (
        ("input_layernorm", (width,)),
        ("self_attn.q_proj", (width, width)),
        ("self_attn.k_proj", (config.num_key_value_heads * head_dim, width)),
        ("self_attn.v_proj", (config.num_key_value_heads * head_dim, width)),
        ("self_attn.o_proj", (width, width)),
        ("post_attention_layernorm", (width,)),
        ("mlp.gate_proj", (inner, width)),
        ("mlp.down_proj", (width, inner)),
        ("mlp.up_proj", (inner, width)),
    ):
        for layer in range(config.num_hidden_layers):
            yield f"model.layers.{layer}.{name}.weight", shape
    yield "model.norm.weight", (width,)
    yield SKIPPED, (2, config.max_position_embeddings, head_dim // 2)  # tables of cosines and sines
    if not config.tie_word_embeddings:
        yield "lm_head.weight", table


def _read_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer; a packed one is unpacked beside the system's temporary files first."""
    with _open(path) as file, tempfile.TemporaryDirectory() as folder:
        unpacked = Path(folder) / "tokenizer.bin"
        data = file.read(MAX_TOKENIZER_BYTES + 1)
        if len(data) > MAX_TOKENIZER_BYTES:
            raise _bad(path, f"more than {MAX_TOKENIZER_BYTES:,} bytes are no llama2.c tokenizer")
        _check_pieces(data, path)
        unpacked.write_bytes(data)
        try:
            return load_llama2c_tokenizer(unpacked, name=path.name)
        except UserError as error:
            error.where = str(error.where).replace(str(unpacked), str(path))
            raise


def _check_pieces(data: bytes, path: Path) -> None:
    """Refuse what would take for ever: each way to cut each piece in two is looked at."""
    offset, count = 4, 0
    while offset + 8 <= len(data):
        length = struct.unpack_from("<i", data, offset + 4)[0]
        offset, count = offset + 8 + max(length, 0), count + 1
        if MAX_PIECE_BYTES < length <= len(data) or count > MAX_PIECES:
            what = f"a piece of {length:,} bytes" if length > MAX_PIECE_BYTES else f"more than {MAX_PIECES:,} pieces"
            raise _bad(
                path, f"{what}; pieces have at most {MAX_PIECE_BYTES} bytes, and there are at most {MAX_PIECES:,}"
            )


@contextmanager
def _open(path: Path) -> Generator[IO[bytes]]:
    """The bytes of a file, unpacked if its name ends in .xz."""
    if path.exists() and not path.is_file():
        raise _bad(path, "no such file (it is a directory or a device)", ExitCode.USAGE)
    try:
        with lzma.open(path) if path.suffix == ".xz" else path.open("rb") as file:
            yield file
    except (FileNotFoundError, IsADirectoryError):
        raise _bad(path, "no such file", ExitCode.USAGE) from None
    except (OSError, EOFError, lzma.LZMAError) as error:
        raise _bad(path, f"cannot be read: {error}") from None


def _bad(path: Path, what: str, exit_code: ExitCode = ExitCode.BAD_DATA) -> UserError:
    remedy = "give the .bin files that llama2.c writes, or the same packed as .bin.xz"
    return UserError(what, where=str(path), remedy=remedy, exit_code=exit_code)
