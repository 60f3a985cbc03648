"""The last step of every import of a model: what came in is judged once more and published as a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from reprlib import repr as short
from typing import TYPE_CHECKING, Any

import torch

from tiny_transformer.errors import ExitCode, UserError
from tiny_transformer.models import save_model
from tiny_transformer.storage.commit import publish
from tiny_transformer.tokenizers import Tokenizer

if TYPE_CHECKING:
    from tiny_transformer.models.contract import CausalLM


def write_import(
    model: CausalLM,
    tokenizer: Tokenizer,
    out_dir: Path | str,
    *,
    source: Path,
    token_ids: Mapping[str, int | list[int]],
    copied: Mapping[str, bytes] | None = None,
    sampling: Mapping[str, Any] | None = None,
    dtypes: Mapping[str, torch.dtype] | None = None,
) -> None:
    """Write a model that came from elsewhere as a checkpoint, all or nothing.

    Args:
        model: holds every tensor without loss.
        tokenizer: has no more ids than the model has rows.
        out_dir: a directory that does not exist yet.
        source: where it came from: its name is noted, and it is the place that messages name.
        token_ids: see `save_model`.
        copied: further files, by name, written as they are.
        sampling: what generation_config.json says besides `token_ids`.
        dtypes: of each tensor in the file; None: the model's.

    Raises:
        UserError: a weight that is not a number, a token id that the model has not, a tokenizer that is too large for
            the model, or `out_dir` exists.
    """
    vocab_size = model.config.vocab_size or 0
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if not torch.isfinite(tensor).all():
            raise _bad(
                source,
                f"tensor {name} has weights that are infinite or not numbers",
                "the training went wrong, or the file is damaged: take an earlier checkpoint, or fetch it again",
            )
    padding = {"pad_token_id": sampling["pad_token_id"]} if sampling and "pad_token_id" in sampling else {}
    for name, value in {**token_ids, **padding}.items():
        if not all(type(i) is int and 0 <= i < vocab_size for i in (value if isinstance(value, list) else [value])):
            raise _bad(
                source,
                f"{name} {short(value)} is not an id of this model, which has {vocab_size:,} ids from 0 on",
                f"write the id of a token as {name} in config.json and generation_config.json, or leave it out",
            )
    if tokenizer.vocab_size > vocab_size:
        raise _bad(
            source,
            f"the tokenizer has {tokenizer.vocab_size:,} ids, but the model's embedding has {vocab_size:,} rows",
            "put the tokenizer that the model was trained with beside it",
        )
    tensors = {name: t if dtypes is None else t.to(dtypes.get(name, t.dtype)) for name, t in model.state_dict().items()}
    with publish(out_dir, info={"imported_from": source.absolute().name}) as staging:
        save_model(model, staging, tensors, sampling=sampling, **token_ids)
        ends = token_ids.get("eos_token_id", ())
        end_ids = [ends] if isinstance(ends, int) else ends
        tokenizer.save(staging, max_length=model.config.max_position_embeddings, end_ids=end_ids)
        for name, content in (copied or {}).items():
            staging.write(name, content)


def _bad(where: Path, what: str, remedy: str) -> UserError:
    return UserError(what, where=str(where), remedy=remedy, exit_code=ExitCode.BAD_DATA)
