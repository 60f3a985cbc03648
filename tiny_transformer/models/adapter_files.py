"""The files of low-rank adapters: PEFT's `adapter_config.json` and `adapter_model.safetensors`.

PEFT opens what is written here, and what PEFT writes is opened here, if it is additions to linear layers, with
rank-stabilized scaling or without, and with a learnt length of each row (DoRA) or without; and rows of new tokens in
the tables of words (`models/token_rows.py`). Everything else is refused by name. Source of the format: the PEFT
library's saved directories.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from reprlib import repr as short
from typing import TYPE_CHECKING, Any, cast

import torch

from tiny_transformer.errors import ExitCode, UserError
from tiny_transformer.models.adapter_base import Base, place_seen_from, write_base
from tiny_transformer.models.adapters import HALVES, adapters_of, base_fingerprint, is_adapter
from tiny_transformer.models.building import tensors_of
from tiny_transformer.models.config_file import read_json, read_small_file
from tiny_transformer.models.find import find_checkpoint
from tiny_transformer.models.safetensors_file import encode, open_checked, reading
from tiny_transformer.models.swaps import (
    EMBEDDING,
    HEAD,
    Record,
    add_lora,
    apply_swaps,
    describe_swaps,
    learn_rows,
    write_swaps,
)
from tiny_transformer.models.token_rows import KEY, ROWS, as_peft_has_it, grow_vocabulary, learnt_tokens, trained_tokens
from tiny_transformer.storage.commit import Staging, write_into
from tiny_transformer.storage.reading import check_inside
from tiny_transformer.storage.runs import holds_a_run

if TYPE_CHECKING:
    from tiny_transformer.config.schema import LoraSection
    from tiny_transformer.models.contract import CausalLM

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
BASE_KEY = "tiny_transformer_base"  # in the header of the weights: what they were trained on
_PREFIX = "base_model.model."
_TOKENS, _TABLE = "token_adapter.trainable_tokens_delta", "token_adapter.base_layer.weight"
_NAME = re.compile(
    r"base_model\.model\.(.+\.(lora_[AB]\.weight|lora_magnitude_vector)|(model\.embed_tokens|lm_head)\."
    + f"({re.escape(_TOKENS)}|{re.escape(_TABLE)}))"
)
# What a configuration of PEFT must say, or leave out, to be additions to linear layers and nothing else. PiSSA, OLoRA,
# CorDA, LoftQ and LoRA-GA are absent from the beginnings: they take out of the base what the adapters begin with.
_PLAIN: dict[str, tuple[Any, ...]] = {
    "bias": ("none", None),
    "init_lora_weights": (True, False, None, "gaussian", "eva", "orthogonal", "mica"),
}
# What decides nothing once an adapter is trained, or is read below. Any further key must be empty: it asks for another
# computation, such as aLoRA's that begins at certain tokens.
_READ_OR_IDLE = (
    *("peft_type", "task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision"),
    *("inference_mode", "runtime_config", "r", "lora_alpha", "lora_dropout", "use_rslora", "use_dora"),
    *("target_modules", "target_parameters", "exclude_modules", "layers_to_transform", "layers_pattern"),
    *("loftq_config", "eva_config", "corda_config", "lora_ga_config", "megatron_core", "qalora_group_size"),
    KEY,
)


def save_adapter(
    model: CausalLM,
    directory: Staging | Path | str,
    weights: Mapping[str, torch.Tensor],
    *,
    lora: LoraSection,
    base: Base,
    **token_ids: int | list[int],
) -> None:
    """Write the adapters of a model as PEFT does, what they stand on, and where texts end.

    Args:
        model: with adapters of one rank.
        directory: existing, or what `storage.publish` gives.
        weights: the model's tensors by name.
        lora: how the adapters were asked for.
        base: the model without them.
        token_ids: see `save_model`.
    """
    layers, tokens = dict(adapters_of(model)), learnt_tokens(model)
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": place_seen_from(Path.cwd(), base.path),
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "lora_dropout": lora.dropout,
        "use_rslora": lora.rslora,
        "use_dora": lora.use_dora,
        "target_modules": _targets(model, list(layers)),
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        **({KEY: as_peft_has_it(tokens)} if tokens else {}),
    }
    tensors = {_saved_name(name): weights[name] for name in tensors_of(model) if is_adapter(name)}
    header = {"format": "pt", BASE_KEY: base_fingerprint(weights, tokens)}
    dtype = str(model.model.norm.weight.dtype).removeprefix("torch.")
    write_base(directory, base, write_swaps(model.config.to_hf(dtype=dtype, **token_ids), describe_swaps(model)))
    write_into(directory, CONFIG, json.dumps(config, indent=2) + "\n")
    write_into(directory, WEIGHTS, encode(tensors, header))


def _saved_name(name: str) -> str:
    """What PEFT calls a tensor of ours."""
    if name.endswith(f".{ROWS}"):
        return _PREFIX + name.removesuffix(ROWS) + _TOKENS
    return _PREFIX + name + (".weight" if name.endswith(HALVES) else "")


@torch.no_grad()
def load_adapter(model: CausalLM, directory: Path | str) -> None:
    """Put the adapters of a directory on a model, in place: one that PEFT saved, a checkpoint or a run of ours.

    Raises:
        UserError: not a directory of adapters, no plain LoRA, or adapters for another model.
    """
    directory = _place_of(Path(directory))
    if any(adapters_of(model)):
        raise UserError(
            "the model has adapters already, and takes no others on top",
            where=str(directory),
            remedy="leave these out, or make an ordinary model of it first (tiny-transformer merge)",
        )
    config = read_adapter_config(directory)
    tokens = trained_tokens(config, str(directory / CONFIG), is_tied=model.config.tie_word_embeddings)
    tensors, header = _read_tensors(directory)
    trained_on = header.get(BASE_KEY)
    if trained_on is not None and trained_on != base_fingerprint(dict(model.named_parameters()), tokens):
        raise _another(directory, "its weights are not those that the adapters were trained on")
    rank, alpha = config["r"], float(config.get("lora_alpha", 8))
    alpha = alpha * math.sqrt(rank) if config.get("use_rslora") else alpha
    _make_room(model, tokens, tensors, directory)
    names = list(dict.fromkeys(name.rpartition(".")[0] for name in tensors if not name.endswith(f".{ROWS}")))
    try:
        learn_rows(model, tokens)
        add_lora(model, names, rank=rank, alpha=alpha, kind="dora" if config.get("use_dora") else "lora")
    except UserError as error:
        raise _another(directory, error.what) from None
    _fill(model, tensors, directory)


@torch.no_grad()
def put_on_base(base: CausalLM, directory: Path, records: list[Record]) -> None:
    """Put adapters that were saved with their `base.json` on their base, in place.

    Args:
        base: of ordinary layers; some become integers where the records say so.
        directory: of the adapters.
        records: which layers are swapped, see `models.swaps`.

    Raises:
        UserError: records and adapters do not belong together, or are damaged.
    """
    apply_swaps(base, records, filled=True)
    _fill(base, _read_tensors(directory)[0], directory)


def _read_tensors(directory: Path) -> tuple[dict[str, torch.Tensor], Mapping[str, str]]:
    """The tensors of adapters by our names, and what the header says."""
    path = directory / WEIGHTS
    check_inside(path)
    with open_checked(path) as opened, reading(path):
        header = opened.metadata() or {}
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - it is no mapping
    wrong = next((name for name in tensors if not _NAME.fullmatch(name)), None)
    if wrong is not None or not tensors:
        raise _bad(f"{wrong or 'an empty file'} is no part of an addition to a linear layer", path)
    return {_our_name(name): tensor for name, tensor in tensors.items()}, header


def _our_name(name: str) -> str:
    """What we call a tensor of PEFT's."""
    name = name.removeprefix(_PREFIX)
    for theirs, ours in ((_TOKENS, ROWS), (_TABLE, "weight")):
        if name.endswith(theirs):
            return name.removesuffix(theirs) + ours
    return name.removesuffix(".weight")


def _make_room(
    model: CausalLM, tokens: Mapping[str, list[int]], tensors: dict[str, torch.Tensor], directory: Path
) -> None:
    """Give a base further rows, in place, for the tokens that adapters were taught. Where PEFT was given a larger
    vocabulary it writes whole tables besides, and what a tied head shares twice; both are taken out of `tensors`: what
    is beyond the base is theirs."""
    rows = tensors.get(f"{EMBEDDING}.{ROWS}")
    twice = tensors.pop(f"{HEAD}.{ROWS}", None) if model.config.tie_word_embeddings else None
    if twice is not None and (rows is None or not torch.equal(twice, rows)):
        raise _another(directory, "its head is its embedding, and theirs is not")
    known = model.config.known_vocab_size
    tables = {name: tensors.pop(f"{name}.weight") for name in (EMBEDDING, HEAD) if f"{name}.weight" in tensors}
    wanted = max([known, *map(len, tables.values()), *(max(ids) + 1 for ids in tokens.values())])
    needed = {EMBEDDING} if model.config.tie_word_embeddings else {EMBEDDING, HEAD}
    taught = {name: known + sum(i >= known for i in tokens.get(name, ())) for name in needed}  # no id comes twice
    if any((len(tables[name]) if name in tables else taught[name]) != wanted for name in needed):
        raise _another(directory, f"it has {known:,} tokens, and they train {short(dict(tokens))}")
    grow_vocabulary(model, wanted)
    for name, table in tables.items():
        own = cast(torch.Tensor, model.get_submodule(name).weight)
        if table.shape != own.shape or not torch.equal(table[:known].to(own), own[:known]):
            raise _another(directory, f"the words that it knows are others in their {name}")
        own[known:] = table[known:]


def _fill(model: CausalLM, tensors: Mapping[str, torch.Tensor], directory: Path) -> None:
    """Copy the tensors of adapters; the model has those that they need, and no others."""
    targets = {name: tensor for name, tensor in tensors_of(model).items() if is_adapter(name)}
    for name in sorted(targets.keys() | tensors.keys()):
        found, target = tensors.get(name), targets.get(name)
        if target is None:
            raise _another(directory, f"it has no place for {name}")
        if found is None or found.shape != target.shape:
            shape = "missing" if found is None else f"of shape {list(found.shape)}"
            raise _another(directory, f"{name} is {shape}, and the layer needs {list(target.shape)}")
        target.copy_(found)


def _place_of(path: Path) -> Path:
    """Where adapters are: in the directory itself, in that of a checkpoint, or in a run's best; a run by its name."""
    if not path.exists() or holds_a_run(path):
        path = find_checkpoint(path)[0]
    return path / "adapter" if (path / "adapter" / CONFIG).is_file() else path


def read_adapter_config(directory: Path) -> dict[str, Any]:
    """A checked `adapter_config.json`.

    Raises:
        UserError: it is not there, damaged, or of another kind than additions to linear layers.
    """
    path = directory / CONFIG
    check_inside(path)
    if not path.is_file():
        raise UserError(f"{directory} holds no adapters: it has no {CONFIG}", remedy="give a directory that PEFT saved")
    read_small_file(path)
    config = read_json(path)
    if config.get("peft_type") != "LORA":
        raise _bad(f"adapters of type {config.get('peft_type')!r:.40} are not computed here, only LORA", path)
    for key in [key for key in config if key not in _READ_OR_IDLE]:
        is_plain = config[key] in _PLAIN[key] if key in _PLAIN else not config[key]
        if not is_plain:
            raise _bad(f"{key[:40]} = {config[key]!r:.60} is not computed here", path)
    rank, alpha = config.get("r"), config.get("lora_alpha", 8)
    if type(rank) is not int or not 0 < rank < 2**16 or not isinstance(alpha, int | float):
        raise _bad(f"r = {rank!r:.40} and lora_alpha = {alpha!r:.40} are no rank and no number", path)
    return config


def _targets(model: CausalLM, names: list[str]) -> list[str]:
    """The last parts of the names, where all layers called so have adapters; else the names."""
    ends = {name.rpartition(".")[2] for name in names}
    others = {
        name.rpartition(".")[2]
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and not name.endswith(".base") and name not in names
    }
    return sorted(names if ends & others else ends)


def _another(directory: Path, what: str) -> UserError:
    return UserError(
        f"these adapters are for another model: {what}",
        where=str(directory),
        remedy="name the model that they were trained on",
        exit_code=ExitCode.BAD_DATA,
    )


def _bad(what: str, where: Path) -> UserError:
    return UserError(
        what,
        where=str(where),
        remedy="merge them in peft (merge_and_unload), and open that",
        exit_code=ExitCode.BAD_DATA,
    )
