"""What stands in a checkpoint directory beside its weights, opened in one place."""

from __future__ import annotations

from pathlib import Path

from tiny_transformer.errors import UserError
from tiny_transformer.tokenizers import Tokenizer, load_tokenizer, make_tokenizer


def checkpoint_tokenizer(checkpoint: Path, name: str = "auto") -> Tokenizer:
    """The tokenizer in a checkpoint; `name` other than `auto` must mean the same one.

    Raises:
        UserError: it is another one: its ids would mean other words to this model.
    """
    own = load_tokenizer(checkpoint)
    if name == "auto" or name == own.name:
        return own
    asked = make_tokenizer(name)
    if asked.fingerprint != own.fingerprint:
        raise UserError(
            f"{checkpoint} was trained with the tokenizer {own.name}, not with {name}",
            where=str(checkpoint),
            remedy="leave --tokenizer away: the checkpoint has its own",
        )
    return own
