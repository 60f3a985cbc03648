"""Whether rewards teach a task that a model can do sometimes: sums in words, before GRPO and after it.

    python benchmarks/rewards.py                 # the table of docs/LOG.md; some minutes on one core
    python benchmarks/rewards.py --seed 1 --work DIR

A small model is trained from scratch on little stories that end in a sum, and stopped early: it gives the right sum
sometimes. Then GRPO on questions of that kind, judged by `regex:`. All sums are equally frequent, so that a common
answer is worth no more than a rare one. Both models answer questions with names and things that no training question
of GRPO had together; each pair of numbers was seen. Beside them stand three baselines: the best single answer to all,
and answers drawn with each model's own frequencies, whatever is asked.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
from collections import Counter
from math import comb
from pathlib import Path
from typing import Any, NamedTuple

from machine import keep, machine
from rich.console import Console

from tiny_transformer.config.load import load_run_config
from tiny_transformer.evaluation.rewards import interval_of
from tiny_transformer.generation.judges import Judge
from tiny_transformer.generation.rollouts import roll_out
from tiny_transformer.generation.sampling import SamplingConfig, row_keys
from tiny_transformer.generation.text import encode_prompt
from tiny_transformer.models.open import OpenCheckpoint
from tiny_transformer.stages.launch import launch
from tiny_transformer.stages.stage import Request

WORDS = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"),
    *("thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen"),
)
NAMES = ("Ann", "Ben", "Cleo", "Dan", "Eve", "Finn", "Gus", "Hana", "Ida", "Jon", "Kim", "Lea", "Max", "Nina", "Otto")
THINGS = (
    *("apples", "balls", "books", "boxes", "cakes", "cards", "coins", "cups", "dolls", "eggs", "hats", "keys"),
    *("leaves", "nuts", "pens", "plums", "shells", "stones"),
)
SMALLEST, LARGEST = 2, 9  # of a summand
VERIFIER = r"regex:^\W*(\w+)"
DRAWS, VOTERS, TOKENS = 27, 9, 6
ROWS = 384  # answers of a step of GRPO
SHAPE = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 192,
    "max_position_embeddings": 64,
}
TRAINING: dict[str, Any] = {"device": "cpu", "precision": "fp32", "sample_prompts": [], "optimizer": "adamw"}


class Task(NamedTuple):
    """Stories for the base; questions to learn from, and others to be asked, each with its answer."""

    stories: list[str]
    taught: list[tuple[str, str]]
    asked: list[tuple[str, str]]


class Figures(NamedTuple):
    """Of one model, in shares of the questions: the answers that are right, one by one, by vote (the commonest answer),
    and by more than half of the voters, with 95 % intervals; what the answers that did not vote predict of the last two
    (multinomial and binomial); what the answers would come to if they did not hang on the question."""

    one: tuple[float, float, float]
    vote: tuple[float, float, float]
    half: tuple[float, float, float]
    predicted_vote: float
    predicted_half: float
    same_frequencies: float


def make_task(seed: int, num_stories: int, num_taught: int, num_asked: int) -> Task:
    """Each sum is as likely as every other one; who has what in a question of `asked` is in none of `taught`."""
    rng = random.Random(seed)
    numbers = range(SMALLEST, LARGEST + 1)
    pairs = {s: [(a, s - a) for a in numbers if s - a in numbers] for s in range(2 * SMALLEST, 2 * LARGEST + 1)}
    owners = [(name, thing) for name in NAMES for thing in THINGS]
    rng.shuffle(owners)
    held_out = len(owners) // 5

    def draw(number: int, count: int, owners: list[tuple[str, str]]) -> tuple[str, str]:
        (a, b), (name, thing) = rng.choice(pairs[list(pairs)[number % len(pairs)]]), rng.choice(owners)
        return f"{name} has {WORDS[a]} {thing} and gets {WORDS[b]} more. Now {name} has", WORDS[a + b]

    stories = [" ".join((*draw(number, num_stories, owners), "now.")) for number in range(num_stories)]
    taught = [draw(number, num_taught, owners[held_out:]) for number in range(num_taught)]
    asked = [draw(number, num_asked, owners[:held_out]) for number in range(num_asked)]
    return Task(stories, taught, asked)


def train(work: Path, task: Task, seed: int, base_steps: int, steps: int, console: Console) -> tuple[Path, Path]:
    """The base, and what GRPO makes of it: two runs."""
    stories, questions = work / "stories.jsonl", work / "questions.jsonl"
    stories.write_text("".join(json.dumps({"text": story}) + "\n" for story in task.stories))
    rows = [{"question": question, "answer": answer} for question, answer in task.taught]
    questions.write_text("".join(json.dumps(row) + "\n" for row in rows))
    base: dict[str, Any] = {
        "model": SHAPE,
        "data": {
            **{"source": str(stories), "data_dir": str(work / "data")},
            **{"vocab_size": 512, "seq_len": 32, "packing": "documents"},
        },
        "training": TRAINING
        | {"steps": base_steps, "micro_batch_size": 32, "learning_rate": 3e-3, "seed": seed, "eval_steps": None},
    }
    grpo: dict[str, Any] = {
        "stage": "align",
        "align": {"method": "grpo"},
        "init_from": str(work / "base"),
        "data": {"source": str(questions)},
        "grpo": {"verifier": VERIFIER, "group_size": 8, "max_new_tokens": TOKENS, "kl_weight": 0.0},
        "training": TRAINING
        | {"steps": steps, "micro_batch_size": ROWS, "learning_rate": 1e-3, "seed": seed, "eval_steps": None},
    }
    for name, tree in (("base", base), ("grpo", grpo)):
        config = load_run_config(tree | {"out_dir": str(work / name)})
        launch(Request(config, name, command=["benchmarks/rewards.py"]), console)
    return work / "base", work / "grpo"


def measure(run_dir: Path, asked: list[tuple[str, str]], seed: int) -> Figures:
    """Let a run's last weights answer each question `DRAWS` times at temperature 1."""
    start, judge = OpenCheckpoint(run_dir / "last"), Judge(VERIFIER)
    prompts = [encode_prompt(start.tokenizer, question) for question, _ in asked for _ in range(DRAWS)]
    settings, ends = SamplingConfig(temperature=1.0, max_new_tokens=TOKENS), {start.tokenizer.end_id}
    keys = row_keys(seed, prompts)
    drawn = roll_out(start.model, start.tokenizer, prompts, settings, end_ids=ends, keys=keys, rows_at_once=DRAWS * 10)
    texts = [[one.text for one in drawn[i * DRAWS : (i + 1) * DRAWS]] for i in range(len(asked))]
    right = [
        [judge(question, text, answer).score for text in its]
        for (question, answer), its in zip(asked, texts, strict=True)
    ]
    shares = [sum(its) / DRAWS for its in right]
    votes = [its[winner(texts[i][:VOTERS])] for i, its in enumerate(right)]
    halves = [float(sum(its[:VOTERS]) > VOTERS / 2) for its in right]
    rest = [its[VOTERS:] for its in right]
    predicted_half = [share_of_halves(len(its), round(sum(its))) for its in rest]
    predicted_vote = [share_of_wins(texts[i][VOTERS:], its, random.Random(seed)) for i, its in enumerate(rest)]
    said, true = Counter(said_in(text) for its in texts for text in its), Counter(answer for _, answer in asked)
    same = sum(said[answer] * true[answer] for answer in true) / (len(drawn) * len(asked))
    one, vote, half = ((sum(each) / len(each), *interval_of(each)) for each in (shares, votes, halves))
    means = (sum(each) / len(each) for each in (predicted_vote, predicted_half))
    return Figures(one, vote, half, *means, same)


def share_of_halves(num_answers: int, num_right: int) -> float:
    """How likely more than half of the voters are right, of whom so many other answers are known: the share of all
    choices of `VOTERS` of these. Its mean over answers is the binomial formula's, without the bias of a guessed p."""
    ways = (comb(num_right, k) * comb(num_answers - num_right, VOTERS - k) for k in range(VOTERS // 2 + 1, VOTERS + 1))
    return sum(ways) / comb(num_answers, VOTERS)


def share_of_wins(texts: list[str], right: list[float], rng: random.Random, times: int = 200) -> float:
    """How often a vote of some of these texts is right; in the mean, as the multinomial formula has it."""
    wins = 0.0
    for _ in range(times):
        voters = rng.sample(range(len(texts)), VOTERS)
        wins += right[voters[winner([texts[i] for i in voters])]]
    return wins / times


def said_in(text: str) -> str:
    """The first word."""
    return (text.split() or [""])[0].strip(".,")


def winner(texts: list[str]) -> int:
    """Which text says what most of them say; the first of these, if several answers are said as often."""
    said = [said_in(text) for text in texts]
    return said.index(Counter(said).most_common(1)[0][0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--base_steps", type=int, default=180)
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--questions", type=int, default=300, help="to be asked, of each model")
    parser.add_argument("--work", type=Path, help="keep the runs there")
    args = parser.parse_args()
    results = {"machine": machine(["torch"]), "settings": {k: v for k, v in vars(args).items() if k != "work"}}
    task = make_task(args.seed, 20_000, 1_500, args.questions)
    true = Counter(answer for _, answer in task.asked)
    print(f"best single answer to all: {max(true.values()) / len(task.asked):.1%}")
    with tempfile.TemporaryDirectory() as temporary:
        work = args.work or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        runs = train(work, task, args.seed, args.base_steps, args.steps, Console())
        for name, run_dir in zip(("before", "after"), runs, strict=True):
            found = measure(run_dir, task.asked, args.seed)
            results[name] = found._asdict()
            one, vote, half = (f"{a:.1%} ({b:.1%} to {c:.1%})" for a, b, c in (found.one, found.vote, found.half))
            print(f"{name:6}  one answer {one}", end="  ")
            print(f"vote of {VOTERS} {vote}, predicted {found.predicted_vote:.1%}", end="  ")
            print(f"more than half right {half}, predicted {found.predicted_half:.1%}", end="  ")
            print(f"own frequencies {found.same_frequencies:.1%}")
    print(keep(f"rewards-{args.seed}", results))


if __name__ == "__main__":
    main()
