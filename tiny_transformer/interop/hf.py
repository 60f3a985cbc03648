"""Import of a Hugging Face model directory: read, checked, and written as one of ours, in one file and with a manifest.

`load_model` opens such directories as they are; an import is for keeping one: sharded weights become one file, what is
not supported has been refused, and `tiny-transformer doctor` can later tell whether a byte has changed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from tiny_transformer.config.shapes.decoder import TOKEN_IDS
from tiny_transformer.errors import ExitCode, UserError
from tiny_transformer.interop.writing import write_import
from tiny_transformer.models.checkpoint import stored_dtypes
from tiny_transformer.models.config_file import end_token_ids, read_config, read_json, read_small_file
from tiny_transformer.models.open import OpenCheckpoint
from tiny_transformer.tokenizers.load import CHAT_TEMPLATE, has_tokenizer, more_chat_templates

GENERATION = "generation_config.json"
# What a model's makers recommend for writing with it, kept for the programs that follow it.
SAMPLING = (
    *("pad_token_id", "do_sample", "temperature", "top_k", "top_p", "min_p", "typical_p"),
    *("repetition_penalty", "no_repeat_ngram_size", "max_new_tokens", "max_length", "num_beams", "length_penalty"),
)


def import_hf(source: Path | str, out_dir: Path | str) -> None:
    """Write a Hugging Face directory's model, tokenizer, chat template and recommended sampling as a checkpoint, all or
    nothing.

    Each tensor keeps its data type. A directory that was saved here comes out byte for byte the same.

    Args:
        source: config.json, safetensors (one file or shards with their index), tokenizer.json, and a chat template if
            there is one.
        out_dir: a directory that does not exist yet.

    Raises:
        UserError: see `load_model`, `load_tokenizer` and `write_import`.
    """
    source = Path(source)
    opened = OpenCheckpoint(source)
    _ = opened.config  # refused before the tokenizer and the weights are read
    _check_tokenizer_is_there(source)
    tokenizer = opened.tokenizer
    model, dtypes = opened.model, stored_dtypes(source)  # in memory the widest of them all
    beside = beside_the_weights(opened)
    write_import(
        model,
        tokenizer,
        out_dir,
        source=source,
        token_ids=beside.token_ids,
        copied=beside.copied,
        sampling=beside.sampling,
        dtypes=dtypes,
    )


class Beside(NamedTuple):
    """What a checkpoint says beside its weights and its tokenizer, in the terms of `write_import`."""

    token_ids: dict[str, int | list[int]]
    sampling: dict[str, Any]
    copied: dict[str, bytes]


def beside_the_weights(opened: OpenCheckpoint) -> Beside:
    """Token ids, recommended sampling and chat template of a checkpoint, to be written with it once more.

    Raises:
        UserError: a file that cannot be read.
    """
    source = opened.path
    hf, _ = read_config(source)
    generation = source / GENERATION
    told = read_json(generation) if generation.exists() or generation.is_symlink() else {}
    token_ids = {name: hf[name] for name in TOKEN_IDS if hf.get(name) is not None}
    ends = end_token_ids(source)
    if ends:
        token_ids["eos_token_id"] = ends[0] if len(ends) == 1 and not isinstance(hf.get("eos_token_id"), list) else ends
    template = source / CHAT_TEMPLATE
    is_there = template.exists() or template.is_symlink()
    templates = [
        *([template] if is_there else []),
        *more_chat_templates(source),
    ]  # as they came; none of ours runs them
    return Beside(token_ids, _sampling(told), {str(t.relative_to(source)): read_small_file(t) for t in templates})


def _sampling(told: dict[str, Any]) -> dict[str, Any]:
    """The recommendations of a generation_config.json: numbers and switches, nothing that names code or files."""
    return {name: told[name] for name in told if name in SAMPLING and isinstance(told[name], bool | int | float)}


def _check_tokenizer_is_there(source: Path) -> None:
    if has_tokenizer(source):
        return
    remedy = "put the model's tokenizer.json beside config.json"
    if (source / "tokenizer.model").exists():
        remedy += "; AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR) makes one of tokenizer.model"
    raise UserError("a model without a tokenizer", where=str(source), remedy=remedy, exit_code=ExitCode.BAD_DATA)
