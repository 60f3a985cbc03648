"""Which drafter is meant: from a word or a run's config to what `speculative.py` needs."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from tiny_transformer.errors import ExitCode, UserError
from tiny_transformer.generation.drafters import ModelDrafter, MtpDrafter, NgramDrafter
from tiny_transformer.generation.speculative import Speculation
from tiny_transformer.models.contract import has_mtp_head
from tiny_transformer.models.open import OpenCheckpoint, open_checkpoint


def speculation_of(opened: OpenCheckpoint, name: str | None, num_draft_tokens: int = 4) -> Speculation | None:
    """How the texts of a checkpoint are drafted; None: not at all.

    Args:
        opened: the checkpoint that writes.
        name: `ngram`, `mtp`, `auto` (`mtp` where there is such a head, else `ngram`), or a checkpoint or run of a
            smaller model; None: what `training.sample_drafter` of its run says.
        num_draft_tokens: the most that are drafted at once.

    Raises:
        UserError: no MTP head, no such checkpoint, or one with another tokenizer.
    """
    if name is None:
        with suppress(UserError):  # a config of another version; drafting changes no text
            name = None if opened.run_config is None else opened.run_config.training.sample_drafter
        if name is None:
            return None
    model, num_tokens = opened.model, opened.tokenizer.vocab_size
    if name == "auto":
        name = "mtp" if has_mtp_head(model) else "ngram"
    if name == "ngram":
        return Speculation(lambda max_len: NgramDrafter(), num_draft_tokens)
    if name == "mtp":
        if not has_mtp_head(model):
            remedy = "--speculative ngram, or the path of a smaller model"
            raise UserError(f"{opened.path} has no MTP head", remedy=remedy)
        return Speculation(lambda max_len: MtpDrafter(model, max_len, num_tokens), num_draft_tokens)
    return _by_model(opened, name, num_draft_tokens)


def _by_model(opened: OpenCheckpoint, name: str, num_draft_tokens: int) -> Speculation:
    """A checkpoint beside the other, on the same device."""
    draft = open_checkpoint(Path(name), device=str(next(opened.model.parameters()).device.type))
    if draft.tokenizer.fingerprint != opened.tokenizer.fingerprint:
        raise UserError(
            f"{draft.path} has another tokenizer than {opened.path}: its tokens would mean other words",
            remedy="a draft model trained on the same data directory, or --speculative ngram",
            exit_code=ExitCode.BAD_DATA,
        )
    small, num_tokens = draft.model, opened.tokenizer.vocab_size
    return Speculation(lambda max_len: ModelDrafter(small, max_len, num_tokens), num_draft_tokens)
