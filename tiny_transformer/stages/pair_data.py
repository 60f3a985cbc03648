"""The preference pairs of a run of alignment: read, written by the model's template, checked, split."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

from tiny_transformer.config.stages import AlignConfig
from tiny_transformer.data.chat.checks import check_template
from tiny_transformer.data.chat.conversations import Cut, Example, split
from tiny_transformer.data.chat.pairs import EncodedPair, encode_pairs, fit_pairs, read_pairs
from tiny_transformer.data.chat.records import Reading
from tiny_transformer.data.preferences import PairBatch
from tiny_transformer.errors import ExitCode, UserError
from tiny_transformer.stages.chat import ChatStart, open_chat_start, refuse_unused, row_length, with_length
from tiny_transformer.stages.examples import beginning, table_of
from tiny_transformer.stages.stage import Request
from tiny_transformer.tokenizers.chat import Encoded, Message

SHOWN = 60  # characters of an answer that `replay` shows


@dataclass(frozen=True)
class PairData:
    """What a run learns from.

    Attributes:
        config: completed.
        start: tokenizer and template.
        train, val: the pairs.
        cut: what the length of a row did to them.
        reading: how many records there were, and what was left out.
    """

    config: AlignConfig
    start: ChatStart
    train: list[EncodedPair]
    val: list[EncodedPair]
    cut: Cut
    reading: Reading


def open_pair_data(request: Request, config: AlignConfig, run_dir: Path) -> PairData:
    """Read the records, write them as the model's template says, check them, and complete the config.

    Raises:
        UserError: no start, no records, a record that is no pair, or pairs of which nothing is left.
    """
    refuse_unused(config, "alignment", "preferences")
    section, reading = config.align, Reading()
    start = open_chat_start(request, run_dir, section.template, None, doing="alignment")
    pairs = read_pairs(
        config.data.source,
        start.template,
        system=section.system_prompt,
        skips_bad=section.skip_bad_rows,
        reading=reading,
    )
    encoded = encode_pairs(start.tokenizer, start.template, pairs)
    if not encoded:
        raise _refused(f"none of {reading.num_records:,} records is a pair", config.data.source)
    whole = [Example((*p.messages, Message("assistant", "")), p.chosen, p.where) for p in encoded]
    check_template(start.tokenizer, start.template, whole)
    sizes = [max(len(pair.chosen.ids), len(pair.rejected.ids)) for pair in encoded]
    seq_len = row_length(request, sizes)
    kept, cut = fit_pairs(encoded, seq_len)
    if not kept:
        what = f"everything is truncated away: no pair has two different answers within {seq_len:,} tokens"
        raise _refused(what, config.data.source, "a larger --seq_len, or shorter questions")
    train, val = split(kept, config.data.val_fraction)
    return PairData(_completed(config, start, seq_len, len(train)), start, train, val, cut, reading)


def describe(data: PairData, total_steps: int) -> str:
    """The pairs, what was left out or cut, and how often the run sees them."""
    config, training = data.config, data.config.training
    seen = total_steps * training.examples_per_step / len(data.train)
    parts = [
        f"{config.data.source}, {len(data.train):,} pairs and {len(data.val):,} held out ({data.start.template.name}), "
        f"answers within {config.data.seq_len:,} tokens; this run sees {seen:.2f} times that"
    ]
    parts += data.reading.left_out()
    if data.cut.num_truncated:
        parts.append(f"{data.cut.num_truncated:,} pairs are longer than a row and cut: their ends are not learnt")
    if data.cut.num_lost:
        parts.append(f"{data.cut.num_lost:,} left out, whose answers begin, or begin to differ, after the end of a row")
    if training.eval_steps is None:
        rest = "; the end tells from training pairs whether both answers were forgotten"
        blind = "eval_steps is null, so no alarm can ring: how far the model goes is measured by evaluations"
        parts.append(blind + (rest if config.align.method == "dpo" else ""))
    return "; ".join(parts)


def show_pairs(micro_batches: Sequence[PairBatch], data: PairData) -> Table:
    """The pairs of a batch: their numbers in the epoch, and how their answers begin."""
    numbers = [int(number) for batch in micro_batches for number in batch.sample_ids]
    pairs = ((number, data.train[number]) for number in numbers)
    rows = ((f"{number:,}", _begins(pair.chosen, data), _begins(pair.rejected, data)) for number, pair in pairs)
    return table_of(("number", "chosen", "rejected"), rows, num_texts=2)


def _begins(answer: Encoded, data: PairData) -> str:
    ids = [token for token, is_answer in zip(*answer, strict=True) if is_answer]
    return beginning(data.start.tokenizer, ids)


def _completed(config: AlignConfig, start: ChatStart, seq_len: int, num_pairs: int) -> AlignConfig:
    """With what follows from the data: template, length of rows, length of the run."""
    return config.model_copy(
        update={
            "data": config.data.model_copy(update={"seq_len": seq_len, "packing": "documents"}),
            "training": with_length(config.training, num_pairs, seq_len),
            "align": config.align.model_copy(update={"template": start.template.name}),
        }
    )


def _refused(what: str, where: str, remedy: str | None = None) -> UserError:
    return UserError(what, where=where, remedy=remedy, exit_code=ExitCode.BAD_DATA)
