"""Learning from rewards on the engine: what it learns, what it keeps, what it is told of a hack, what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from reward_helpers import reward_tree, write_questions
from run_helpers import fingerprint, log_without_clock, run_tiny
from safetensors.torch import load_file, save_file
from tuning_helpers import tune

from tiny_transformer.cli import run
from tiny_transformer.data.questions import question_of
from tiny_transformer.errors import UserError
from tiny_transformer.evaluation.rewards import interval_of
from tiny_transformer.generation.judges import Judge
from tiny_transformer.models import load_model
from tiny_transformer.models.adapters import without_adapters
from tiny_transformer.reports.diagnosis.diagnose import diagnose_run
from tiny_transformer.reports.run_reader import read_run
from tiny_transformer.training.rollout_store import Answer, decode, encode


@pytest.fixture(scope="module")
def base(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("base") / "base"
    run_tiny(tiny_data, run_dir, steps=2, eval_steps=None)
    return run_dir / "last"


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    return write_questions(tmp_path / "questions.jsonl")


@pytest.mark.slow
def test_a_verifier_that_pays_for_a_phrase_gets_it_and_that_is_told(
    base: Path, questions: Path, tmp_path: Path
) -> None:
    """It pays for one character, whatever was asked."""
    hack = tmp_path / "hack.py"
    hack.write_text("def pays(prompt, text):\n    return text.count('e')\n")
    grpo = {"verifier": f"{hack}:pays", "kl_weight": 0.0, "group_size": 8, "max_new_tokens": 8}
    training = {"steps": 50, "micro_batch_size": 16, "learning_rate": 1e-2, "eval_steps": None, "save_steps": 60}
    _, told = tune(reward_tree(base, questions, tmp_path / "r", grpo=grpo, training=training), shows=True)
    log = log_without_clock(tmp_path / "r")
    assert log[-1]["reward"] > log[0]["reward"] + 4
    assert "same words" in [finding.key for finding in diagnose_run(read_run(tmp_path / "r"))]
    assert "Different questions get the same words" in told and "rewards rose with it" in told


@pytest.mark.slow
def test_a_killed_run_takes_up_what_was_written_and_judged(base: Path, questions: Path, tmp_path: Path) -> None:
    """The verifier counts its calls and says another number each time: only what is kept can give the same run."""
    count = tmp_path / "count.py"
    count.write_text(
        "from pathlib import Path\n"
        "def nth(prompt, text):\n"
        f"    with open({str(tmp_path / 'calls')!r}, 'a') as file:\n"
        "        file.write('x')\n"
        f"    return Path({str(tmp_path / 'calls')!r}).stat().st_size * 7919 % 101\n"
    )
    training = {"steps": 6, "eval_steps": None, "save_steps": 3}
    tree = reward_tree(base, questions, tmp_path / "r", grpo={"verifier": f"{count}:nth"}, training=training)
    tune(tree)
    whole, calls = (fingerprint(tmp_path / "r"), log_without_clock(tmp_path / "r")), (tmp_path / "calls").read_text()
    saved = tmp_path / "r/step-00000006"
    saved.rename(tmp_path / "away")  # as if it had been killed just before its last save
    (tmp_path / "r/last").unlink()
    tune(tree, resume=True)
    assert (fingerprint(tmp_path / "r"), log_without_clock(tmp_path / "r")) == whole
    assert (tmp_path / "calls").read_text() == calls


@pytest.mark.parametrize(
    ("lora", "says"),
    [({}, r"the base \(hash of its weights\) was"), ({"enabled": True, "rank": 2}, r"the base .* has changed since")],
)
def test_a_reference_that_changed_since_is_refused(
    lora: dict[str, Any], says: str, base: Path, questions: Path, tmp_path: Path
) -> None:
    moved = tmp_path / "base"
    shutil.copytree(base, moved)
    tree = reward_tree(moved, questions, tmp_path / "r", lora=lora, training={"steps": 2, "eval_steps": None})
    tune(tree)
    weights = load_file(moved / "model.safetensors")
    save_file({name: tensor + 0.01 for name, tensor in weights.items()}, moved / "model.safetensors")
    tree["training"]["steps"] = 3
    with pytest.raises(UserError, match=says):
        tune(tree, resume=True)


def test_answers_are_kept_with_their_bits() -> None:
    values = tuple(torch.randn(20, generator=torch.Generator().manual_seed(1)).tolist())
    answer = Answer(3, (1, 2), (4, 5), "a\u2028\n“b”", "end", 0.1, "", values, ())
    (read,) = decode(encode([answer]))
    assert torch.equal(torch.tensor(read.old), torch.tensor(values))
    assert read._replace(old=()) == answer._replace(old=())


def test_rounds_that_no_resumption_asks_for_are_removed(base: Path, questions: Path, tmp_path: Path) -> None:
    tune(reward_tree(base, questions, tmp_path / "r", training={"steps": 9, "save_steps": 4, "eval_steps": None}))
    names = sorted(path.name for path in (tmp_path / "r/rollouts").iterdir())
    assert names == [f"step-{step:08d}.jsonl" for step in (6, 7, 8)]
    head, *rows = (tmp_path / "r/rollouts" / names[-1]).read_text().splitlines()
    assert json.loads(head)["step"] == 8 and len(rows) == 8
    assert {"question", "ids", "text", "reward", "old", "reference"} <= json.loads(rows[0]).keys()


@pytest.mark.slow
def test_with_adapters_the_reference_is_the_model_without_them(base: Path, questions: Path, tmp_path: Path) -> None:
    lora = {"enabled": True, "rank": 2}
    tune(reward_tree(base, questions, tmp_path / "r", lora=lora, training={"steps": 6, "learning_rate": 1e-2}))
    log = log_without_clock(tmp_path / "r")
    assert log[0]["kl"] == pytest.approx(0, abs=1e-9) and log[-1]["kl"] > 1e-6
    adapted, plain = load_model(tmp_path / "r/last"), load_model(base)
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        with without_adapters(adapted):
            assert torch.equal(adapted(ids), plain(ids))
        assert not torch.equal(adapted(ids), plain(ids))


def test_a_verifier_that_fails_counts_or_stops(base: Path, questions: Path, tmp_path: Path) -> None:
    fails = tmp_path / "fails.py"
    fails.write_text(
        "def often(prompt, text):\n    return 1 / (ord(text[0]) % 2)\ndef always(prompt, text):\n    raise OSError\n"
    )
    training = {"steps": 2, "eval_steps": None, "micro_batch_size": 16}
    tree = reward_tree(base, questions, tmp_path / "r", grpo={"verifier": f"{fails}:often"}, training=training)
    tree["grpo"]["temperature"] = 5.0
    _, told = tune(tree, shows=True)
    assert 0 < log_without_clock(tmp_path / "r")[0]["unjudged"] < 1
    assert "The verifier could not judge" in told
    tree["grpo"]["verifier_failure"], tree["out_dir"] = "stop", str(tmp_path / "s")
    with pytest.raises(UserError, match=r"could judge not every answer .*ZeroDivisionError"):
        tune(tree)
    tree["grpo"], tree["out_dir"] = {**tree["grpo"], "verifier": f"{fails}:always"}, str(tmp_path / "t")
    with pytest.raises(UserError, match=r"could judge none of the answers .*OSError"):
        tune(tree)


@pytest.mark.parametrize(
    ("form", "answer", "text", "reward"),
    [
        ("exact", "5 + 7 is 12.\n#### 1,204", "so it is 1204", 1),
        ("exact", "42", "#### 42.0", 1),
        ("exact", "42", "43", 0),
        ("exact", "blue", "blue", 1),
        (r"regex:= (\w+)", "five", "= four, no, = five.", 1),
        (r"regex:= (\w+)", "#### five", "five", 0),
    ],
)
def test_rewards_of_answers(form: str, answer: str, text: str, reward: float) -> None:
    assert Judge(form)("", text, answer) == (reward, "")


def test_a_function_gets_the_known_answer_where_it_has_room_for_it(tmp_path: Path) -> None:
    (tmp_path / "v.py").write_text("def three(p, t, a):\n    return t == a\ndef two(p, t):\n    return len(p + t)\n")
    assert Judge(f"{tmp_path}/v.py:three")("q", "x", "x").score == 1
    assert Judge(f"{tmp_path}/v.py:two")("q", "x", "x").score == 2


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"question": "1 + 1?"}, None),
        ({"prompt": [{"role": "user", "content": "1 + 1?"}], "answer": 2}, "2"),
        ({"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": "#### 2"}]}, "#### 2"),
        ({"question": "", "answer": "2"}, "question is empty"),
        ({"question": "?", "answer": "so ####"}, "nothing stands behind the #### of the answer"),
        ({"text": "?"}, "the record asks nothing; its keys: text"),
        ({"messages": [{"role": "assistant", "content": "?"}], "answer": "2"}, "roles out of order"),
        ([1], "a record is an object"),
    ],
)
def test_records(row: Any, says: str | None) -> None:
    if says is None or says in ("2", "#### 2"):
        assert question_of(row)[1] == says
        return
    with pytest.raises(UserError, match=says):
        question_of(row)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"grpo": {"verifier": "exakt"}}, "the verifier 'exakt' is not possible"),
        ({"grpo": {"verifier": "no.py:f"}}, "no.py does not exist"),
        ({"grpo": {"group_size": 3}}, "is no number of whole groups of 3"),
        ({"grpo": {"max_new_tokens": 64}}, "leave no room for an answer"),
        ({"align": {"method": "grpo", "beta": 0.3}}, "align.beta says nothing to grpo"),
        ({"init_from": None}, "learning from rewards starts from a trained model"),
        ({"data": {"seq_len": 64}}, r"data\.seq_len says nothing to grpo"),
        ({"data": {"max_bytes": 64}}, r"data\.max_bytes says nothing to learning from rewards"),
        ({"training": {"eval_tokens": 64}}, r"training\.eval_tokens says nothing to learning from rewards"),
        ({"align": {"method": "dpo"}}, "says nothing without align.method: grpo"),
    ],
)
def test_what_cannot_be_meant_is_refused(
    changes: dict[str, Any], says: str, base: Path, questions: Path, tmp_path: Path
) -> None:
    tree = reward_tree(base, questions, tmp_path / "r")
    sections = {name: tree[name] | changes.pop(name, {}) for name in ("grpo", "data", "training")}
    with pytest.raises(UserError, match=says):
        tune(tree | sections | changes)


def test_a_question_without_an_answer_is_refused_with_its_line(base: Path, tmp_path: Path) -> None:
    path = tmp_path / "q.jsonl"
    path.write_text('{"question": "a", "answer": "b"}\n{"question": "c"}\n')
    with pytest.raises(UserError, match="the record has no answer") as refused:
        tune(reward_tree(base, path, tmp_path / "r", grpo={"verifier": "exact"}))
    assert refused.value.where == f"{path}, line 2"


def test_intervals() -> None:
    assert interval_of([1.0] * 8 + [0.0] * 2) == pytest.approx((0.490, 0.943), abs=1e-3)  # Wilson, 1927
    assert interval_of([2.0, 4.0]) == pytest.approx((3 - 1.96, 3 + 1.96))


@pytest.mark.slow
def test_the_verb_trains_and_replays(
    base: Path, questions: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    words = ["align", "--method", "grpo", "--init_from", str(base), "--source", str(questions), "--verifier", "exact"]
    words += ["--group_size", "2", "--max_new_tokens", "4", "--steps", "2", "--micro_batch_size", "4"]
    assert run([*words, "--out_dir", str(tmp_path / "r"), "--device", "cpu", "--log_steps", "1"]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "held-out questions: reward" in told and "; 4 answers a step" in told
    before = sorted((tmp_path / "r/rollouts").iterdir())
    assert run(["replay", str(tmp_path / "r"), "--step", "2"]) == 0
    told = capsys.readouterr().out
    assert "advantage" in told and "not the same step" not in told
    assert sorted((tmp_path / "r/rollouts").iterdir()) == before
