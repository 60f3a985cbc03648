"""What stages share that learn from conversations: where they start, how they write, what they save."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from torch import Tensor

from tiny_transformer.config.schema import RunConfig, TrainingConfig
from tiny_transformer.data.prepare.sources import STORIES
from tiny_transformer.errors import UserError
from tiny_transformer.models.contract import CausalLM
from tiny_transformer.models.open import CHAT_TEMPLATE, OpenCheckpoint
from tiny_transformer.stages.resume_check import TOKENIZER
from tiny_transformer.stages.stage import Request, Stage
from tiny_transformer.storage import RunDirectory, Staging
from tiny_transformer.tokenizers import Tokenizer
from tiny_transformer.tokenizers.chat import ChatTemplate, Marks
from tiny_transformer.tokenizers.templates import template_called, template_of
from tiny_transformer.training.contract import Batch

B = TypeVar("B", bound=Batch)
UNUSED = ("data.data_dir", "data.vocab_size", "data.text_field", "data.max_bytes", "training.eval_tokens")
DEFAULT_EPOCHS = 3.0
LEAST_ROW, ROW_STEP, MOST_CHOSEN = 64, 64, 1024  # tokens of a row that is as long as the conversations want it
COVERED = 0.99  # of the conversations fit whole into a row of the chosen length


@dataclass(frozen=True)
class ChatStart:
    """What a run starts from, as far as conversations go.

    Attributes:
        tokenizer: with the control tokens of the template.
        template: how conversations are written.
        new_ids: of control tokens that the base does not know.
    """

    tokenizer: Tokenizer
    template: ChatTemplate
    new_ids: tuple[int, ...]


def open_chat_start(
    request: Request, run_dir: Path, asked: str, untaught: ChatTemplate | None, *, doing: str
) -> ChatStart:
    """The tokenizer and the template of what a run starts from; of a resumed run those of its own newest checkpoint, if
    it has saved one.

    Args:
        request: names the base.
        run_dir: of the run.
        asked: the name of a template, or `auto` for the one that the base was taught.
        untaught: what a base that was not taught to chat gets; None: it is refused.
        doing: what the stage does, at the beginning of a sentence.

    Raises:
        UserError: no base, no template, or one with new control tokens where the stage teaches none.
    """
    config, start = request.config, first_checkpoint(request, run_dir, doing)
    base = start.tokenizer
    template = template_called(asked) if asked != "auto" else template_of(base, start.template) or untaught
    if template is None:
        raise UserError(
            f"{doing} needs a model that was taught to chat, or to know how a conversation is written for it",
            where=str(start.path),
            remedy="fine-tune the model first (tiny-transformer finetune), or --template plain",
        )
    tokenizer = base.with_control_tokens(template.control_tokens)
    new_ids = new_token_ids(template, tokenizer, base)
    if new_ids and untaught is None:
        raise UserError(
            f"the template {template.name} needs new control tokens, which fine-tuning teaches first",
            where=f"{config.stage}.template",
            remedy="--template alpaca or plain, or fine-tune first",
        )
    return ChatStart(tokenizer, template, new_ids)


def first_checkpoint(request: Request, run_dir: Path, doing: str) -> OpenCheckpoint:
    """What a run starts from; of a resumed run its own newest checkpoint, if it has saved one.

    Raises:
        UserError: none is named; the message begins with `doing`.
    """
    saved = RunDirectory(run_dir).checkpoints() if request.resume else []
    if not saved and request.config.init_from is None:
        raise UserError(
            f"{doing} starts from a trained model",
            where="init_from",
            remedy="--init_from RUN; tiny-transformer runs lists them, tiny-transformer train makes one",
        )
    return OpenCheckpoint(saved[-1].path if saved else request.config.init_from or Path())


def new_token_ids(template: ChatTemplate, tokenizer: Tokenizer, base: Tokenizer) -> tuple[int, ...]:
    """The ids of a template's control tokens that a base does not know."""
    ids = map(tokenizer.token_id, template.control_tokens)
    return tuple(i for i in ids if i is not None and i >= base.vocab_size)


def refuse_unused(config: RunConfig, doing: str, records: str) -> None:
    """Refuse keys that say nothing where records are read.

    Args:
        config: as asked for.
        doing: what the stage does.
        records: what its records are, in the plural.

    Raises:
        UserError: such a key is set, or no records are named.
    """
    refuse_idle(config, UNUSED, f"{doing}, which reads records of {records}")
    data = config.data
    if data.source == STORIES:
        raise UserError(
            f"{doing} needs {records} to learn from",
            where="data.source",
            remedy="--source FILE of .jsonl, .json, .csv or .parquet, or a data set of the hub",
        )
    if data.packing == "concat" and "packing" in data.model_fields_set:
        raise UserError(
            "packing concat would let one conversation be read in another",
            where="data.packing",
            remedy="leave it out: conversations are packed whole (documents)",
        )


def refuse_idle(config: RunConfig, keys: Iterable[str], doing: str) -> None:
    """Refuse keys, as `section.key`, that are set to something and say nothing to a stage.

    Args:
        config: as asked for.
        keys: that say nothing.
        doing: what the stage does.

    Raises:
        UserError: the first that is not as by default.
    """
    for name in keys:
        section, _, key = name.partition(".")
        settings = getattr(config, section)
        if getattr(settings, key) != type(settings).model_fields[key].default:
            remedy = "leave it out" + ("; --source names the records" if section == "data" else "")
            raise UserError(f"{name} says nothing to {doing}", where=name, remedy=remedy)


def row_length(request: Request, sizes: Sequence[int]) -> int:
    """T as asked for, or long enough for nearly all conversations.

    Args:
        request: asks, or leaves it open.
        sizes: tokens of each conversation.
    """
    config = request.config
    if request.resume or "seq_len" in config.data.model_fields_set:
        return config.data.seq_len
    wanted = sorted(sizes)[math.ceil(COVERED * len(sizes)) - 1] - 1
    rows = max(LEAST_ROW, ROW_STEP * math.ceil(wanted / ROW_STEP))
    return min(rows, MOST_CHOSEN, config.model.max_position_embeddings)


T = TypeVar("T", bound=TrainingConfig)


def with_length(training: T, num_rows: int, seq_len: int) -> T:
    """The settings with the length of the run in tokens, where it is known in epochs; three of them by default."""
    lengths = (training.steps, training.max_tokens, training.epochs, training.max_train_minutes)
    epochs = DEFAULT_EPOCHS if lengths == (None,) * len(lengths) else training.epochs
    if epochs is None:
        return training
    tokens = math.ceil(epochs * num_rows * seq_len)
    return training.model_copy(update={"epochs": epochs, "max_tokens": min(tokens, training.max_tokens or tokens)})


class ChatStage(Stage[B]):
    """A stage whose model answers: it is saved with its template, and stops at the end of an answer.

    Args:
        config: completed.
        start: tokenizer and template.
    """

    def __init__(self, config: RunConfig, start: ChatStart) -> None:
        super().__init__(config, start.tokenizer)
        self.template = start.template

    def save(self, model: CausalLM, directory: Staging, weights: dict[str, Tensor]) -> None:
        """A model directory with its chat template; programs stop at the end of an answer and at that of a text."""
        end_ids = tuple(dict.fromkeys((self.template.end_id(self.tokenizer), self.tokenizer.end_id)))
        self.save_model(model, directory, weights, end_ids)
        directory.write(CHAT_TEMPLATE, self.template.jinja(Marks.of(self.tokenizer)))

    def fingerprints(self) -> dict[str, str]:
        """The tokenizer by its hash."""
        return {TOKENIZER: self.tokenizer.fingerprint}
