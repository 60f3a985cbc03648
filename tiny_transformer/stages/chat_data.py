"""The conversations of a fine-tuning run: read, written by the template of the model, checked, packed."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from tiny_transformer.config.stages import FinetuneConfig
from tiny_transformer.data.chat.checks import check_lengths, check_rows, check_template, count_other_ids
from tiny_transformer.data.chat.conversations import Answers, TokenStore, encode_conversations, split
from tiny_transformer.data.chat.records import Reading, read_conversations
from tiny_transformer.data.prepare.sources import STORIES
from tiny_transformer.errors import UserError
from tiny_transformer.models.open import OpenCheckpoint
from tiny_transformer.stages.stage import Request
from tiny_transformer.storage import RunDirectory
from tiny_transformer.tokenizers import Tokenizer
from tiny_transformer.tokenizers.chat import ChatTemplate
from tiny_transformer.tokenizers.templates import ALPACA, CHATML, template_called, template_of

UNUSED = ("data_dir", "vocab_size", "text_field", "max_bytes")  # keys of `data` that say nothing here
DEFAULT_EPOCHS = 3.0
LEAST_ROW, ROW_STEP, MOST_CHOSEN = 64, 64, 1024  # tokens of a row that is as long as the conversations want it
COVERED = 0.99  # of the conversations fit whole into a row of the chosen length


@dataclass(frozen=True)
class ChatData:
    """What a run learns from.

    Attributes:
        config: completed.
        tokenizer: with the control tokens of the template.
        new_ids: of control tokens that the base does not know.
        template: how conversations are written.
        train, val: tokens of conversations.
        reading: how many records there were, and what was left out.
    """

    config: FinetuneConfig
    tokenizer: Tokenizer
    new_ids: tuple[int, ...]
    template: ChatTemplate
    train: TokenStore
    val: TokenStore
    reading: Reading

    def rows(self, store: TokenStore) -> Answers:
        """The conversations of a split, packed."""
        return Answers(store, self.config.data.seq_len)


def open_chat_data(request: Request, config: FinetuneConfig, run_dir: Path, console: Console) -> ChatData:
    """Read the records, write them as the model's template says, check them, and complete the config.

    Raises:
        UserError: no start, no records, a record that is no conversation, or a check that fails.
    """
    _refuse_unused(config)
    start = _start_of(request, config, run_dir)
    template, base = _template_for(config, start), start.tokenizer
    tokenizer = base.with_control_tokens(template.control_tokens)
    reading, section = Reading(), config.finetune
    conversations = read_conversations(
        config.data.source, template, system=section.system_prompt, skips_bad=section.skip_bad_rows, reading=reading
    )
    examples = encode_conversations(tokenizer, template, conversations)
    check_template(tokenizer, template, examples)
    train, val = split(examples, config.data.val_fraction)
    seq_len = _row_length(request, config, [len(example.encoded.ids) for example in examples])
    stores = [TokenStore(part, seq_len, config.data.source) for part in (train, val)]
    for store, part in zip(stores, (train, val), strict=True):
        check_lengths(store, len(part), seq_len)
        check_rows(Answers(store, seq_len), store, template.end_id(tokenizer))
    config = _completed(config, template, tokenizer, seq_len, num_rows=len(Answers(stores[0], seq_len)))
    if others := count_other_ids(tokenizer, template, examples):
        console.print(
            f"note: in {others:,} of the conversations looked at, a program that encodes them as one text gets other "
            "ids at the beginning of an answer",
            highlight=False,
        )
    new_ids = new_token_ids(template, tokenizer, base)
    if new_ids and config.lora.enabled:
        raise UserError(
            f"the template {template.name} needs new control tokens, which a frozen embedding cannot learn",
            where="finetune.template",
            remedy="--template alpaca or plain, or fine-tune without adapters first",
        )
    return ChatData(config, tokenizer, new_ids, template, stores[0], stores[1], reading)


def new_token_ids(template: ChatTemplate, tokenizer: Tokenizer, base: Tokenizer) -> tuple[int, ...]:
    """The ids of a template's control tokens that a base does not know."""
    ids = map(tokenizer.token_id, template.control_tokens)
    return tuple(i for i in ids if i is not None and i >= base.vocab_size)


def _refuse_unused(config: FinetuneConfig) -> None:
    data, fields = config.data, type(config.data).model_fields
    for key in UNUSED:
        if getattr(data, key) != fields[key].default:
            raise UserError(
                f"data.{key} says nothing to fine-tuning, which reads records of conversations",
                where=f"data.{key}",
                remedy="leave it out; --source names the records",
            )
    if data.source == STORIES:
        raise UserError(
            "fine-tuning needs conversations to learn from",
            where="data.source",
            remedy="--source FILE of .jsonl, .json, .csv or .parquet, or a data set of the hub",
        )
    if data.packing == "concat" and "packing" in data.model_fields_set:
        raise UserError(
            "packing concat would let one conversation be read in another",
            where="data.packing",
            remedy="leave it out: conversations are packed whole (documents)",
        )


def _start_of(request: Request, config: FinetuneConfig, run_dir: Path) -> OpenCheckpoint:
    """What the run starts from; of a resumed run its own newest checkpoint, if it has saved one."""
    saved = RunDirectory(run_dir).checkpoints() if request.resume else []
    if saved:
        return OpenCheckpoint(saved[-1].path)
    if config.init_from is None:
        raise UserError(
            "fine-tuning starts from a trained model",
            where="init_from",
            remedy="--init_from RUN; tiny-transformer runs lists them, tiny-transformer train makes one",
        )
    return OpenCheckpoint(config.init_from)


def _template_for(config: FinetuneConfig, start: OpenCheckpoint) -> ChatTemplate:
    if config.finetune.template != "auto":
        return template_called(config.finetune.template)
    return template_of(start.tokenizer, start.template) or (ALPACA if config.lora.enabled else CHATML)


def _row_length(request: Request, config: FinetuneConfig, sizes: list[int]) -> int:
    """As asked for, or long enough for nearly all conversations."""
    if request.resume or "seq_len" in config.data.model_fields_set:
        return config.data.seq_len
    wanted = sorted(sizes)[math.ceil(COVERED * len(sizes)) - 1] - 1
    rows = max(LEAST_ROW, ROW_STEP * math.ceil(wanted / ROW_STEP))
    return min(rows, MOST_CHOSEN, config.model.max_position_embeddings)


def _completed(
    config: FinetuneConfig, template: ChatTemplate, tokenizer: Tokenizer, seq_len: int, *, num_rows: int
) -> FinetuneConfig:
    """With what follows from the data: template, length of rows, vocabulary, length of the run."""
    training = config.training
    lengths = (training.steps, training.max_tokens, training.epochs, training.max_train_minutes)
    epochs = DEFAULT_EPOCHS if lengths == (None,) * len(lengths) else training.epochs
    if epochs is not None:
        tokens = math.ceil(epochs * num_rows * seq_len)
        tokens = min(tokens, training.max_tokens or tokens)
        training = training.model_copy(update={"epochs": epochs, "max_tokens": tokens})
    vocab_size = max(config.model.known_vocab_size, tokenizer.vocab_size)
    return config.model_copy(
        update={
            "model": config.model.model_copy(update={"vocab_size": vocab_size}),
            "data": config.data.model_copy(update={"seq_len": seq_len, "packing": "documents"}),
            "training": training,
            "finetune": config.finetune.model_copy(update={"template": template.name}),
        }
    )
