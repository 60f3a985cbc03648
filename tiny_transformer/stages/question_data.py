"""The questions of a run that learns from rewards: read, split, made tokens, and the config completed by them."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tiny_transformer.config.stages import AlignConfig
from tiny_transformer.data.chat.conversations import split
from tiny_transformer.data.chat.records import Reading
from tiny_transformer.data.questions import Question, read_questions
from tiny_transformer.errors import ExitCode, UserError
from tiny_transformer.generation.judges import Judge
from tiny_transformer.generation.text import encode_prompt
from tiny_transformer.stages.chat import ROW_STEP, first_checkpoint, refuse_unused
from tiny_transformer.stages.stage import Request
from tiny_transformer.tokenizers import Tokenizer
from tiny_transformer.tokenizers.chat import ChatTemplate
from tiny_transformer.tokenizers.templates import template_called, template_of
from tiny_transformer.training.policy import PolicySettings
from tiny_transformer.training.rollouts import RoundSettings

DEFAULT_EPOCHS, MICRO_BATCH, PASSES = 1.0, 16, 4
MOST_VALIDATED = 256  # questions of the validation split that an evaluation asks
ROWS_AT_ONCE = 64


@dataclass(frozen=True)
class Questions:
    """The questions of one split, with their tokens."""

    asked: list[Question]
    prompts: list[tuple[int, ...]]


@dataclass(frozen=True)
class QuestionData:
    """What a run learns from.

    Attributes:
        config: completed.
        tokenizer: of the base.
        template: how a conversation is written; None: the model continues a question's text.
        judge: what an answer is worth.
        train, val: the questions.
        reading: how many records there were, and what was left out.
        num_long: questions that leave no room for an answer, left out.
    """

    config: AlignConfig
    tokenizer: Tokenizer
    template: ChatTemplate | None
    judge: Judge
    train: Questions
    val: Questions
    reading: Reading
    num_long: int

    @property
    def end_ids(self) -> frozenset[int]:
        """Tokens that end an answer."""
        ends = {self.tokenizer.end_id} | (set() if self.template is None else {self.template.end_id(self.tokenizer)})
        return frozenset(ends)

    @property
    def fingerprint(self) -> str:
        """A hash of questions and answers as they are asked."""
        pairs = zip(self.train.asked, self.train.prompts, strict=True)
        asked = repr([(prompt, one.answer) for one, prompt in pairs])
        return hashlib.blake2b(asked.encode("utf-8", "replace"), digest_size=16).hexdigest()


def open_question_data(request: Request, config: AlignConfig, run_dir: Path) -> QuestionData:
    """Read the questions, load the verifier, and complete the config.

    Raises:
        UserError: no start, no questions, a record that is none, a verifier that cannot be used, settings that say
            nothing.
    """
    _refuse(config, request)
    start = first_checkpoint(request, run_dir, "learning from rewards")
    asked = config.align.template
    template = template_called(asked) if asked != "auto" else template_of(start.tokenizer, start.template)
    judge, reading = Judge(config.grpo.verifier, timeout_seconds=config.grpo.verifier_seconds), Reading()
    judge.start()
    questions = read_questions(
        config.data.source,
        system=config.align.system_prompt,
        needs_answers=judge.needs_answers,
        skips_bad=config.align.skip_bad_rows,
        reading=reading,
    )
    sides = split(list(questions), config.data.val_fraction)
    room = config.model.max_position_embeddings - config.grpo.max_new_tokens
    train, val = (_encoded(side, start.tokenizer, template, room) for side in sides)
    num_long = sum(map(len, sides)) - len(train.asked) - len(val.asked)
    if not train.asked or not val.asked:
        raise UserError(
            f"questions of more than {max(0, room):,} tokens leave no room for an answer, and {num_long:,} of "
            f"{sum(map(len, sides)):,} are longer",
            where=config.data.source,
            remedy="a smaller --max_new_tokens, or shorter questions",
            exit_code=ExitCode.BAD_DATA,
        )
    longest = max(map(len, (*train.prompts, *val.prompts)))
    config = _completed(request, config, len(train.asked), longest)
    return QuestionData(config, start.tokenizer, template, judge, train, val, reading, num_long)


def _refuse(config: AlignConfig, request: Request) -> None:
    refuse_unused(config, "learning from rewards", "questions")
    if not request.resume and "seq_len" in (request.asked or ()):
        raise UserError(
            "data.seq_len says nothing to grpo: a row is as long as the longest question and its answer",
            where="data.seq_len",
            remedy="leave it out; --max_new_tokens is the length of an answer",
        )
    plain = type(config.align).model_fields["beta"].default
    if config.align.beta != plain:
        raise UserError(
            "align.beta says nothing to grpo", where="align.beta", remedy="--kl_weight is the reference's weight"
        )
    if config.training.parallelism == "fsdp":
        raise UserError(
            "grpo does not share the weights: answers are written by a whole model",
            where="training.parallelism",
            remedy="training.parallelism=ddp",
        )


def _encoded(side: Sequence[Question], tokenizer: Tokenizer, template: ChatTemplate | None, room: int) -> Questions:
    """The questions that have room, and their tokens.

    Raises:
        UserError: a conversation for a model without a template, or a text that the tokenizer cannot encode.
    """
    kept = Questions([], [])
    for question in side:
        try:
            if template is not None:
                ids = template.prompt_ids(tokenizer, question.messages)
            elif len(question.messages) > 1:
                raise UserError(
                    "a conversation of several messages, and the model was not taught to chat",
                    remedy="fine-tune it first, or --template plain",
                )
            else:
                ids = encode_prompt(tokenizer, question.text)
        except UserError as error:
            raise UserError(
                error.what, where=question.where, remedy=error.remedy, exit_code=ExitCode.BAD_DATA
            ) from None
        if len(ids) <= room:
            kept.asked.append(question)
            kept.prompts.append(tuple(ids))
    return kept


def _completed(request: Request, config: AlignConfig, num_questions: int, longest: int) -> AlignConfig:
    """With what follows from the questions: the size of a batch, the length of rows and of the run."""
    training, group_size, data = config.training, config.grpo.group_size, config.data
    if not {"micro_batch_size", "grad_accum_steps"} & training.model_fields_set:
        training = training.model_copy(update={"micro_batch_size": MICRO_BATCH, "grad_accum_steps": PASSES})
    rows = training.examples_per_step
    if rows % group_size:
        raise UserError(
            f"a batch of {rows} answers is no number of whole groups of {group_size}",
            where=f"micro_batch_size {training.micro_batch_size} x grad_accum_steps {training.grad_accum_steps}",
            remedy=f"make it a multiple of grpo.group_size, {group_size}",
        )
    seq_len = ROW_STEP * math.ceil((longest + config.grpo.max_new_tokens) / ROW_STEP)
    seq_len = data.seq_len if request.resume else min(seq_len, config.model.max_position_embeddings)
    data = data.model_copy(update={"seq_len": seq_len, "packing": "documents"})
    lengths = (training.steps, training.max_tokens, training.epochs, training.max_train_minutes)
    epochs = DEFAULT_EPOCHS if lengths == (None,) * len(lengths) else training.epochs
    if epochs is not None:
        answers = num_questions * group_size * config.grpo.updates_per_round
        tokens = math.ceil(epochs * answers * data.seq_len)
        tokens = min(tokens, training.max_tokens or tokens)
        training = training.model_copy(update={"epochs": epochs, "max_tokens": tokens})
    return config.model_copy(update={"training": training, "data": data})


def round_settings(config: AlignConfig) -> RoundSettings:
    """How rounds are made."""
    grpo, training = config.grpo, config.training
    whole_groups = grpo.group_size * max(1, ROWS_AT_ONCE // grpo.group_size)
    return RoundSettings(
        group_size=grpo.group_size,
        num_questions=training.examples_per_step // grpo.group_size,
        num_updates=grpo.updates_per_round,
        scale=grpo.scale_rewards,
        counts_tokens=grpo.loss_type == "dapo",
        temperature=grpo.temperature,
        max_new_tokens=grpo.max_new_tokens,
        seed=training.seed,
        rows_at_once=grpo.group_size if training.deterministic else whole_groups,
        rows_of_pass=training.micro_batch_size,
        failure=grpo.verifier_failure,
    )


def policy_settings(config: AlignConfig) -> PolicySettings:
    """The loss."""
    grpo = config.grpo
    high = grpo.clip if grpo.clip_high is None else grpo.clip_high
    return PolicySettings(grpo.loss_type, grpo.clip, high, grpo.kl_weight, grpo.temperature, grpo.max_new_tokens)
