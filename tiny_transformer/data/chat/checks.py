"""What is looked at before a fine-tuning run starts: mistakes of templates and masks that no loss curve shows.

Each check is asked on the conversations at hand, and refuses with a message of its own.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tiny_transformer.data.chat.conversations import Example, TokenStore
from tiny_transformer.data.packing import IGNORE_INDEX, Packing
from tiny_transformer.errors import ExitCode, UserError
from tiny_transformer.tokenizers.chat import ChatTemplate, Marks, Message, encode_segments
from tiny_transformer.tokenizers.tokenizer import Tokenizer

NUM_CHECKED = 100  # conversations, spread over all
MARKER = "zqx7"  # stands in no template


def check_template(tokenizer: Tokenizer, template: ChatTemplate, examples: Sequence[Example]) -> None:
    """Refuse a template that trains the wrong tokens.

    Raises:
        UserError: a user's token that is trained, an end token that is not, answers that are asked for with other
            tokens than they were learnt after, or a text "None" that nobody wrote.
    """
    step = -(-len(examples) // NUM_CHECKED)
    for example in examples[::step]:
        _check_questions(tokenizer, template, example)
        _check_end(tokenizer, template, example)
        _check_none(tokenizer, template, example)
        _check_prompts(tokenizer, template, example)


def check_rows(rows: Packing, store: TokenStore, end_id: int) -> None:
    """Refuse rows that lose targets: where padding is the end token, a mask by value would hide every end.

    Raises:
        UserError: the rows have other targets than the conversations.
    """
    ends = targets = 0
    for i in range(len(rows)):
        labels = rows[i].labels
        targets += int((labels != IGNORE_INDEX).sum())
        ends += int((labels == end_id).sum())
    trained = store.trained(0, len(store))
    num_ends = int((trained & (store.read(0, len(store)) == end_id)).sum())
    if ends < num_ends:
        raise _refused(
            f"the padding is the end token, and masking it hides {num_ends - ends:,} of {num_ends:,} ends of answers",
            store.path.name,
            "mask padding by its position, not by its value",
        )
    if targets != store.num_targets:
        raise _refused(f"rows have {targets:,} targets, and answers {store.num_targets:,} tokens", store.path.name)


def check_lengths(store: TokenStore, num_examples: int, seq_len: int) -> None:
    """Refuse data of which nothing is left.

    Raises:
        UserError: no conversation has a token of its answer within a row.
    """
    if num_examples and not store.examples:
        raise _refused(
            f"everything is truncated away: none of {num_examples:,} conversations has an answer that begins within "
            f"{seq_len:,} tokens",
            store.path.name,
            "a larger --seq_len, or shorter questions",
        )


def count_other_ids(tokenizer: Tokenizer, template: ChatTemplate, examples: Sequence[Example]) -> int:
    """Of the conversations that are checked, in how many a program that encodes header and answer as one text gets
    other ids: some tokenizers join them, or put a blank before each text."""
    marks, others = Marks.of(tokenizer), 0
    for example in examples[:: -(-len(examples) // NUM_CHECKED)]:
        segments = template.render(example.messages, marks)
        whole = encode_segments(tokenizer, [segment._replace(is_trained=False) for segment in segments])
        others += whole.ids != example.encoded.ids
    return others


def _check_questions(tokenizer: Tokenizer, template: ChatTemplate, example: Example) -> None:
    marked = [
        message if message.role == "assistant" else message._replace(content=f"{MARKER} {message.role}")
        for message in example.messages
    ]
    for segment in template.render(marked, Marks.of(tokenizer)):
        if segment.is_trained and MARKER in segment.text:
            raise _refused(
                f"the template {template.name} trains the tokens of the {segment.text.split(MARKER)[1].strip()}",
                example.where,
                "mark the text of answers as trained and nothing else",
            )


def _check_end(tokenizer: Tokenizer, template: ChatTemplate, example: Example) -> None:
    ids, is_trained = example.encoded
    learnt = np.flatnonzero(is_trained)
    if not len(learnt):
        raise _refused(f"the template {template.name} trains no token of this conversation", example.where)
    if ids[learnt[-1]] != template.end_id(tokenizer):
        end = tokenizer.spelling(template.end_id(tokenizer))
        raise _refused(
            f"the end token {end} is not trained, so the model would never stop",
            example.where,
            f"the template {template.name} must end an answer with it, and mark it as trained",
        )


def _check_prompts(tokenizer: Tokenizer, template: ChatTemplate, example: Example) -> None:
    """What is fed to get an answer must be how the conversation begins."""
    for i, message in enumerate(example.messages):
        if message.role != "assistant" or not (template.keeps_turns or i == len(example.messages) - 1):
            continue
        prompt = template.prompt_ids(tokenizer, example.messages[:i])
        shared = example.encoded.ids[: len(prompt)]
        thought = 0 if template.keeps_turns else _shared(prompt, shared)  # an answer may begin with its thoughts
        if shared != prompt and not thought:
            raise _refused(
                f"the template {template.name} is unstable: before message {i + 1} it writes other tokens when the "
                "answer is asked for than when it is learnt",
                example.where,
                "a template whose earlier text does not change when messages follow",
            )


def _shared(prompt: list[int], ids: list[int]) -> int:
    """How many tokens both begin with, if that is all but a few at the end."""
    same = next((i for i, (a, b) in enumerate(zip(prompt, ids, strict=False)) if a != b), min(len(prompt), len(ids)))
    return same if len(prompt) - same <= 16 else 0


def _check_none(tokenizer: Tokenizer, template: ChatTemplate, example: Example) -> None:
    messages = [Message(message.role, MARKER) for message in example.messages]
    text = "".join(segment.text for segment in template.render(messages, Marks.of(tokenizer)))
    if "None" in text:
        raise _refused(
            f'the template {template.name} writes a literal "None" that stands in no message',
            example.where,
            "write nothing where a value is missing",
        )


def _refused(what: str, where: str, remedy: str | None = None) -> UserError:
    return UserError(what, where=where, remedy=remedy, exit_code=ExitCode.BAD_DATA)
