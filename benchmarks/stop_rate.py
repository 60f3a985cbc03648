"""How many answers of a fine-tuned model end by themselves: the stop rate, for three ways of drawing them.

    python benchmarks/stop_rate.py runs/answers --source FILE [--count 400] [--max_new_tokens 300]

The questions are those of the conversations in FILE, evenly spread over it, that leave room for such an answer. FILE
should be one that the model has not learnt from. Some questions whose answers went on are shown.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from tiny_transformer.data.chat.records import Reading, read_conversations
from tiny_transformer.generation.answers import answer
from tiny_transformer.generation.sampling import SamplingConfig
from tiny_transformer.models.find import find_checkpoint
from tiny_transformer.models.open import OpenCheckpoint
from tiny_transformer.tokenizers.chat import ChatTemplate, Message
from tiny_transformer.tokenizers.templates import template_of

WAYS = {
    "greedy": {"temperature": 0.0},
    "greedy, repetition_penalty 1.2": {"temperature": 0.0, "repetition_penalty": 1.2},
    "temperature 0.7, top_p 0.9 (chat)": {"temperature": 0.7, "top_p": 0.9},
    "temperature 0.7, top_p 0.95": {"temperature": 0.7, "top_p": 0.95},
    "temperature 1": {"temperature": 1.0},
}


def main() -> None:
    """Measure as the command line says; a line for each way of drawing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a fine-tuned run or checkpoint")
    parser.add_argument("--source", required=True, help="conversations, as for finetune")
    parser.add_argument("--count", type=int, default=400, help="questions at most")
    parser.add_argument("--max_new_tokens", type=int, default=300, help="tokens of an answer at most")
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    opened = OpenCheckpoint(find_checkpoint(given.run)[0], device="cpu")
    questions = questions_for(opened, given.source, given.count, given.max_new_tokens)
    for name, drawn in WAYS.items():
        settings = SamplingConfig(max_new_tokens=given.max_new_tokens, seed=given.seed, **drawn)
        answers = answer(opened.model, opened.tokenizer, taught(opened), questions, settings)
        ended = sum(one.reason == "end" for one in answers)
        print(f"{name}: {ended} of {len(answers)} end by themselves ({ended / len(answers):.1%})", flush=True)
        on = [(q[-1].content, one.text) for q, one in zip(questions, answers, strict=True) if one.reason != "end"]
        for question, text in on[:3]:
            print(f"    {question[:50]!r} -> {text[:80]!r}", flush=True)


def questions_for(opened: OpenCheckpoint, source: str, count: int, num_tokens: int) -> list[tuple[Message, ...]]:
    """Different first questions of conversations, evenly spread, that leave room for so many tokens."""
    template = taught(opened)
    conversations = read_conversations(source, template, system=None, skips_bad=True, reading=Reading())
    asked = [talk.messages[: [message.role for message in talk.messages].index("assistant")] for talk in conversations]
    room = opened.config.max_position_embeddings - num_tokens
    fitting = [q for q in dict.fromkeys(asked) if len(template.prompt_ids(opened.tokenizer, q)) <= room]
    if not fitting:
        raise SystemExit(f"no question of {source} leaves room for {num_tokens} tokens: give fewer --max_new_tokens")
    return fitting[:: max(1, len(fitting) // count)][:count]


def taught(opened: OpenCheckpoint) -> ChatTemplate:
    """The template that the model was taught."""
    template = template_of(opened.tokenizer, opened.template)
    if template is None:
        raise SystemExit(f"{opened.path} was not taught to chat by a template of ours: fine-tune it first")
    return template


if __name__ == "__main__":
    main()
