"""The answer most texts give wins, what a vote gains is what the binomial formula says, and odd votes are refused."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from tiny_transformer.cli import run
from tiny_transformer.errors import ExitCode, UserError
from tiny_transformer.generation.rows import Generation
from tiny_transformer.generation.sampling import SamplingConfig
from tiny_transformer.generation.voting import parse_vote

MAJORITY = parse_vote("majority")


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("She has 3 hens and buys 1,204 more. #### 1,207\nGood.", "1207"),
        ("so 12.5 + 3 = 15.5", "15.5"),
        ("it is -7.", "-7"),
        ("yes \n", "yes"),
        ("no 3 #### none", "none"),
        ("", ""),
    ],
)
def test_what_a_text_answers(text, answer):
    assert MAJORITY.answer_of(text) == answer


def test_the_commonest_answer_wins_and_of_equals_the_first():
    election = MAJORITY.elect("", ["it is 5", "6", "makes 5", "7", "6"])
    assert (election.winner, election.answer, election.tally()) == (0, "5", {"5": 2, "6": 2, "7": 1})
    election = MAJORITY.elect("", ["7", "it is 5", "5"])
    assert election.winner == 1 and election.sentence() == "vote of 3: 5 × 2, 7 × 1; shown: text 2"


def test_a_pattern_chooses_its_last_match_and_texts_without_one_do_not_vote():
    vote = parse_vote(r"regex:Answer: (\w+)")
    election = vote.elect("", ["Answer: a. Answer: b", "nothing", "nothing", "nothing", "Answer: b"])
    assert election.answers == ("b", None, None, None, "b") and election.winner == 0
    assert "no answer × 3" in election.sentence()
    assert parse_vote(r"regex:\d+").elect("", ["a 3", "b"]).answer == "3"
    with pytest.raises(UserError, match="none of the 2 texts has an answer"):
        vote.elect("", ["x", "y"])


def test_a_verifier_chooses_the_highest_score_and_what_it_could_not_judge_is_told(tmp_path):
    file = tmp_path / "v.py"
    file.write_text("def f(prompt, text):\n    return {'a': 1, 'b': 2.5, 'c': 2.5}[text] + len(prompt)\n")
    election = parse_vote(f"verifier:{file}:f").elect("xy", ["a", "z", "b", "c"])
    assert (election.winner, election.scores) == (2, (3, 0, 4.5, 4.5))
    assert [index for index, problem in election.problems if "KeyError" in problem] == [1]
    assert "the best score is 4.5" in election.sentence()
    with pytest.raises(UserError, match="could judge no text: KeyError"):
        parse_vote(f"verifier:{file}:f").elect("xy", ["z", "y"])


@pytest.mark.parametrize(
    ("form", "what"),
    [
        ("majorty", "--vote majorty is not possible"),
        ("regex:", "is not possible"),
        ("regex:(", "( is no regular expression"),
        ("verifier:x.py", "is not possible"),
        ("verifier:x.py:f", "x.py does not exist"),
        ("verifier:x.py:1f", "is not possible"),
        ("majority:x", "is not possible"),
    ],
)
def test_another_form_is_refused(form, what):
    with pytest.raises(UserError) as refused:
        parse_vote(form)
    assert what in refused.value.what


# --- what it gains


class Solver:
    """Answers sums: it continues `a + b =` with the right number with probability 0.6, else with the next one."""

    training = False

    def __init__(self, model) -> None:
        self._model = model

    def __getattr__(self, name):
        return getattr(self._model, name)

    def train(self, mode=True):
        return self

    def backbone(self, input_ids, positions, doc_ids, cache):
        out = self._model.backbone(input_ids, positions, doc_ids, cache)
        return out._replace(hidden=torch.nn.functional.one_hot(input_ids, 40))

    def lm_head(self, hidden):
        """The prompt's last token is the right answer itself: a table, not arithmetic, is what the vote needs."""
        right = hidden.argmax(-1)
        logits = torch.full((*right.shape, 40), -torch.inf)
        logits.scatter_(-1, right[..., None], math.log(0.6))
        return logits.scatter_(-1, (right[..., None] + 1) % 40, math.log(0.4))


def binomial_majority(p: float, k: int) -> float:
    """How often more than half of k (odd) are right."""
    return sum(math.comb(k, n) * p**n * (1 - p) ** (k - n) for n in range(k // 2 + 1, k + 1))


@pytest.mark.slow
def test_a_vote_raises_accuracy_as_the_binomial_formula_says(qwen3):
    """400 sums: the share that the vote of k gets right lies within 3.9 standard errors of the formula (once in 10,000
    times it would not), and the formulas are further apart than that."""
    settings, num_sums = SamplingConfig(temperature=1, max_new_tokens=1, seed=11), 400
    found = {}
    for k in (1, 9, 25):
        num_right = 0
        for number in range(num_sums):
            prompt = [number % 7, number // 7 % 40, number // 280, 5 + number % 30]
            ids = next(Generation(Solver(qwen3), [prompt] * k, settings))  # ty: ignore[invalid-argument-type]
            texts = [f"the sum is {token}" for token in ids]
            num_right += MAJORITY.elect("", texts).answer == str(prompt[-1])
        found[k], expected = num_right / num_sums, binomial_majority(0.6, k)
        assert abs(found[k] - expected) < 3.9 * math.sqrt(expected * (1 - expected) / num_sums), (k, expected)
    assert found[1] + 0.05 < found[9] < found[25] - 0.02


# --- the command line


def test_the_winner_is_shown_with_the_tally(checkpoint: Path, capsys, tmp_path):
    words = ["generate", "--ckpt", str(checkpoint), "--prompt", "Once", "--max_new_tokens", "5", "--seed", "4"]
    words += ["--samples", "6", "--device", "cpu"]
    assert run([*words, "--json"]) == 0
    texts = [json.loads(line)["text"] for line in capsys.readouterr().out.splitlines()]
    file = tmp_path / "v.py"
    file.write_text("def third(prompt, text):\n    return text == " + repr(texts[2]) + "\n")
    assert run([*words, "--vote", f"verifier:{file}:third"]) == 0
    done = capsys.readouterr()
    assert done.out == f"Once{texts[2]}\n" and "shown: text 3" in done.err
    assert run([*words, "--vote", "majority", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["samples"] == texts and found["text"] == texts[found["sample"]]
    assert found["seed"] == 4
    for more, what in (
        (["--vote", "best"], "--vote best is not possible"),
        (["--vote", "majority", "--stream"], "--vote shows one text"),
        (["--vote", "majority", "--temperature", "0"], "all texts are the same"),
    ):
        assert run([*words, *more]) == ExitCode.USAGE
        assert what in capsys.readouterr().err
    assert run(["generate", "--vote", "majority"]) == ExitCode.USAGE
    assert "--vote needs several texts" in capsys.readouterr().err
