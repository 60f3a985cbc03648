"""Layers swapped for others, quantized or frozen with something small that learns; and how that is written down.

A model says itself which of its layers keep all their bits (`KEEP_BITS`). What was swapped is read off the model when
it is saved, and stands in config.json, so that the same layers are swapped before weights are loaded. Such a directory
has a `model_type` that no other program knows, and its shape one level deeper: others refuse it, and none takes
integers for weights. `restore_layers` makes an ordinary model of it again. Torch is imported when layers are touched.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from reprlib import repr as short
from typing import TYPE_CHECKING, Any, cast

from tiny_transformer.errors import ExitCode, UserError

if TYPE_CHECKING:
    import torch
    from torch import nn

    from tiny_transformer.models.contract import CausalLM

MODEL_TYPE = "tiny_transformer_swapped"
EMBEDDING, HEAD = "model.embed_tokens", "lm_head"
INT4_GROUP = 32
MAX_RECORDS, MAX_NAMES, MAX_NAME, MAX_TOKEN_IDS = 100, 1000, 200, 4096
Record = dict[str, Any]
# What a record of each kind says besides `kind` and `names`: key -> (types, lowest, highest).
_NUMBERS: dict[str, dict[str, tuple[tuple[type, ...], float, float]]] = {
    "int8": {"group_size": ((int, type(None)), 1, 2**20)},
    "int4": {"group_size": ((int, type(None)), 2, 2**20)},
    "lora": {"rank": ((int,), 1, 2**16), "alpha": ((int, float), 0, 1e6), "dropout": ((int, float), 0, 1)},
}
_NUMBERS["dora"] = _NUMBERS["lora"]
_NUMBERS["rows"] = {}
_LISTS: dict[str, tuple[str, ...]] = {"rows": ("token_ids",)}  # lists that a record of a kind has besides
ADDITIONS = ("lora", "dora")  # kinds that come on top of a linear layer
LEARNING = (*ADDITIONS, "rows")  # kinds of adapters; the others hold a layer's weights in integers


# --- in a model


def quantize_layers(model: CausalLM, kind: str, *, group_size: int | None = None) -> list[str]:
    """Swap the linear layers of a model, in place, for quantized ones, but for those that keep their bits; their names.

    Args:
        model: of ordinary layers.
        kind: `int8` or `int4`.
        group_size: weights that share a scale. None: with int8 a whole row, with int4 32.

    Raises:
        UserError: another kind, or a group size that it cannot have.
    """
    if kind not in ("int8", "int4"):
        raise UserError(f"no quantization is called {short(kind)}", remedy="int8 or int4")
    names = [
        name for name in _linear_names(model) if not any(fnmatchcase(name, pattern) for pattern in model.KEEP_BITS)
    ]
    group_size = INT4_GROUP if kind == "int4" and group_size is None else group_size
    _swap(model, _possible({"kind": kind, "group_size": group_size}), names, filled=True)
    return names


def quantize_words(model: CausalLM, kind: str = "int8", *, group_size: int | None = None) -> list[str]:
    """Swap the embedding and the head, in place, for tables of integers; the names of those that were ordinary.

    A tied head stays tied: it reads the embedding's integers. Arguments as in `quantize_layers`.
    """
    names = [EMBEDDING] if model.config.tie_word_embeddings else [EMBEDDING, HEAD]
    _swap(model, _possible({"kind": kind, "group_size": group_size}), names, filled=True)
    return names


def add_lora(
    model: CausalLM,
    patterns: Iterable[str],
    *,
    rank: int,
    alpha: float,
    dropout: float = 0.0,
    kind: str = "lora",
    generator: torch.Generator | None = None,
) -> list[str]:
    """Put a low-rank addition beside each linear layer whose name ends in one of the patterns; the layers' names.

    Args:
        model: its layers may be quantized already. Swapped in place; what is not swapped stays as it is.
        patterns: such as `q_proj`, `*_proj` or `layers.0.*`: the end of a name, from a dot on.
        rank, alpha, dropout: see `layers.linear.LoRALinear`.
        kind: `lora`, or `dora`: see `layers.dora`.
        generator: draws the first half of each addition; None: seed 0.

    Raises:
        UserError: a pattern that no layer has, or a number that is not possible.
    """
    import torch

    record = _possible({"kind": kind, "rank": rank, "alpha": alpha, "dropout": dropout})
    known, names = _linear_names(model), []
    for pattern in patterns:
        found = [name for name in known if fnmatchcase(name, pattern) or fnmatchcase(name, f"*.{pattern}")]
        if not found:
            ends = sorted({name.rpartition(".")[2] for name in known})
            raise UserError(f"no linear layer is named {pattern}", remedy=f"a name's end, such as {', '.join(ends)}")
        names += found
    names = list(dict.fromkeys(names))
    _swap(model, record, names, filled=True)
    generator = generator or torch.Generator().manual_seed(0)
    for name in names:
        model.get_submodule(name).start(generator)  # ty: ignore[not-callable]
    return names


def learn_rows(model: CausalLM, token_ids: Mapping[str, Sequence[int]]) -> None:
    """Let some rows of the tables of words learn, in place, and freeze the others; at first nothing changes. A tied
    head follows its embedding.

    Args:
        model: with tables of the ordinary kind.
        token_ids: `EMBEDDING` or `HEAD` -> the tokens whose rows learn.

    Raises:
        UserError: tokens that the model does not have, or a table that is swapped already.
    """
    for name, ids in token_ids.items():
        _swap(model, _possible({"kind": "rows", "token_ids": list(ids)}), [name], filled=True)


def restore_layers(model: CausalLM) -> None:
    """Make all swapped layers ordinary ones again, in place: integers become weights, additions are added."""
    from torch import nn

    from tiny_transformer.layers.linear import LoRALinear, QuantizedEmbedding, QuantizedLinear
    from tiny_transformer.layers.tied_head import TiedHead
    from tiny_transformer.layers.token_rows import LearntRows

    dtype = model.model.norm.weight.dtype
    for name, module in list(model.named_modules()):
        if isinstance(module, QuantizedEmbedding):
            table = nn.Embedding(module.num_embeddings, module.embedding_dim, device="meta")
            table.weight = nn.Parameter(module.weight_in(dtype))
            model.set_submodule(name, table)
        if isinstance(module, LearntRows):
            table = module.base
            table.weight = nn.Parameter(module.merged().detach())
            model.set_submodule(name, table)
        if isinstance(module, TiedHead):  # comes after its table
            weight = cast(nn.Parameter, model.get_submodule(EMBEDDING).weight)
            head = nn.Linear(weight.shape[1], weight.shape[0], False, device="meta")
            head.weight = weight
            model.set_submodule(name, head)
        if isinstance(module, QuantizedLinear):
            weight = module.weight_in(dtype)
            linear = nn.Linear(module.in_features, module.out_features, module.bias is not None, device="meta")
            linear.weight = nn.Parameter(weight)
            if module.bias is not None:
                linear.bias = module.bias
            model.set_submodule(name, linear)
    for name, module in list(model.named_modules()):
        if isinstance(module, LoRALinear):
            linear = cast(nn.Linear, module.base)  # the loop above has made it one
            linear.weight = nn.Parameter(module.merged().detach().to(linear.weight.dtype))
            model.set_submodule(name, linear)
    for parameter in model.parameters():
        parameter.requires_grad_(True)


def _linear_names(model: CausalLM) -> list[str]:
    """Names of the linear layers, of whatever kind."""
    from torch import nn

    from tiny_transformer.layers.linear import QuantizedLinear

    modules = model.named_modules()
    return [name.removesuffix(".base") for name, m in modules if isinstance(m, (nn.Linear, QuantizedLinear))]


def _swap(model: CausalLM, record: Mapping[str, Any], names: Iterable[str], *, filled: bool) -> None:
    """Swap layers by name; `filled`: they compute what the old ones did."""
    from torch import nn

    from tiny_transformer.layers.dora import DoRALinear
    from tiny_transformer.layers.linear import LoRALinear, QuantizedEmbedding, QuantizedLinear
    from tiny_transformer.layers.tied_head import TiedHead
    from tiny_transformer.layers.token_rows import RowsEmbedding, RowsHead

    is_addition, is_rows = record["kind"] in ADDITIONS, record["kind"] == "rows"
    for name in names:
        old = model.get_submodule(name)
        if is_rows and isinstance(old, (nn.Embedding, nn.Linear)):
            if (highest := max(record["token_ids"])) >= old.weight.shape[0]:
                raise _bad(f"{name} has {old.weight.shape[0]:,} rows, and none for token {highest:,}")
            ids = record["token_ids"]
            new: nn.Module = RowsEmbedding(old, ids) if isinstance(old, nn.Embedding) else RowsHead(old, ids)
            if filled:
                new.start()
        elif is_addition and isinstance(old, (nn.Linear, QuantizedLinear)):
            weight = model.model.norm.weight
            numbers = {key: record[key] for key in ("rank", "alpha", "dropout")}
            added = DoRALinear if record["kind"] == "dora" else LoRALinear
            new = added(old, dtype=weight.dtype, device=weight.device, **numbers)
        elif not (is_addition or is_rows) and isinstance(old, nn.Linear):
            new = (QuantizedLinear.of if filled else QuantizedLinear.like)(old, **_form(record))
        elif not (is_addition or is_rows) and isinstance(old, nn.Embedding):
            new = (QuantizedEmbedding.of if filled else QuantizedEmbedding.like)(old, **_form(record))
        else:
            raise UserError(
                f"{name} cannot be swapped for {record['kind']}: it is a {type(old).__name__} already",
                remedy="quantize first, then add, each once",
            )
        model.set_submodule(name, new.train(old.training))
        if isinstance(new, (QuantizedEmbedding, RowsEmbedding)) and model.config.tie_word_embeddings:
            model.set_submodule(HEAD, TiedHead(new).train(old.training))


def _form(record: Mapping[str, Any]) -> dict[str, Any]:
    return {"bits": 8 if record["kind"] == "int8" else 4, "group_size": record["group_size"]}


# --- in config.json


def describe_swaps(model: CausalLM) -> list[Record]:
    """What `apply_swaps` needs to make the same layers: one record for each kind and its numbers. Empty: none."""
    from tiny_transformer.layers.dora import DoRALinear
    from tiny_transformer.layers.linear import LoRALinear, QuantizedWeight
    from tiny_transformer.layers.token_rows import LearntRows

    swapped: dict[tuple[tuple[str, Any], ...], list[str]] = {}
    for name, module in model.named_modules():
        if isinstance(module, QuantizedWeight):
            record: Record = {"kind": f"int{module.bits}", "group_size": module.group_size}
        elif isinstance(module, LoRALinear):
            numbers = {"rank": module.rank, "alpha": module.alpha, "dropout": module.dropout.p}
            record = {"kind": "dora" if isinstance(module, DoRALinear) else "lora", **numbers}
        elif isinstance(module, LearntRows):
            record = {"kind": "rows", "token_ids": module.token_ids}
        else:
            continue
        swapped.setdefault(tuple(record.items()), []).append(name.removesuffix(".base"))
    everything, records = [*_linear_names(model), EMBEDDING], []
    for numbers, names in swapped.items():
        records.append({**dict(numbers), "names": _shorten(names, everything)})
    return sorted(records, key=lambda record: record["kind"] in ADDITIONS)  # an addition comes on top


def apply_swaps(model: CausalLM, records: Iterable[Record], *, filled: bool = False) -> None:
    """Swap layers of a model, in place, as records say. The weights of the new layers are still to be loaded;
    `filled`: integers are made of the old ones, and only additions are still to be loaded.

    Raises:
        UserError: a name that the model's linear layers do not have.
    """
    linear = _linear_names(model)
    for record in records:
        known = linear if record["kind"] in ADDITIONS else [*linear, EMBEDDING]
        patterns = frozenset(record["names"])
        if unknown := patterns - {form for name in known for form in (name, _general(name))}:
            raise _bad(f"no linear layer of this model is named {short(min(unknown))}")
        names = [name for name in known if not patterns.isdisjoint((name, _general(name)))]
        _swap(model, record, names, filled=filled)


def write_swaps(hf: dict[str, Any], records: list[Record]) -> dict[str, Any]:
    """The contents of config.json for a model with these swaps: with none, those of the ordinary one."""
    if not records:
        return hf
    hf = dict(hf)
    # Without its model_type inside: transformers' classes would find the shape, and make up the weights they lack.
    return {
        "model_type": MODEL_TYPE,
        "architectures": [],
        "base_model_type": hf.pop("model_type"),
        "base_config": hf,
        "swaps": records,
    }


def read_swaps(config: dict[str, Any], where: str) -> tuple[dict[str, Any], list[Record]]:
    """What `write_swaps` put together: the ordinary config.json, and the records, each checked.

    Raises:
        UserError: a record that is not one.
    """
    if config.get("model_type") != MODEL_TYPE:
        return config, []
    hf, records = config.get("base_config"), config.get("swaps")
    if not isinstance(hf, dict) or not isinstance(records, list) or not 0 < len(records) <= MAX_RECORDS:
        raise _bad("a model with swapped layers needs base_config and swaps", where)
    for record in records:
        kind = record.get("kind") if isinstance(record, dict) else None
        if not isinstance(kind, str) or kind not in _NUMBERS:
            raise _bad(f"swaps has {short(record)}, which is of no known kind", where)
        names = record.get("names")
        keys = (*_NUMBERS[kind], *_LISTS.get(kind, ()))
        if record.keys() != {"kind", "names", *keys} or not isinstance(names, list):
            raise _bad(f"swaps of kind {kind} need names and {', '.join(keys)}, and nothing else", where)
        if impossible := _impossible(record):
            raise _bad(impossible[0], where)
        if len(names) > MAX_NAMES or not all(isinstance(n, str) and 0 < len(n) <= MAX_NAME for n in names):
            raise _bad(f"names {short(names)} are not at most {MAX_NAMES:,} names of layers", where)
    return {"model_type": config.get("base_model_type"), **hf}, records


def _impossible(record: Record) -> tuple[str, str] | None:
    """Which number of a record of a known kind it cannot have, and which it can, in words; None: all are possible."""
    kind = record["kind"]
    for key, (types, low, high) in _NUMBERS[kind].items():
        value = record[key]
        is_odd = kind == "int4" and isinstance(value, int) and value % 2 == 1
        if type(value) not in types or is_odd or (value is not None and not low <= value <= high):
            even = ", even" if kind == "int4" else ""
            return f"{key} {short(value)} is not possible in swaps of kind {kind}", f"{key}: {low:g} to {high:g}{even}"
    for key in _LISTS.get(kind, ()):
        if not are_token_ids(record[key]):
            remedy = f"{key}: at most {MAX_TOKEN_IDS:,} different ids of tokens"
            return f"{key} {short(record[key])} is not possible in swaps of kind {kind}", remedy
    return None


def are_token_ids(value: Any) -> bool:
    """Whether this is a list of different ids of tokens, none of them absurd."""
    if not isinstance(value, list) or not 0 < len(value) <= MAX_TOKEN_IDS:
        return False
    return all(type(one) is int and 0 <= one < 2**24 for one in value) and len(set(value)) == len(value)


def _possible(record: Record) -> Record:
    """The record; a number that it cannot have is refused before any layer is swapped."""
    if impossible := _impossible(record):
        raise UserError(impossible[0], remedy=impossible[1])
    return record


def _shorten(names: list[str], everything: list[str]) -> list[str]:
    """The names with `*` for every number, where that means the same layers; else as they are."""
    others = {_general(name) for name in set(everything).difference(names)}
    return list(dict.fromkeys(name if _general(name) in others else _general(name) for name in names))


def _general(name: str) -> str:
    return re.sub(r"\d+", "*", name)


def _bad(what: str, where: str = "config.json") -> UserError:
    return UserError(what, where=where, remedy="fetch config.json again, with the weights", exit_code=ExitCode.BAD_DATA)
