"""A model and its adapters as one ordinary model, which any program opens."""

from __future__ import annotations

from pathlib import Path

from tiny_transformer.errors import UserError
from tiny_transformer.interop.writing import write_import
from tiny_transformer.models.adapters import CONFIG, load_adapter, read_adapter_config
from tiny_transformer.models.find import find_checkpoint
from tiny_transformer.models.open import CHAT_TEMPLATE, OpenCheckpoint
from tiny_transformer.models.swaps import describe_swaps, restore_layers


def merge(source: Path, out_dir: Path, *, base: Path | None) -> Path:
    """Write a model whose layers are ordinary ones, all or nothing; the base that was taken.

    Args:
        source: a run or checkpoint with adapters or quantized layers, or a directory of adapters as PEFT saves them.
        out_dir: a directory that does not exist yet.
        base: the model under a directory of adapters; None: what their configuration names.

    Raises:
        UserError: nothing to merge, adapters for another model, or `out_dir` exists.
    """
    is_adapter = (source / CONFIG).is_file()
    if is_adapter:
        named = base or read_adapter_config(source).get("base_model_name_or_path")
        if not isinstance(named, str | Path) or (base is None and not Path(named).is_dir()):
            raise UserError(
                f"the adapters name {named} as their base, which is not here", where=str(source), remedy="--base DIR"
            )
        opened = OpenCheckpoint(find_checkpoint(Path(named))[0])
        load_adapter(opened.model, source)
    else:
        if base is not None:
            raise UserError(f"{source} has its base in it", where="command line", remedy="leave --base out")
        opened = OpenCheckpoint(find_checkpoint(source)[0])
    if not describe_swaps(opened.model):
        raise UserError(
            "there is nothing to merge: all layers are ordinary ones", where=str(opened.path), remedy="use it as it is"
        )
    restore_layers(opened.model)
    ends = list(opened.end_ids)
    write_import(
        opened.model,
        opened.tokenizer,
        out_dir,
        source=opened.path,
        token_ids={"eos_token_id": ends if len(ends) > 1 else ends[0]},
        copied={CHAT_TEMPLATE: opened.template.encode()} if opened.template else None,
    )
    return opened.path
