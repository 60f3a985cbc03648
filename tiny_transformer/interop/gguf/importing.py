"""Import of GGUF files: models of the architectures that a shape names (`gguf_imports`), with their tokenizer.

f32 files give back every weight to the bit; f16 ones give what they hold, in float32; the integers and scales of q8_0
and q4_0 are kept as they are (`layers.linear`). The header is judged by `file` before anything is allocated, and every
key of the architecture must be one that is known here.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from pydantic import ValidationError

from tiny_transformer.config.shapes import SHAPES, DecoderConfig
from tiny_transformer.config.shapes.decoder import GgufForm
from tiny_transformer.errors import ExitCode, UserError
from tiny_transformer.interop.gguf.file import GgufTensor, read_gguf_blocks, read_gguf_header, read_gguf_tensor
from tiny_transformer.interop.gguf.rope import ROPE_FACTORS, ROPE_NUMBERS, numbers_of_factors
from tiny_transformer.interop.gguf.tokenizer import CHAT_TEMPLATE, NO_BEGIN_TOKEN, TOKENIZER_LISTS, tokenizer_from_gguf
from tiny_transformer.interop.row_order import half_split, is_rotated
from tiny_transformer.interop.writing import write_import
from tiny_transformer.models import empty_model
from tiny_transformer.models.swaps import apply_swaps, describe_swaps
from tiny_transformer.tokenizers.load import CHAT_TEMPLATE as CHAT_TEMPLATE_FILE
from tiny_transformer.tokenizers.load import MORE_TEMPLATES

if TYPE_CHECKING:
    from tiny_transformer.models.contract import CausalLM

# A key behind the architecture's name -> ours. Absent ones keep our default, which is llama.cpp's too.
_SHAPE = {
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "block_count": "num_hidden_layers",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "rope.freq_base": "rope_theta",
}
_SCALING = {
    "rope.scaling.factor": "factor",
    "rope.scaling.original_context_length": "original_max_position_embeddings",
    "rope.scaling.yarn_beta_fast": "beta_fast",
    "rope.scaling.yarn_beta_slow": "beta_slow",
}
_OPTIONAL = {"attention.head_count_kv", "attention.key_length", "rope.freq_base"}
# Keys that repeat what another says, and must say the same: key -> the field it repeats.
_REPEATED = {"attention.value_length": "head_dim", "rope.dimension_count": "head_dim", "vocab_size": "vocab_size"}
_TENSORS = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    **{f"self_attn.{part}_proj": f"attn_{part}" for part in "qkv"},
    "self_attn.o_proj": "attn_output",
    **{f"self_attn.{part}_norm": f"attn_{part}_norm" for part in "qk"},
    **{f"mlp.{part}_proj": f"ffn_{part}" for part in ("gate", "up", "down")},
}
_KINDS = {"Q8_0": "int8", "Q4_0": "int4"}  # tensor types that are kept as they are -> ours
BLOCK = 32  # weights that share a scale
_EMBEDDING, _HEAD = "token_embd.weight", "output.weight"


def import_gguf(source: Path | str, out_dir: Path | str, *, full_size: bool = False) -> list[str]:
    """Write a GGUF file's model and tokenizer as a checkpoint, all or nothing; the kinds of its quantized layers.

    Args:
        source: a file of an architecture that is read here, tensors f32, f16, bf16, q8_0 or q4_0.
        out_dir: a directory that does not exist yet.
        full_size: write q8_0 and q4_0 as float32 weights, which can be trained, and which other programs open.

    Raises:
        UserError: a file that is not what it should be, an architecture, key, tensor or tokenizer that is not known
            here, or `out_dir` exists.
    """
    source = Path(source)
    keys, tensors = read_gguf_header(source, TOKENIZER_LISTS)
    shape, form = _architecture(keys, source)
    config = _config(shape, form, keys, tensors, source)
    tokenizer = tokenizer_from_gguf(keys, source)
    if config.tie_word_embeddings:
        tensors.pop(_HEAD, None)
    model = _read_model(config, form, tensors, source, full_size=full_size)
    special = {name: keys.get(f"tokenizer.ggml.{name}_token_id") for name in ("bos", "eos", "eot", "eom", "padding")}
    ends = [special[name] for name in ("eos", "eot", "eom") if special[name] is not None]
    ids: dict[str, Any] = {"bos_token_id": special["bos"]}
    ids["eos_token_id"] = ends if len(ends) > 1 else ends[0] if ends else None
    if keys.get(NO_BEGIN_TOKEN) is True:
        del ids["bos_token_id"]
    write_import(
        model,
        tokenizer,
        out_dir,
        source=source,
        token_ids={name: value for name, value in ids.items() if value is not None},
        copied=_templates(keys, source),
        sampling={"pad_token_id": special["padding"]} if special["padding"] is not None else None,
    )
    return sorted({record["kind"] for record in describe_swaps(model)})


def _templates(keys: dict[str, Any], source: Path) -> dict[str, bytes]:
    """The chat templates as files: the default one, and others by name."""
    files = {}
    for key in [key for key in keys if key == CHAT_TEMPLATE or key.startswith(f"{CHAT_TEMPLATE}.")]:
        name = key.removeprefix(CHAT_TEMPLATE).removeprefix(".")
        if not isinstance(keys[key], str):
            raise _bad(source, f"{key[:100]} is not one text")
        if not re.fullmatch(r"\w{0,100}", name, re.ASCII):
            raise _bad(source, f"{key[:100]!r} names a chat template by more than letters, digits and underscores")
        if keys[key]:
            files[f"{MORE_TEMPLATES}/{name}.jinja" if name else CHAT_TEMPLATE_FILE] = keys[key].encode()
    return files


def _architectures() -> dict[str, tuple[type[DecoderConfig], GgufForm]]:
    return {form.name: (shape, form) for shape in SHAPES.values() for form in shape.gguf_imports}


def _architecture(keys: dict[str, Any], source: Path) -> tuple[type[DecoderConfig], GgufForm]:
    """The shape that a file's architecture is read as."""
    name, known = keys.get("general.architecture"), _architectures()
    if not isinstance(name, str) or name not in known:
        raise _bad(source, f"a GGUF file of architecture {str(name)[:40]!r} is not imported")
    return known[name]


def _config(
    shape: type[DecoderConfig], form: GgufForm, keys: dict[str, Any], tensors: dict[str, GgufTensor], source: Path
) -> DecoderConfig:
    architecture = form.name
    own = {
        name.removeprefix(f"{architecture}."): value
        for name, value in keys.items()
        if name.startswith(f"{architecture}.")
    }
    scaling = _rope_scaling(own, source)
    if missing := _SHAPE.keys() - _OPTIONAL - own.keys():
        raise _bad(source, f"it lacks the key {architecture}.{min(missing)}")
    if unknown := own.keys() - _SHAPE.keys() - _REPEATED.keys():
        raise _bad(source, f"the key {architecture}.{min(unknown)[:60]} is not known here")
    embedding = tensors.get(_EMBEDDING)
    if embedding is None:
        raise _bad(source, f"it has no tensor {_EMBEDDING}")
    values = {ours: _decimal(own[theirs]) for theirs, ours in _SHAPE.items() if theirs in own}
    values.setdefault("num_key_value_heads", values["num_attention_heads"])
    values |= {
        "vocab_size": embedding.shape[0],
        "tie_word_embeddings": _HEAD not in tensors or (form.copies_tied_head and _is_copied_head(tensors, source)),
        "attention_bias": "blk.0.attn_output.bias" in tensors,
        "rope_scaling": scaling,
    }
    if "blk.0.attn_q.bias" in tensors and not values["attention_bias"] and "qkv_bias" in shape.model_fields:
        values["qkv_bias"] = True
    try:
        config = shape.model_validate(values, strict=True)
    except ValidationError as error:
        problem = error.errors()[0]
        name = ".".join(map(str, problem["loc"]))
        raise _bad(
            source, f"its keys describe no model: {name} {problem['msg'].removeprefix('Value error, ')}"
        ) from None
    if ROPE_FACTORS in tensors:
        config = _with_factors(config, form, keys, tensors, source)
    for theirs, ours in _REPEATED.items():
        if own.get(theirs, getattr(config, ours)) != getattr(config, ours):
            raise _bad(source, f"{architecture}.{theirs} is not the {ours} {getattr(config, ours)} of the rest")
    if config.num_hidden_layers > len(tensors):  # before so many layers are built
        raise _bad(source, f"it claims {config.num_hidden_layers} layers, but has {len(tensors)} tensors")
    return config


def _is_copied_head(tensors: dict[str, GgufTensor], source: Path) -> bool:
    """Whether the head is the embedding, written twice for a loader that wants both."""
    head, embedding = tensors[_HEAD], tensors[_EMBEDDING]
    same_form = (head.shape, head.type) == (embedding.shape, embedding.type)
    return same_form and np.array_equal(read_gguf_tensor(source, head), read_gguf_tensor(source, embedding))


def _rope_scaling(own: dict[str, Any], source: Path) -> dict[str, Any] | None:
    """A scaled RoPE in the shape's words; its keys are taken out of `own`."""
    kind = own.pop("rope.scaling.type", "none")
    found = {ours: _decimal(own.pop(theirs)) for theirs, ours in _SCALING.items() if theirs in own}
    if kind == "none":
        return None
    if kind not in ("linear", "yarn"):
        raise _bad(source, f"its RoPE is scaled by {str(kind)[:40]!r}, which is not computed here")
    return {"rope_type": kind, **found}


def _with_factors(
    config: DecoderConfig, form: GgufForm, keys: dict[str, Any], tensors: dict[str, GgufTensor], source: Path
) -> DecoderConfig:
    """The shape with the scaled RoPE that a tensor of factors stands for, which is taken out of `tensors`."""
    tensor = tensors.pop(ROPE_FACTORS)
    if config.rope_scaling is not None or form.name != "llama":
        raise _bad(
            source, f"its RoPE is scaled by factors ({ROPE_FACTORS}), and that is not computed here beside the rest"
        )
    if math.prod(tensor.shape) != config.head_dim // 2:
        raise _bad(source, f"tensor {ROPE_FACTORS} has shape {list(tensor.shape)}, not a factor for each pair")
    factors = torch.from_numpy(read_gguf_tensor(source, tensor)).flatten()
    numbers = numbers_of_factors(factors, keys.get(ROPE_NUMBERS), head_dim=config.head_dim, theta=config.rope_theta)
    if numbers is None:
        raise _bad(source, f"its RoPE is scaled by factors ({ROPE_FACTORS}) that no numbers known here give")
    return type(config).model_validate({**config.model_dump(), "rope_scaling": numbers})


def _decimal(value: Any) -> Any:
    """A float32 of the file as the decimal number that was meant: 1e-6 and not 9.99999997e-07."""
    return float(str(np.float32(value))) if isinstance(value, float) else value


@torch.no_grad()
def _read_model(
    config: DecoderConfig, form: GgufForm, tensors: dict[str, GgufTensor], source: Path, *, full_size: bool
) -> CausalLM:
    """The model, once every tensor is there in its shape and no other is."""
    parameters = empty_model(config, device="meta").named_parameters()
    expected = {_gguf_name(name, form): tuple(parameter.shape) for name, parameter in parameters}
    for what, names in (("lacks", expected.keys() - tensors.keys()), ("should not have", tensors.keys() - expected)):
        if names:
            raise _bad(
                source, f"it {what} the tensor {min(names)[:60]}" + f" and {len(names) - 1} more" * (len(names) > 1)
            )
    for name, shape in expected.items():
        if tensors[name].shape != shape:
            raise _bad(source, f"tensor {name} has shape {list(tensors[name].shape)}, its keys ask for {list(shape)}")
    model = empty_model(config)
    if not full_size:
        _keep_blocks(model, form, tensors, source)
    for name, parameter in model.named_parameters():
        weight = torch.from_numpy(read_gguf_tensor(source, tensors[_gguf_name(name, form)]))
        turned = form.is_interleaved and is_rotated(name)
        parameter.copy_(half_split(weight, config.head_dim) if turned else weight)
    return model


def _keep_blocks(model: CausalLM, form: GgufForm, tensors: dict[str, GgufTensor], source: Path) -> None:
    """Swap the layers whose matrices are quantized in the file, and give them its integers and scales."""
    kinds = {
        name: _KINDS.get(tensors[_gguf_name(name, form)].type) for name, p in model.named_parameters() if p.ndim == 2
    }
    layers = {name.removesuffix(".weight"): kind for name, kind in kinds.items() if kind is not None}
    apply_swaps(
        model,
        [
            {"kind": kind, "group_size": BLOCK, "names": names}
            for kind in _KINDS.values()
            if (names := [name for name, its in layers.items() if its == kind])
        ],
    )
    for name in layers:
        tensor = tensors[_gguf_name(f"{name}.weight", form)]
        integers, scale = map(torch.from_numpy, read_gguf_blocks(source, tensor))
        if form.is_interleaved and is_rotated(f"{name}."):
            integers, scale = (half_split(part, model.config.head_dim) for part in (integers, scale))
        model.get_submodule(name).set_to(integers, scale)  # ty: ignore[not-callable]


def _gguf_name(name: str, form: GgufForm) -> str:
    place, _, suffix = name.rpartition(".")
    if not place.startswith("model.layers."):
        return f"{_TENSORS[place]}.{suffix}"
    layer, _, part = place.removeprefix("model.layers.").partition(".")
    return f"blk.{layer}.{form.names.get(part) or _TENSORS[part]}.{suffix}"


def _bad(where: Path, what: str) -> UserError:
    known = ", ".join(_architectures())
    remedy = f"import the Hugging Face directory the file was made from; of GGUF, models of {known} are read"
    return UserError(what, where=str(where), remedy=remedy, exit_code=ExitCode.BAD_DATA)
