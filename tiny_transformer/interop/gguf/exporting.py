"""A model as one GGUF file, tokenizer included: what llama.cpp and the programs built on it read.

Shapes: H query heads, G key/value heads, D head_dim, C hidden_size.

The `gguf` package writes the file and quantizes; what is decided here is what goes into it. llama.cpp's `llama` turns
neighbouring features (2j, 2j + 1) in RoPE, Hugging Face's turns (j, j + D/2), so the rows of its query and key
projections are put into that order; its `qwen3` and `stablelm` turn like Hugging Face's. What Qwen3-Next and Qwen3.5
need is in `gguf_next`.
"""

from __future__ import annotations

import json
import logging
import math
import re
from collections.abc import Generator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from tiny_transformer.config.shapes import DecoderConfig, Qwen3NextConfig
from tiny_transformer.config.shapes.decoder import GgufForm
from tiny_transformer.errors import ExitCode, UserError
from tiny_transformer.interop.gguf.hybrid import Tensors, add_next_keys, next_tensors
from tiny_transformer.interop.gguf.rope import ROPE_NUMBERS, rope_factors
from tiny_transformer.interop.gguf.tokenizer import CHAT_TEMPLATE, NO_BEGIN_TOKEN, GgufTokenizer, gguf_tokenizer
from tiny_transformer.interop.portability import NOT_KNOWN, refusal
from tiny_transformer.interop.row_order import interleaved, is_rotated
from tiny_transformer.models import load_config, load_model
from tiny_transformer.models.config_file import end_token_ids, read_config, read_json
from tiny_transformer.models.swaps import restore_layers
from tiny_transformer.storage.commit import make_directories
from tiny_transformer.storage.fs import REAL, refusals
from tiny_transformer.storage.temporary import exists, in_the_making
from tiny_transformer.tokenizers import load_tokenizer
from tiny_transformer.tokenizers.load import chat_templates

if TYPE_CHECKING:
    from gguf import GGMLQuantizationType, GGUFWriter

TYPES = ("f32", "f16", "q8_0", "q4_0")
# The tables of words: the part that suffers most from four bits, so q4_0 files give them eight.
_WORDS = ("token_embd.weight", "output.weight")
# llama.cpp convolves in f32 alone; a router decides by small differences, and is small itself.
_EXACT = (".ssm_conv1d.weight", ".ffn_gate_inp.weight")


@dataclass(frozen=True)
class GgufFile:
    """What was written.

    Attributes:
        path: of the file.
        num_bytes: its size.
        kind: one of `TYPES`.
        kept_f16: names of tensors that stay f16 because their rows are no multiple of the 32 weights of a block.
        has_second_head: whether the model has one (`mtp.*`), which the file has not.
    """

    path: Path
    num_bytes: int
    kind: str
    kept_f16: tuple[str, ...]
    has_second_head: bool


def export_gguf(checkpoint: Path | str, out: Path | str, *, kind: str = "f16", overwrite: bool = False) -> GgufFile:
    """Write the model and the tokenizer of a checkpoint directory as a GGUF file, whole or not at all.

    The same checkpoint gives the same bytes. Norms, biases, convolutions and routers stay f32 in every kind; a second
    head (multi-token prediction) is left out.

    Args:
        checkpoint: a Hugging Face directory that `load_model` opens.
        out: the file. Missing folders are made.
        kind: of the matrices. `f32`: exact. `f16`: half the size, 11 bits of precision. `q8_0`: 8.5 bits a weight,
            blocks of 32 weights with one scale. `q4_0`: 4.5 bits, with q8_0 for the embedding and the head.
        overwrite: whether a file of that name may be replaced.

    Raises:
        UserError: the `gguf` package is missing; llama.cpp does not compute this shape or has no such tokenizer (the
            message says why); a weight does not fit into f16; `out` is there; or the disk refuses.
    """
    gguf = _package()
    checkpoint, out = Path(checkpoint), Path(out)
    if kind not in TYPES:
        raise UserError(f"no such GGUF type: {kind}", remedy=f"one of {', '.join(TYPES)}")
    config = load_config(checkpoint)
    form, reason = config.gguf_form(), refusal(config, "llama.cpp")
    if reason or form is None:
        raise UserError(
            f"no GGUF file of this shape: {reason or NOT_KNOWN}",
            where=str(checkpoint),
            remedy="train a shape that it runs, or use the directory itself in transformers",
            exit_code=ExitCode.BAD_DATA,
        )
    tokenizer = gguf_tokenizer(load_tokenizer(checkpoint), config.vocab_size or 0)
    if exists(out) and (out.is_dir() or not overwrite):
        raise UserError(
            "already there, and not to be overwritten", where=str(out), remedy="--overwrite, or another --out"
        )
    model = load_model(checkpoint)
    restore_layers(model)  # a GGUF file has kinds of its own
    with _whole_file(out) as path:
        writer = gguf.GGUFWriter(path, form.name)
        try:
            _add_keys(writer, config, kind=kind, name=_name(checkpoint))
            _add_tokenizer(writer, tokenizer)
            _add_special_tokens(writer, tokenizer, checkpoint)
            kept = _write_tensors(writer, form, model.state_dict().items(), config, kind=kind)
        finally:
            writer.close()
    has_second_head = any(name.startswith("mtp.") for name in model.state_dict())
    return GgufFile(out, out.stat().st_size, kind, kept, has_second_head)


def default_file_name(checkpoint: Path, kind: str) -> str:
    """`demo-f16.gguf` for the checkpoint `runs/demo/step-00002000`, `stories-f16.gguf` for the directory `stories`."""
    return f"{_name(checkpoint)}-{kind}.gguf"


def _name(checkpoint: Path) -> str:
    checkpoint = checkpoint.absolute()
    return checkpoint.parent.name if checkpoint.name.startswith("step-") else checkpoint.name


def _package() -> Any:
    try:
        import gguf
    except ImportError:
        raise UserError(
            "writing GGUF files needs the gguf package",
            remedy="pip install gguf",
        ) from None
    # The package reports each file it writes as a log line; what we print says the same once.
    logging.getLogger("gguf").setLevel(logging.WARNING)
    return gguf


def _add_keys(writer: GGUFWriter, config: DecoderConfig, *, kind: str, name: str) -> None:
    """What the file is, and the shape of the model. The order is that of the file."""
    import gguf

    file_type = {"f32": "ALL_F32", "f16": "MOSTLY_F16", "q8_0": "MOSTLY_Q8_0", "q4_0": "MOSTLY_Q4_0"}[kind]
    writer.add_type("model")
    writer.add_name(name)
    writer.add_file_type(gguf.LlamaFileType[file_type])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_vocab_size(config.vocab_size or 0)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(config.rotary_dim)
    writer.add_rope_freq_base(config.rope_theta)
    _add_rope_scaling(writer, config.rope_numbers())
    form = config.gguf_form()
    if form is not None and form.layer_norm:
        writer.add_layer_norm_eps(config.rms_norm_eps)
        writer.add_parallel_residual(False)
    else:
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    if isinstance(config, Qwen3NextConfig):
        add_next_keys(writer, config)


def _add_tokenizer(writer: GGUFWriter, tokenizer: GgufTokenizer) -> None:
    writer.add_tokenizer_model(tokenizer.model)
    writer.add_tokenizer_pre(tokenizer.pre)
    writer.add_token_list(tokenizer.tokens)
    if tokenizer.model == "llama":
        writer.add_token_scores(tokenizer.scores)
        writer.add_add_space_prefix(tokenizer.adds_space)
        if tokenizer.unknown_id is not None:
            writer.add_unk_token_id(tokenizer.unknown_id)
    writer.add_token_types(tokenizer.types)
    if tokenizer.merges:
        writer.add_token_merges(tokenizer.merges)


def _add_rope_scaling(writer: GGUFWriter, scaling: dict[str, Any] | None) -> None:
    """The keys of `linear` and `yarn`; `llama3` is a tensor, see `rope_factors`, and a key of our own tells its
    numbers."""
    import gguf

    if scaling is None:
        return
    if scaling["rope_type"] == "llama3":
        writer.add_string(ROPE_NUMBERS, json.dumps(scaling))
        return
    writer.add_rope_scaling_type(gguf.RopeScalingType(scaling["rope_type"]))
    writer.add_rope_scaling_factor(scaling["factor"])
    if "original_max_position_embeddings" in scaling:
        writer.add_rope_scaling_orig_ctx_len(scaling["original_max_position_embeddings"])
    if "beta_fast" in scaling:
        writer.add_rope_scaling_yarn_beta_fast(scaling["beta_fast"])
    if "beta_slow" in scaling:
        writer.add_rope_scaling_yarn_beta_slow(scaling["beta_slow"])


def _add_special_tokens(writer: GGUFWriter, tokenizer: GgufTokenizer, checkpoint: Path) -> None:
    """The tokens that begin, end and fill texts, and the chat template: as the checkpoint's files say.

    The ends are the model's, which may differ from the tokenizer's. The token that begins a text is the tokenizer's, or
    else config.json's, or else the one that ended the text before: without the key llama.cpp takes token 11, whatever
    that is, and llama-cpp-python begins an empty prompt with it. A key of our own says that config.json has none, so
    that an import writes none.
    """
    config, _ = read_config(checkpoint)
    ends = [i for i in end_token_ids(checkpoint) if i < len(tokenizer.tokens)] or [tokenizer.end_id]
    for i, add in zip(ends, (writer.add_eos_token_id, writer.add_eot_token_id, writer.add_eom_token_id), strict=False):
        add(i)
    writer.add_add_eos_token(False)
    generation = checkpoint / "generation_config.json"
    padding = read_json(generation).get("pad_token_id") if generation.exists() else None
    if padding is None:
        padding = config.get("pad_token_id", load_tokenizer(checkpoint).pad_id)
    if type(padding) is int and 0 <= padding < len(tokenizer.tokens):
        writer.add_pad_token_id(padding)
    _add_templates(writer, chat_templates(checkpoint))
    of_config = config.get("bos_token_id")
    begin = of_config if tokenizer.begin_id is None else tokenizer.begin_id
    writer.add_bos_token_id(begin if type(begin) is int and 0 <= begin < len(tokenizer.tokens) else tokenizer.end_id)
    writer.add_add_bos_token(tokenizer.begin_id is not None)
    if of_config is None:
        writer.add_bool(NO_BEGIN_TOKEN, True)


def _add_templates(writer: GGUFWriter, templates: dict[str, str]) -> None:
    """The default chat template, and the others under their names."""
    named = {re.sub(r"[^A-Za-z0-9]", "_", name): text for name, text in sorted(templates.items()) if name != "default"}
    if named:
        writer.add_array(f"{CHAT_TEMPLATE}s", list(named))
    for name, text in named.items():
        writer.add_string(f"{CHAT_TEMPLATE}.{name}", text)
    if "default" in templates:
        writer.add_chat_template(templates["default"])


def _write_tensors(
    writer: GGUFWriter, form: GgufForm, tensors: Any, config: DecoderConfig, *, kind: str
) -> tuple[str, ...]:
    """Write the header, then one tensor after the other; the names of those that could not be quantized."""
    import gguf

    names = gguf.get_tensor_name_map(
        next(arch for arch, name in gguf.MODEL_ARCH_NAMES.items() if name == form.name),
        config.num_hidden_layers,
    )
    entries = []
    if (factors := rope_factors(config)) is not None:
        entries.append(("rope_freqs.weight", factors, gguf.GGMLQuantizationType.F32))
    for name, tensor in _as_llama_cpp_has_them(config, form, iter(tensors)):
        if name == "lm_head.weight" and config.tie_word_embeddings and not form.copies_tied_head:
            continue
        gguf_name = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if gguf_name is None:
            raise ValueError(f"the gguf package has no name for {name} of {form.name}")
        entries.append((gguf_name, tensor, _type_of(gguf_name, tensor, kind)))
    for name, tensor, dtype in entries:
        row_bytes = gguf.quant_shape_to_byte_shape(tensor.shape, dtype)
        writer.add_tensor_info(name, row_bytes, np.dtype(np.uint8), math.prod(row_bytes), raw_dtype=dtype)
    writer.add_size_label(gguf.size_label(*writer.get_total_parameter_count()))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for name, tensor, dtype in entries:
        writer.write_tensor_data(_quantized(name, tensor, dtype))
    return tuple(name for name, _, dtype in entries if dtype.name == "F16" and kind.startswith("q"))


def _type_of(name: str, tensor: torch.Tensor, kind: str) -> GGMLQuantizationType:
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    if tensor.ndim == 1 or name.endswith(_EXACT):
        return GGMLQuantizationType.F32
    dtype = GGMLQuantizationType["Q8_0" if kind == "q4_0" and name in _WORDS else kind.upper()]
    return GGMLQuantizationType.F16 if tensor.shape[-1] % GGML_QUANT_SIZES[dtype][0] else dtype


def _quantized(name: str, tensor: torch.Tensor, dtype: GGMLQuantizationType) -> np.ndarray:
    """The bytes of one tensor. Each block of q8_0 and q4_0 has an f16 scale, so what f16 cannot hold they cannot."""
    import gguf

    array = tensor.float().contiguous().numpy()
    largest = float(np.abs(array).max())
    limit = float(np.finfo(np.float32 if dtype == gguf.GGMLQuantizationType.F32 else np.float16).max)
    if not largest <= limit:
        raise UserError(
            f"tensor {name} has a weight of size {largest:g}, and {dtype.name} holds at most {limit:g}",
            remedy="export f32" if np.isfinite(largest) else "the training went wrong; take an earlier checkpoint",
            exit_code=ExitCode.BAD_DATA,
        )
    return gguf.quantize(array, dtype)


def _as_llama_cpp_has_them(config: DecoderConfig, form: GgufForm, tensors: Tensors) -> Tensors:
    """The same names, with the tensors that llama.cpp computes with."""
    if isinstance(config, Qwen3NextConfig):
        yield from next_tensors(config, tensors)
        return
    for name, tensor in tensors:
        yield name, interleaved(tensor, config.head_dim) if form.is_interleaved and is_rotated(name) else tensor


@contextmanager
def _whole_file(path: Path) -> Generator[Path]:
    """A hidden name to write to, which becomes `path` when the block ends well and is removed when it does not."""
    with ExitStack() as stack:
        with refusals("write", path):
            make_directories(path.parent)
            temporary = stack.enter_context(in_the_making(path, Path.touch))
        try:
            with refusals("write", path):
                with _with_its_reason(temporary):
                    yield temporary
                REAL.fsync(temporary)
                REAL.rename(temporary, path)
                REAL.fsync_dir(path.parent)
        except BaseException:
            with suppress(OSError):
                REAL.unlink(temporary)
            raise


@contextmanager
def _with_its_reason(path: Path) -> Generator[None]:
    """Turns an OSError without a number, as numpy raises for a write that was cut short, into the one that the system
    gives when more is appended."""
    try:
        yield
    except OSError as error:
        if error.errno is None:
            with path.open("ab", buffering=0) as file:
                file.write(bytes(1 << 20))
        raise
