"""What a run that learns from rewards says: before its first step, at its end, and of a step that is looked at."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tiny_transformer.evaluation.rewards import QuestionBatch, RewardFigures, evaluate_rewards, interval_of
from tiny_transformer.models.contract import CausalLM
from tiny_transformer.models.open import OpenCheckpoint
from tiny_transformer.stages.examples import beginning, table_of
from tiny_transformer.stages.question_data import MOST_VALIDATED, ROWS_AT_ONCE, QuestionData, round_settings
from tiny_transformer.stages.samples import keep_samples
from tiny_transformer.stages.stage import RunResult
from tiny_transformer.storage import RunDirectory
from tiny_transformer.tokenizers import Tokenizer
from tiny_transformer.training.policy import PolicyBatch

NUM_SHOWN, NUM_KEPT = 3, 100
DIVISORS = {"dapo": "written tokens", "grpo": "answers", "dr_grpo": "answers"}


def describe(data: QuestionData, total_steps: int) -> str:
    """The questions, what was left out, the rounds, and what the loss is a mean of."""
    config, rounds = data.config, round_settings(data.config)
    asked = total_steps / rounds.num_updates * rounds.num_questions
    way = "continued as they stand" if data.template is None else data.template.name
    parts = [
        f"{config.data.source}, {len(data.train.asked):,} questions and {len(data.val.asked):,} held out ({way}); "
        f"a step asks {rounds.num_questions:,} of them for {rounds.group_size:,} answers each, this run "
        f"{asked / len(data.train.asked):.2f} times all",
        f"rewards: {config.grpo.verifier}; the loss ({config.grpo.loss_type}) is divided by the number of "
        f"{DIVISORS[config.grpo.loss_type]}",
    ]
    parts += data.reading.left_out()
    if data.num_long:
        parts.append(f"{data.num_long:,} questions left out that leave no room for an answer")
    return "; ".join(parts)


def question_batches(data: QuestionData) -> Iterator[QuestionBatch]:
    """The first validation questions, in order."""
    prompts = data.val.prompts[:MOST_VALIDATED]
    for first in range(0, len(prompts), ROWS_AT_ONCE):
        part = tuple(prompts[first : first + ROWS_AT_ONCE])
        yield QuestionBatch(part, torch.arange(first, first + len(part)))


def answer_questions(model: CausalLM, data: QuestionData, batches: Iterable[QuestionBatch]) -> RewardFigures:
    """A model's likeliest answers to validation questions, and their rewards."""
    parts = list(batches)
    places = [int(place) for batch in parts for place in batch.sample_ids]
    asked = [data.val.asked[place] for place in places]

    def reward(place: int, text: str) -> float:
        return data.judge(asked[place].text, text, asked[place].answer).score

    return evaluate_rewards(
        model,
        data.tokenizer,
        [prompt for batch in parts for prompt in batch.prompts],
        reward,
        end_ids=data.end_ids,
        max_new_tokens=data.config.grpo.max_new_tokens,
        rows_at_once=ROWS_AT_ONCE,
    )


def show_rewards(result: RunResult, data: QuestionData, console: Console) -> None:
    """Let the best checkpoint answer held-out questions, say what that came to, and keep its answers."""
    run = RunDirectory(result.run_dir)
    checkpoint = run.resolve("best") or run.resolve("last")
    if checkpoint is None:
        return
    model = OpenCheckpoint(checkpoint.path, device=str(result.hardware.device)).model
    figures = answer_questions(model, data, question_batches(data))
    low, high = interval_of(figures.rewards)
    console.print(
        f"\nheld-out questions: reward {figures.mean:.3f} (95 % interval {low:.3f} to {high:.3f}, likeliest answers "
        f"to {len(figures.rewards):,} questions, step {checkpoint.step:,}), {figures.ended:.0%} ended by themselves, "
        f"{figures.length:.1f} tokens each",
        highlight=False,
    )
    facts = {"step": checkpoint.step, "settings": {"temperature": 0.0}}
    samples = [
        {"prompt": question.text, "text": one.text, "reward": reward, "ended": one.reason == "end", **facts}
        for question, one, reward in zip(data.val.asked, figures.answers, figures.rewards, strict=False)
    ]
    for sample in samples[:NUM_SHOWN]:
        asked, text = str(sample["prompt"]), str(sample["text"])
        console.print(Text.assemble("\n", (asked, "bold"), "\n", text, f"   (reward {sample['reward']:g})"))
    keep_samples(result.run_dir, samples[:NUM_KEPT])


def show_rollouts(micro_batches: Sequence[PolicyBatch], tokenizer: Tokenizer) -> Table:
    """Answers of a step, one a row."""
    rows = [
        (
            f"{question:,}",
            f"{batch.facts['reward'][row].item():g}",
            f"{batch.advantages[row].item():+.2f}",
            beginning(tokenizer, batch.input_ids[row][batch.is_written[row]].tolist()),
        )
        for batch in micro_batches
        for row, question in enumerate(batch.sample_ids.tolist())
    ]
    return table_of(("question", "reward", "advantage", "answer"), rows)
