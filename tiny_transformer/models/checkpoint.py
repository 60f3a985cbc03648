"""A model to and from a Hugging Face directory: `config.json`, `model.safetensors` or shards, `generation_config.json`.

Everything is judged from the files' headers before memory is allocated: names, shapes and dtypes must be the config's.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import reduce
from pathlib import Path
from reprlib import repr as short
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn

from tiny_transformer.config.hf import config_from_hf
from tiny_transformer.config.shapes import ModelConfig, Qwen3NextConfig
from tiny_transformer.config.shapes.decoder import TOKEN_IDS
from tiny_transformer.errors import ExitCode, UserError
from tiny_transformer.layers.rope import rope_frequencies
from tiny_transformer.models.adapter_base import check_base, find_base, unusable_base
from tiny_transformer.models.adapter_files import put_on_base
from tiny_transformer.models.building import copy_tensors, empty_model, tensors_of
from tiny_transformer.models.config_file import (
    BASE_FILE,
    MAX_INDEX_BYTES,
    load_config,
    read_config,
    read_json,
    refuse_classifier,
)
from tiny_transformer.models.safetensors_file import DAMAGED, encode, open_checked, reading
from tiny_transformer.models.swaps import Record, apply_swaps, describe_swaps, write_swaps
from tiny_transformer.models.token_rows import grow_vocabulary
from tiny_transformer.storage.commit import Staging, write_into
from tiny_transformer.storage.reading import check_inside

if TYPE_CHECKING:
    from tiny_transformer.models.contract import CausalLM

WEIGHTS, INDEX, HEAD, EMBEDDING = (
    "model.safetensors",
    "model.safetensors.index.json",
    "lm_head.weight",
    "model.embed_tokens.weight",
)
# A shard is named by a file beside the index and by nothing else: no path, no odd character.
_SHARD_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,200}\.safetensors")
_UNLIKE = "config.json and the weights do not belong together: take both from one place, or fetch them again"
_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_BUFFER_DTYPES = {"I8": torch.int8, "U8": torch.uint8, "F32": torch.float32, "F16": torch.float16}


def load_model(
    directory: Path | str, *, device: torch.device | str = "cpu", dtype: torch.dtype | None = None
) -> CausalLM:
    """The model in a Hugging Face directory, in evaluation mode.

    Args:
        directory: with config.json and model.safetensors, or shards and their index; or adapters with base.json.
        device: of the weights.
        dtype: of the weights; None keeps the files' (the widest, where they differ). Quantized layers keep their own.

    Raises:
        UserError: not a model directory, a half-written one, a classifier, a tensor that is missing, surplus or
            misshaped, or adapters whose base is gone or has changed.
    """
    directory = Path(directory)
    hf, swaps = read_config(directory)
    refuse_classifier(hf, directory)
    if (directory / BASE_FILE).is_file():
        model = _load_on_base(directory, swaps)
        cast(nn.Module, model).to(device=device, dtype=dtype)
        return model.eval()
    config = config_from_hf(hf, str(directory / "config.json"))
    with _Weights(directory) as weights:
        config = weights.second_head(config)
        weights.check_count(config)
        expected = _empty(config, swaps, device="meta")
        weights.check(expected)
        model = _empty(config, swaps, dtype=dtype or weights.widest_dtype(expected), device=device)
        weights.copy_into(model)
    return model.eval()


def _load_on_base(directory: Path, swaps: list[Record]) -> CausalLM:
    """Adapters on their base, which is found and checked."""
    base = find_base(directory)
    try:
        model = load_model(base.path)
    except UserError as error:
        if error.exit_code is not ExitCode.BAD_DATA:
            raise
        raise unusable_base(directory, base, error) from None
    teaches_tokens = any(record["kind"] == "rows" for record in swaps)
    check_base(directory, base, model, may_grow=teaches_tokens)
    if teaches_tokens:
        grow_vocabulary(model, load_config(directory).known_vocab_size)
    put_on_base(model, directory, swaps)
    return model


def _empty(config: ModelConfig, swaps: list[Record], **where: Any) -> CausalLM:
    """A model with its swapped layers, whose weights are not set; see `empty_model`."""
    model = empty_model(config, **where)
    apply_swaps(model, swaps)
    return model


def load_weights(
    model: CausalLM, directory: Path | str, part_of: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None = None
) -> None:
    """Overwrite a model's weights, in place, with those of a directory of the same shape. Errors as in `load_model`.

    Args:
        model: its dtypes and devices stay.
        directory: as in `load_model`.
        part_of: given a whole tensor and the weight it belongs to, gives what is to be copied there; for weights of
            which this process has only a part.
    """
    directory = Path(directory)
    if (directory / BASE_FILE).is_file():
        loaded = _load_on_base(directory, read_config(directory)[1])
        found, needed = ({name: tuple(t.shape) for name, t in tensors_of(m).items()} for m in (loaded, model))
        if found != needed:
            others = _some({name for name, _ in found.items() ^ needed.items()})
            raise _bad(directory, f"the tensors of these adapters and their base are not the model's: {others}")
        copy_tensors(tensors_of(loaded), model, part_of)
        return
    with _Weights(directory) as weights:
        weights.check(model)
        weights.copy_into(model, part_of)


def stored_dtypes(directory: Path | str) -> dict[str, torch.dtype]:
    """The dtype that each tensor of a directory has on disk. Published files mix them. Errors as in `load_model`."""
    with _Weights(Path(directory)) as weights:
        return weights.dtypes()


def save_model(
    model: CausalLM,
    directory: Staging | Path | str,
    tensors: Mapping[str, torch.Tensor] | None = None,
    /,
    *,
    sampling: Mapping[str, Any] | None = None,
    **token_ids: int | list[int] | None,
) -> None:
    """Write a model into an existing directory, so that transformers 5 and 4.57 open it (and refuse swapped layers).

    Writes config.json, generation_config.json and model.safetensors, without the head when it is tied. Durable, and
    checked byte by byte, only in a directory that is being published.

    Args:
        model: its dtype is kept.
        directory: existing, where files of these names are replaced; or what `storage.publish` gives.
        tensors: what is written in the place of `model.state_dict()`, in dtypes of its own.
        sampling: what generation_config.json says besides `token_ids`.
        token_ids: `eos_token_id`, `bos_token_id`, `pad_token_id` of the tokenizer, where it has them. Programs that
            generate text stop at `eos_token_id`.
    """
    tensors = model.state_dict() if tensors is None else tensors
    dtype = str(tensors.get(EMBEDDING, model.model.norm.weight).dtype).removeprefix("torch.")
    config = write_swaps(model.config.to_hf(dtype=dtype, **token_ids), describe_swaps(model))
    write_into(directory, "config.json", _json(config))
    write_generation_config(directory, sampling, **token_ids)
    written = {name: tensor for name, tensor in tensors.items() if not model.config.tie_word_embeddings or name != HEAD}
    write_into(directory, WEIGHTS, encode(written, {"format": "pt"}))


def write_generation_config(
    directory: Staging | Path | str, sampling: Mapping[str, Any] | None = None, /, **token_ids: int | list[int] | None
) -> None:
    """Write generation_config.json; arguments as in `save_model`."""
    generation: dict[str, Any] = {name: token_ids[name] for name in TOKEN_IDS if token_ids.get(name) is not None}
    if end := generation.get("eos_token_id"):
        # What transformers takes for padding anyway, with a warning at each text.
        generation.setdefault("pad_token_id", end[0] if isinstance(end, list) else end)
    write_into(directory, "generation_config.json", _json({**generation, **(sampling or {})}))


def _json(value: dict[str, Any]) -> str:
    return json.dumps(value, indent=2) + "\n"


class _Weights:
    """The open safetensors files of one directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._stack = ExitStack()
        self._files: dict[str, Any] = {}  # tensor name -> open file

    def __enter__(self) -> _Weights:
        try:
            for file_name, expected in _weight_files(self.directory).items():
                opened = self._stack.enter_context(_open(self.directory / file_name))
                names = set(opened.keys())
                if expected is not None and names != expected:
                    raise _bad(self.directory / file_name, f"tensors differ from {INDEX}: {_some(names ^ expected)}")
                self._files |= dict.fromkeys(names, opened)
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    def second_head(self, config: ModelConfig) -> ModelConfig:
        """The config with an MTP head if the files hold one: programs drop one of the two and say nothing."""
        if not isinstance(config, Qwen3NextConfig):
            return config
        there = any(name.startswith("mtp.") for name in self._files)
        return config.model_copy(update={"num_nextn_predict_layers": int(there)})

    def check_count(self, config: ModelConfig) -> None:
        """Refuse more layers and experts than there can be before they are built, which takes a while for each."""
        layers, experts = config.num_hidden_layers, 0
        if isinstance(config, Qwen3NextConfig):
            experts = config.num_experts * sum(map(config.is_sparse, range(layers)))
        if layers + experts > len(self._files):
            asked = f"{layers} layers" + (f" and {experts} experts" if experts else "")
            raise _bad(
                self.directory, f"config.json asks for {asked}, but there are {len(self._files)} tensors", _UNLIKE
            )

    def check(self, model: CausalLM) -> None:
        """Compare the files' headers with what the model needs."""
        buffers = dict(model.named_buffers())
        expected = {name: tuple(tensor.shape) for name, tensor in tensors_of(model).items()}
        if missing := expected.keys() - self._files.keys():
            raise _bad(self.directory, f"missing tensors: {_some(missing)}", _UNLIKE)
        surplus = self._files.keys() - expected.keys()
        tied_head = {HEAD} if model.config.tie_word_embeddings and EMBEDDING in expected else set()
        surplus -= tied_head
        surplus -= self._pass_over_angles(surplus, model.config)
        if surplus:
            what = f"tensors that {model.config.model_type} does not have: {_some(surplus)}"
            raise _bad(self.directory, what, _UNLIKE)
        if tied_head and HEAD in self._files:
            expected[HEAD] = expected[EMBEDDING]
        for name, shape in expected.items():
            header = self._files[name].get_slice(name)
            if tuple(header.get_shape()) != shape:
                what = f"tensor {name} has shape {header.get_shape()}; config.json asks for {list(shape)}"
                raise _bad(self.directory, what, _UNLIKE)
            known = list(_DTYPES)
            if name in buffers:  # integers and their scales mean nothing in another type
                known = [k for k, dtype in _BUFFER_DTYPES.items() if dtype == buffers[name].dtype]
            if header.get_dtype() not in known:
                raise _bad(self.directory, f"tensor {name} has dtype {header.get_dtype()}; known: {', '.join(known)}")

    def _pass_over_angles(self, surplus: set[str], config: ModelConfig) -> set[str]:
        """Buffers of older files (`rotary_emb.inv_freq`) that say what the config says of RoPE; others are refused."""
        names = {name for name in surplus if name.endswith("rotary_emb.inv_freq")}
        for name in names:
            found = self._files.pop(name).get_tensor(name)
            expected, _ = rope_frequencies(2 * found.numel(), config.rope_theta, config.rope_numbers())
            rounding = torch.finfo(found.dtype).eps if found.is_floating_point() else 0.0
            if 2 * found.numel() != config.rotary_dim or not torch.allclose(
                found.float(), expected, rtol=4 * rounding, atol=0
            ):
                what = f"{name} has other angles than rope_theta {config.rope_theta:g} and rope_scaling of config.json"
                raise _bad(self.directory, what, _UNLIKE)
        return names

    def widest_dtype(self, model: CausalLM) -> torch.dtype:
        """The dtype that holds every weight without loss."""
        names = dict(model.named_parameters())
        return reduce(torch.promote_types, {dtype for name, dtype in self.dtypes().items() if name in names})

    def dtypes(self) -> dict[str, torch.dtype]:
        """Each tensor's own; call `check` first."""
        known = {**_BUFFER_DTYPES, **_DTYPES}
        return {name: known[opened.get_slice(name).get_dtype()] for name, opened in self._files.items()}

    @torch.no_grad()
    def copy_into(self, model: CausalLM, part_of: Callable[..., torch.Tensor] | None = None) -> None:
        """Copy the tensors, see `load_weights`; a tied model's surplus head must equal its embedding."""
        for name, target in tensors_of(model).items():
            with reading(self.directory):
                tensor = self._files[name].get_tensor(name)
            target.copy_(tensor if part_of is None else part_of(tensor, target))
        if model.config.tie_word_embeddings and HEAD in self._files:
            head, embedding = (self._files[name].get_tensor(name) for name in (HEAD, EMBEDDING))
            if not torch.equal(head, embedding):
                raise _bad(self.directory, f"{HEAD} differs from {EMBEDDING}, but config.json ties them", _UNLIKE)


def _weight_files(directory: Path) -> Mapping[str, set[str] | None]:
    """File names, and the tensors each should hold where an index tells."""
    index = directory / INDEX
    for path in (directory / WEIGHTS, index):
        check_inside(path)
    if (directory / WEIGHTS).is_file():
        return {WEIGHTS: None}
    if not index.is_file():
        if pickled := sorted(path.name for path in directory.glob("pytorch_model*.bin")):
            raise UserError(
                f"its weights are pickled ({pickled[0]}), and pickles are never read here: they can run any program",
                where=str(directory),
                remedy="where you trust it, open it in transformers and save_pretrained it: that writes safetensors",
                exit_code=ExitCode.BAD_DATA,
            )
        raise _bad(directory, f"no {WEIGHTS} and no {INDEX}: no checkpoint, or a half-written one")
    weight_map = read_json(index, max_bytes=MAX_INDEX_BYTES).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise _bad(index, "weight_map is not a mapping from tensor names to file names")
    files: dict[str, set[str]] = {}
    for name, file_name in weight_map.items():
        if not isinstance(file_name, str) or not _SHARD_NAME.fullmatch(file_name):
            raise _bad(index, f"weight_map names {short(file_name)}, which is not a plain .safetensors file name")
        files.setdefault(file_name, set()).add(name)
    return files


def _open(path: Path) -> Any:
    check_inside(path)
    return open_checked(path)


def _some(names: set[str]) -> str:
    first = sorted(names)[:3]
    return ", ".join(name[:80] for name in first) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _bad(where: Path, what: str, remedy: str = DAMAGED) -> UserError:
    return UserError(what, where=str(where), remedy=remedy, exit_code=ExitCode.BAD_DATA)
