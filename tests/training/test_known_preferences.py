"""A preference whose true order is known: stories from a grammar of the corpus's own kind, with happy and sad endings
that are equally likely, and comparisons in exactly the shares that Bradley and Terry's model gives for known rewards.

DPO's optimum is then known too: the implicit reward is the true one up to a constant, and an ending is drawn with a
probability proportional to its old one times exp(reward / beta) (Rafailov et al., 2023, equation 4).
"""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from run_helpers import run_tiny
from tuning_helpers import tune, tuning_tree

from tiny_transformer.data.chat.pairs import Pair, encode_pairs
from tiny_transformer.data.preferences import answer_rows
from tiny_transformer.data.stories.sampler import Sampler
from tiny_transformer.data.stories.template import Reader
from tiny_transformer.data.stories.words.build import nouns, people
from tiny_transformer.evaluation.preferences import answer_logps
from tiny_transformer.generation.rows import continue_ids
from tiny_transformer.generation.sampling import SamplingConfig
from tiny_transformer.models.open import OpenCheckpoint
from tiny_transformer.tokenizers.chat import Message
from tiny_transformer.tokenizers.templates import PLAIN

HAPPY = ("Joy!", "Hug.", "Glad.", "Fine.")  # the happiest first
SAD = ("Meh.", "Wet.", "Ouch!", "Cry.")
ENDINGS = (*HAPPY, *SAD)
REWARDS = [1.75 - 0.5 * place for place in range(len(ENDINGS))]
BETA, COMPARISONS, SAMPLES = 1.0, 40, 256
LISTS = {"names": people("Ann, Eve", "Bob, Tim"), "toys": nouns("hat, map")}
RULES = {"start": "{who=names} lost {toy=toys.a}. [#ending " + "|".join(ENDINGS) + "]"}


def stories(count: int) -> list[tuple[str, str]]:
    """Beginnings and endings of stories."""
    sampler = Sampler(Reader(RULES, LISTS).read("start"))
    found = []
    for index in range(count):
        text, log_probability = sampler.sample(7, index)
        assert log_probability == pytest.approx(math.log(1 / (4 * 2 * len(ENDINGS))))  # all are equally likely
        found.append((text[: text.index(".") + 1], text[text.index(".") + 2 :]))
    return found


def comparisons(beginnings: list[str]) -> list[dict[str, str]]:
    """Each two endings, the better one preferred as often as Bradley and Terry say."""
    rows, place = [], itertools.cycle(beginnings)
    for better, worse in itertools.combinations(range(len(ENDINGS)), 2):
        wins = round(COMPARISONS / (1 + math.exp(REWARDS[worse] - REWARDS[better])))
        for number in range(COMPARISONS):
            first, second = (better, worse) if number < wins else (worse, better)
            rows.append({"prompt": next(place), "chosen": ENDINGS[first], "rejected": ENDINGS[second]})
    return rows


def ending_logps(checkpoint: Path, beginnings: list[str]) -> torch.Tensor:
    """(beginnings, endings) log-probabilities."""
    opened = OpenCheckpoint(checkpoint)
    pairs = [Pair((Message("user", b),), ending, ending, "") for b in beginnings for ending in ENDINGS]
    rows = answer_rows([pair.chosen for pair in encode_pairs(opened.tokenizer, PLAIN, pairs)])
    with torch.no_grad():
        return answer_logps(opened.model, rows).double().view(len(beginnings), -1)


def kendall_tau(values: list[float], truth: list[float]) -> float:
    """Concordant less discordant pairs, as a share of all."""
    signs = [
        math.copysign(1, (values[i] - values[j]) * (truth[i] - truth[j]))
        for i, j in itertools.combinations(range(len(values)), 2)
    ]
    return sum(signs) / len(signs)


@pytest.mark.slow
def test_dpo_recovers_the_true_order_and_samples_move_as_theory_says(tiny_data: Path, tmp_path: Path) -> None:
    told = stories(400)
    beginnings = sorted({beginning for beginning, _ in told})
    assert len(beginnings) == 8
    for name, rows in (
        ("talks", [{"question": beginning, "answer": ending} for beginning, ending in told]),
        ("pairs", comparisons(beginnings)),
    ):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    run_tiny(tiny_data, tmp_path / "fresh", steps=1, eval_steps=None)
    quick: dict[str, Any] = {"eval_steps": None, "save_steps": None, "log_steps": 100, "dropout": 0.0}
    learns = {**quick, "steps": 250, "learning_rate": 5e-3, "micro_batch_size": 16}
    data, plain = {"val_fraction": 1e-9}, {"template": "plain"}
    talks, pairs = tmp_path / "talks.jsonl", tmp_path / "pairs.jsonl"
    tune(tuning_tree(tmp_path / "fresh", talks, tmp_path / "base", data=data, finetune=plain, training=learns))
    aligns = {**quick, "steps": 250, "learning_rate": 3e-3, "micro_batch_size": 32, "sample_tokens": 12}
    section = {**plain, "beta": BETA}
    changes: dict[str, Any] = {"stage": "align", "align": section, "training": aligns, "data": data}
    tune(tuning_tree(tmp_path / "base", pairs, tmp_path / "aligned", **changes))

    before, after = (ending_logps(tmp_path / name / "last", beginnings) for name in ("base", "aligned"))
    reward = (BETA * (after - before)).mean(0).tolist()
    theory = (before + torch.tensor(REWARDS) / BETA).softmax(-1)[:, : len(HAPPY)].sum(-1).mean().item()
    was, share = (logps.softmax(-1)[:, : len(HAPPY)].sum(-1).mean().item() for logps in (before, after))
    drawn = share_of_samples(tmp_path / "aligned/last", beginnings)
    tau = kendall_tau(reward, REWARDS)
    print(f"tau {tau:.2f}; happy {was:.3f} -> {share:.3f}, {drawn:.3f} of samples, theory {theory:.3f}")
    assert tau > 0.9
    assert was == pytest.approx(0.5, abs=0.1) and share == pytest.approx(theory, abs=0.05)
    assert drawn == pytest.approx(share, abs=4 * math.sqrt(share * (1 - share) / SAMPLES))


def share_of_samples(checkpoint: Path, beginnings: list[str]) -> float:
    """Of the texts that are one of the endings, how many are happy."""
    opened = OpenCheckpoint(checkpoint)
    prompts = [PLAIN.prompt_ids(opened.tokenizer, [Message("user", b)]) for b in beginnings] * (
        SAMPLES // len(beginnings)
    )
    ends = (opened.tokenizer.end_id,)
    rows = continue_ids(opened.model, prompts, SamplingConfig(temperature=1.0, max_new_tokens=12, seed=1), end_ids=ends)
    texts = [opened.tokenizer.decode(ids) for ids in rows]
    known = [text for text in texts if text in ENDINGS]
    assert len(known) > 0.8 * SAMPLES
    return sum(text in HAPPY for text in known) / len(known)
