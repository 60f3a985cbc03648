"""A model and its adapters as one ordinary model, which any program opens."""

from __future__ import annotations

from pathlib import Path

from tiny_transformer.errors import UserError
from tiny_transformer.interop.writing import write_import
from tiny_transformer.models.adapter_base import find_base
from tiny_transformer.models.adapter_files import CONFIG, load_adapter, read_adapter_config
from tiny_transformer.models.config_file import BASE_FILE
from tiny_transformer.models.find import find_checkpoint
from tiny_transformer.models.open import CHAT_TEMPLATE, OpenCheckpoint
from tiny_transformer.models.swaps import describe_swaps, restore_layers
from tiny_transformer.storage.reading import at_home
from tiny_transformer.tokenizers.tokenizer import TOKENIZER_FILE


def merge(source: Path, out_dir: Path, *, base: Path | None) -> Path:
    """Write a model whose layers are ordinary ones, all or nothing; the base that was taken.

    Args:
        source: a run or checkpoint with adapters or quantized layers, or a directory of adapters as PEFT saves them.
            Its tokenizer and chat template, if it has any, go along.
        out_dir: a directory that does not exist yet.
        base: the model under adapters; None: what they name.

    Raises:
        UserError: nothing to merge, adapters for another model, or `out_dir` exists.
    """
    place = source if (source / CONFIG).is_file() else find_checkpoint(source)[0]
    has_adapters, knows_base = (place / CONFIG).is_file(), (place / BASE_FILE).is_file()
    if base is not None and not has_adapters:
        raise UserError(f"{source} has its base in it", where="command line", remedy="leave --base out")
    if base is None and (knows_base or not has_adapters):
        opened = OpenCheckpoint(place)
        taken = find_base(place).path if knows_base else place
    else:
        opened = OpenCheckpoint(find_checkpoint(base or _named_base(place))[0])
        load_adapter(opened.model, place)
        taken = opened.path
    if not describe_swaps(opened.model):
        raise UserError(
            "there is nothing to merge: all layers are ordinary ones", where=str(opened.path), remedy="use it as it is"
        )
    restore_layers(opened.model)
    talker = OpenCheckpoint(place) if (place / TOKENIZER_FILE).is_file() else opened
    ends = list(talker.end_ids)
    write_import(
        opened.model,
        talker.tokenizer,
        out_dir,
        source=opened.path,
        token_ids={"eos_token_id": ends if len(ends) > 1 else ends[0]},
        copied={CHAT_TEMPLATE: talker.template.encode()} if talker.template else None,
    )
    return taken


def _named_base(place: Path) -> Path:
    """What adapters of another program name as their base."""
    named = read_adapter_config(place).get("base_model_name_or_path")
    if not isinstance(named, str) or not at_home(named).is_dir():
        raise UserError(
            f"the adapters name {named} as their base, which is not here", where=str(place), remedy="--base DIR"
        )
    return at_home(named)
