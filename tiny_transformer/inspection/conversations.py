"""Looking at conversations as a model reads them: control tokens, texts, and which tokens are learnt."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

from rich.console import Console
from rich.text import Text

from tiny_transformer.data.chat.checks import check_template
from tiny_transformer.data.chat.conversations import Example, encode_conversations
from tiny_transformer.data.chat.pairs import ANSWERS, encode_pairs, read_pairs
from tiny_transformer.data.chat.records import Reading, read_conversations
from tiny_transformer.data.prepare.records import records_of
from tiny_transformer.errors import UserError, plain
from tiny_transformer.inspection.tokens import CONTROL, LINE_BREAK, PART
from tiny_transformer.models.open import open_checkpoint
from tiny_transformer.tokenizers import Tokenizer
from tiny_transformer.tokenizers.chat import ChatTemplate, Message
from tiny_transformer.tokenizers.templates import CHATML, template_called, template_of

TRAINED, TRAINED_CONTROL = "black on #d9f2d0", "bold black on #8fd18f"
OPENS, CLOSES = (
    "\N{LEFT DOUBLE ANGLE BRACKET}",
    "\N{RIGHT DOUBLE ANGLE BRACKET}",
)  # around what is learnt, without colour


def inspect_conversations(
    source: str, template: str | None, checkpoint: Path | None, *, index: int, count: int, console: Console
) -> None:
    """Show conversations of a file with the tokens that are learnt in colour.

    Args:
        source: as in `finetune --source`.
        template: the name of one; None: what the model was taught, else chatml.
        checkpoint: whose tokenizer reads them; None for the newest.
        index: the first conversation shown.
        count: how many.
        console: where.

    Raises:
        UserError: no such file or model, or what `finetune` would refuse too.
    """
    if index < 0 or count < 1:
        raise UserError("index is 0 or more and count 1 or more", remedy="leave them out for the defaults")
    opened = open_checkpoint(checkpoint)
    chosen = template_called(template) if template else template_of(opened.tokenizer, opened.template) or CHATML
    tokenizer = opened.tokenizer.with_control_tokens(chosen.control_tokens)
    examples = _examples(source, chosen, tokenizer, slice(index, index + count))
    if not examples:
        raise UserError(f"there is no conversation {index} in {source}", remedy="a smaller --index")
    check_template(tokenizer, chosen, examples)
    in_colour = console.color_system is not None
    shown = "green" if in_colour else f"between {OPENS} and {CLOSES}"
    console.print(
        f"{source}, written by the template {chosen.name} for {opened.path}; what is learnt is {shown}",
        highlight=False,
        markup=False,
    )
    for example in examples:
        learnt = sum(example.encoded.is_trained)
        console.print(
            f"\n{example.where}: {len(example.encoded.ids):,} tokens, {learnt:,} of them learnt",
            highlight=False,
            markup=False,
        )
        console.print(conversation_text(example, tokenizer, in_colour=in_colour))


def _examples(source: str, template: ChatTemplate, tokenizer: Tokenizer, shown: slice) -> list[Example]:
    """The conversations of a file; of one with preferences each pair twice, with either answer."""
    _, first = next(records_of(source), ("", None))
    if not (isinstance(first, dict) and first.keys() >= set(ANSWERS)):
        talks = read_conversations(source, template, system=None, skips_bad=False, reading=Reading())
        return encode_conversations(tokenizer, template, islice(talks, shown.start, shown.stop))
    pairs = list(
        islice(read_pairs(source, template, system=None, skips_bad=False, reading=Reading()), shown.start, shown.stop)
    )
    return [
        Example((*pair.messages, Message("assistant", text)), encoded, f"{pair.where}, {name}")
        for pair, both in zip(pairs, encode_pairs(tokenizer, template, pairs), strict=True)
        for name, text, encoded in (
            ("chosen", pair.chosen, both.chosen),
            ("rejected", pair.rejected, both.rejected),
        )
    ]


def conversation_text(example: Example, tokenizer: Tokenizer, *, in_colour: bool) -> Text:
    """The tokens as text, those that are learnt in colour or between brackets."""
    decoder, text, was_trained = tokenizer.stream_decoder(), Text(overflow="fold"), False
    for token, is_trained in zip(*example.encoded, strict=True):
        is_control = tokenizer.is_special(token)
        piece = tokenizer.spelling(token) if is_control else decoder.push(token) or PART
        piece = "\n".join(plain(line) for line in piece.replace("\n", f"{LINE_BREAK}\n").split("\n"))
        if not in_colour and is_trained != was_trained:
            text.append(OPENS if is_trained else CLOSES)
        was_trained = is_trained
        style = (TRAINED_CONTROL if is_trained else CONTROL) if is_control else (TRAINED if is_trained else "")
        text.append(piece, style if in_colour else "")
    return text.append(CLOSES if was_trained and not in_colour else "")
