"""The conversations of a fine-tuning run: read, written by the template of the model, checked, packed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from tiny_transformer.config.stages import FinetuneConfig
from tiny_transformer.data.chat.checks import check_lengths, check_rows, check_template, count_other_ids
from tiny_transformer.data.chat.conversations import Answers, TokenStore, encode_conversations, split
from tiny_transformer.data.chat.records import Reading, read_conversations
from tiny_transformer.stages.chat import ChatStart, open_chat_start, refuse_unused, row_length, with_length
from tiny_transformer.stages.stage import Request
from tiny_transformer.tokenizers.templates import ALPACA, CHATML


@dataclass(frozen=True)
class ChatData:
    """What a run learns from.

    Attributes:
        config: completed.
        start: tokenizer and template.
        train, val: tokens of conversations.
        reading: how many records there were, and what was left out.
    """

    config: FinetuneConfig
    start: ChatStart
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
    refuse_unused(config, "fine-tuning", "conversations")
    untaught = ALPACA if config.lora.enabled else CHATML
    start = open_chat_start(request, run_dir, config.finetune.template, untaught, doing="fine-tuning")
    template, tokenizer = start.template, start.tokenizer
    reading, section = Reading(), config.finetune
    conversations = read_conversations(
        config.data.source, template, system=section.system_prompt, skips_bad=section.skip_bad_rows, reading=reading
    )
    examples = encode_conversations(tokenizer, template, conversations)
    check_template(tokenizer, template, examples)
    train, val = split(examples, config.data.val_fraction)
    seq_len = row_length(request, [len(example.encoded.ids) for example in examples])
    stores = [TokenStore(part, seq_len, config.data.source) for part in (train, val)]
    for store, part in zip(stores, (train, val), strict=True):
        check_lengths(store, len(part), seq_len)
        check_rows(Answers(store, seq_len), store, template.end_id(tokenizer))
    config = _completed(config, start, seq_len, num_rows=len(Answers(stores[0], seq_len)))
    if others := count_other_ids(tokenizer, template, examples):
        console.print(
            f"note: in {others:,} of the conversations looked at, a program that encodes them as one text gets other "
            "ids at the beginning of an answer",
            highlight=False,
        )
    return ChatData(config, start, stores[0], stores[1], reading)


def _completed(config: FinetuneConfig, start: ChatStart, seq_len: int, *, num_rows: int) -> FinetuneConfig:
    """With what follows from the data: template, length of rows, vocabulary, length of the run."""
    vocab_size = max(config.model.known_vocab_size, start.tokenizer.vocab_size)
    return config.model_copy(
        update={
            "model": config.model.model_copy(update={"vocab_size": vocab_size}),
            "data": config.data.model_copy(update={"seq_len": seq_len, "packing": "documents"}),
            "training": with_length(config.training, num_rows, seq_len),
            "finetune": config.finetune.model_copy(update={"template": start.template.name}),
        }
    )
