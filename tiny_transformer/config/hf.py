"""Reading the shape of a model from a Hugging Face `config.json`."""

from __future__ import annotations

from collections.abc import Iterable
from reprlib import repr as short
from typing import Any

from pydantic import TypeAdapter, ValidationError

from tiny_transformer.config.shapes import HF_SHAPES, ModelConfig
from tiny_transformer.config.shapes.decoder import HfForm
from tiny_transformer.config.shapes.rope import ROPE_TYPES, RopeScaling
from tiny_transformer.errors import ExitCode, UserError

# Keys that do not change what a forward pass computes.
_HARMLESS = {
    *("model_type", "architectures", "transformers_version", "dtype", "torch_dtype", "_name_or_path"),
    *("bos_token_id", "eos_token_id", "pad_token_id", "id2label", "label2id", "problem_type", "pretraining_tp"),
    *("use_cache", "return_dict", "output_attentions", "output_hidden_states", "chunk_size_feed_forward"),
    *("attention_dropout", "hidden_dropout", "is_encoder_decoder", "is_llama_config", "transformers.js_config"),
    *("output_router_logits", "mamba_ssm_dtype"),
}
_MOST_ENTRIES = 4096  # of a list; each wrong one would be told at length
# Keys that `_rope` judges.
_ROPE = {"rope_theta", "rope_parameters", "rope_scaling", "partial_rotary_factor"}

_SCALING: TypeAdapter[Any] = TypeAdapter(RopeScaling)
_REMEDY = "fetch config.json again; if you wrote it, give that key a value that this model_type has"


def config_from_hf(hf: dict[str, Any], where: str) -> ModelConfig:
    """The shape that a Hugging Face `config.json` describes; absent keys take Hugging Face's class defaults, not ours.

    Args:
        hf: the parsed file.
        where: the file's name, for messages.

    Raises:
        UserError: a model type, key or value that is not computed here, or one out of range. Nothing is passed over in
            silence but the keys of `_HARMLESS`.
    """
    model_type = hf.get("model_type")
    if not isinstance(model_type, str) or model_type not in HF_SHAPES:
        raise _bad_config(
            f"model_type {short(model_type)} is not supported", where, f"supported: {', '.join(HF_SHAPES)}"
        )
    shape, form = HF_SHAPES[model_type], HF_SHAPES[model_type].hf_forms[model_type]
    _check_keys(hf, form, where)
    values = {key: hf.get(key, default) for key, default in form.defaults.items()}
    values |= _rope(hf, form, where)
    if values["vocab_size"] is None:
        raise _bad_config("vocab_size is null", where, "the number of rows of model.embed_tokens.weight")
    if values["num_key_value_heads"] is None:
        values["num_key_value_heads"] = values["num_attention_heads"]
    try:
        values = shape.from_hf_values(model_type, values)
        # Strictly, as the readers of this file differ over a 4.0 or a true where a whole number belongs.
        return shape.model_validate(  # ty: ignore[invalid-explicit-return]
            {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}, strict=True
        )
    except ValidationError as error:
        first = error.errors()[0]
        problem = (
            f"{'.'.join(map(str, first['loc']))} {short(first['input'])}: {first['msg']}"
            if first["loc"]
            else first["msg"]
        )
        raise _bad_config(problem.replace("Value error, ", ""), where, _REMEDY) from None
    except ValueError as error:
        raise _bad_config(str(error), where, _REMEDY) from None


def _check_keys(hf: dict[str, Any], form: HfForm, where: str) -> None:
    """Refuse keys and values that would change what is computed, and that are not known here."""
    for key, value in form.only.items():
        given = hf.get(key, value)
        if given != value or type(given) is not type(value):  # 0 is not false
            raise _bad_config(
                f"{key} {short(hf[key])} is not supported", where, f"for {hf['model_type']} only {key} {value!r}"
            )
    for key, value in hf.items():
        if isinstance(value, list) and len(value) > _MOST_ENTRIES and key not in _HARMLESS:
            raise _bad_config(f"{key[:40]} has {len(value):,} entries", where, f"at most {_MOST_ENTRIES:,}")
    if unknown := hf.keys() - form.defaults.keys() - form.only.keys() - _ROPE - _HARMLESS:
        raise _bad_config(
            f"{hf['model_type']} with {_some(unknown)} is not supported", where, "remove keys that have no effect"
        )


def _rope(hf: dict[str, Any], form: HfForm, where: str) -> dict[str, Any]:
    """RoPE base, the rotated fraction of a head, and scaling, at the top level (transformers 4) or in a mapping (5)."""
    rope = _rope_mapping(hf, where)
    kind = rope.pop("rope_type", "default")
    if kind not in ("default", *ROPE_TYPES):
        known = ", ".join(ROPE_TYPES)
        raise _bad_config(f"rope_type {short(kind)} is not supported", where, f"rope_type default, {known}")
    found = {}
    for name, default in (("rope_theta", 10_000.0), ("partial_rotary_factor", form.rotary_share)):
        top = hf.get(name, default)
        found[name] = rope.pop(name, top)
        if name in hf and top != found[name]:
            # transformers 5 would use one and 4.57 the other
            raise _bad_config(
                f"{name} {short(top)} and the {short(found[name])} of rope_parameters disagree",
                where,
                "make them equal",
            )
    rope = {name: value for name, value in rope.items() if name not in form.rope_extras}
    if kind == "default":
        if rope:
            raise _bad_config(f"RoPE with {_some(rope)} is not supported", where, "only rope_type and rope_theta")
        return found
    if kind != "linear":
        length = hf.get("max_position_embeddings", form.defaults["max_position_embeddings"])
        rope.setdefault("original_max_position_embeddings", length)
    try:
        return {**found, "rope_scaling": _SCALING.validate_python({"rope_type": kind, **rope}, strict=True)}
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][-1])[:40] if first["loc"] else kind
        problem = "is not supported" if first["type"] == "extra_forbidden" else first["msg"].lower()
        raise _bad_config(f"RoPE with rope_type {kind}: {name} {problem}", where, _REMEDY) from None


def _rope_mapping(hf: dict[str, Any], where: str) -> dict[str, Any]:
    """`rope_parameters` and `rope_scaling` in one; where both are there they must say the same."""
    both: dict[str, Any] = {}
    for name in ("rope_parameters", "rope_scaling"):
        given = hf.get(name) or {}
        if not isinstance(given, dict):
            raise _bad_config(f"{name} {short(given)} is not a mapping", where, "leave it out for plain RoPE")
        given = {"rope_type" if key == "type" else key: value for key, value in given.items()}
        for key in both.keys() & given.keys():
            if both[key] != given[key]:
                raise _bad_config(
                    f"{key} {short(both[key])} of rope_parameters and {short(given[key])} of rope_scaling disagree",
                    where,
                    "make them equal",
                )
        both |= given
    return both


def _some(keys: Iterable[str]) -> str:
    """The first keys, cut short where a hostile file has many or long ones."""
    names = sorted(keys)
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(name[:40] for name in names[:3]) + more


def _bad_config(what: str, where: str, remedy: str) -> UserError:
    return UserError(what, where=where, remedy=remedy, exit_code=ExitCode.BAD_DATA)
