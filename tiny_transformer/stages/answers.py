"""What a fine-tuned model answers: shown at the end of a run, with the share of answers that it ended itself."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

from tiny_transformer.generation.answers import answer
from tiny_transformer.generation.sampling import SamplingConfig
from tiny_transformer.models.open import OpenCheckpoint
from tiny_transformer.reports.outcome import outcome_of
from tiny_transformer.reports.run_reader import read_run
from tiny_transformer.stages.chat import ChatStart
from tiny_transformer.stages.chat_data import ChatData
from tiny_transformer.stages.samples import keep_samples
from tiny_transformer.stages.stage import RunResult
from tiny_transformer.storage import RunDirectory
from tiny_transformer.tokenizers.chat import Message
from tiny_transformer.training.plan import in_steps

NUM_ANSWERS, NUM_SHOWN = 100, 3


def show_answers(result: RunResult, data: ChatData, console: Console) -> None:
    """Say what the loss came to, let the best checkpoint answer held-out questions, and keep its answers."""
    best, state = outcome_of(read_run(result.run_dir)), result.state
    console.print(
        f"\n{'stopped early' if result.status == 'stopped_early' else 'finished'}: loss on held-out answers "
        f"{'not measured (set eval_steps)' if best.val_loss is None else f'{best.val_loss:.3f} nats per token'}, "
        f"{in_steps(state.step)}, {state.num_tokens:,} tokens of answers, {state.elapsed_seconds / 60:.1f} minutes",
        highlight=False,
    )
    asked = [
        example.messages[: [message.role for message in example.messages].index("assistant")]
        for example in data.val.examples
    ]
    answer_held_out(result, data.start, asked, console)


def answer_held_out(
    result: RunResult, start: ChatStart, asked: Sequence[tuple[Message, ...]], console: Console
) -> None:
    """Let the best checkpoint answer questions that it was not trained on; show some of its answers, keep all."""
    run, training = RunDirectory(result.run_dir), result.stage.config.training
    checkpoint = run.resolve("best") or run.resolve("last")
    if checkpoint is None:
        return
    opened = OpenCheckpoint(checkpoint.path, device=str(result.hardware.device))
    settings = SamplingConfig(temperature=0.7, top_p=0.95, max_new_tokens=training.sample_tokens, seed=training.seed)
    questions = with_room(asked, start, result.stage.config.model.max_position_embeddings)[:NUM_ANSWERS]
    answers = answer(opened.model, opened.tokenizer, start.template, questions, settings)
    ended = sum(one.reason == "end" for one in answers)
    for question, one in list(zip(questions, answers, strict=True))[:NUM_SHOWN]:
        console.print(Text.assemble("\n", (question[-1].content, "bold"), "\n", one.text))
    console.print(
        f"\n{ended:,} of {len(answers):,} answers to held-out questions ended by themselves within "
        f"{training.sample_tokens:,} tokens",
        highlight=False,
    )
    facts = {"step": checkpoint.step, "settings": {"temperature": 0.7, "top_p": 0.95, "seed": training.seed}}
    samples = [
        {"prompt": question[-1].content, "text": one.text, "ended": one.reason == "end", **facts}
        for question, one in zip(questions, answers, strict=True)
    ]
    keep_samples(result.run_dir, samples)


def with_room(asked: Sequence[tuple[Message, ...]], start: ChatStart, context_length: int) -> list[tuple[Message, ...]]:
    """The different questions that leave half of the context for an answer."""
    limit = context_length // 2
    return [q for q in dict.fromkeys(asked) if len(start.template.prompt_ids(start.tokenizer, q)) <= limit]
