"""Supervised fine-tuning on the engine: what is learnt, how it begins, resumes, is shown, and opens elsewhere."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from run_helpers import log_without_clock
from tuning_helpers import check_same_run, other_tokenizer, stop_after, tune, tuning_tree, write_talks

from tiny_transformer.cli import run
from tiny_transformer.config.load import load_run_config
from tiny_transformer.data.batches import IGNORE_INDEX
from tiny_transformer.errors import UserError
from tiny_transformer.generation.answers import answer
from tiny_transformer.generation.sampling import SamplingConfig
from tiny_transformer.models import load_model
from tiny_transformer.models.open import OpenCheckpoint
from tiny_transformer.stages.finetune import Finetuning
from tiny_transformer.stages.replay import replay
from tiny_transformer.tokenizers.chat import Message
from tiny_transformer.tokenizers.templates import ALPACA, CHATML


@pytest.fixture(scope="module")
def base(base_run: Path) -> Path:
    """A trained run with room for a conversation."""
    return base_run


@pytest.fixture(scope="module")
def talks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_talks(tmp_path_factory.mktemp("talks") / "talks.jsonl")


def test_it_starts_from_the_base_and_new_tokens_begin_as_the_mean_of_the_words(
    base: Path, talks: Path, tmp_path: Path
) -> None:
    """A learning rate of nearly nothing leaves the weights where they began."""
    still = {"steps": 1, "learning_rate": 1e-30, "muon_learning_rate": 1e-30, "optimizer": "adamw", "eval_steps": None}
    _, told = tune(tuning_tree(base, talks, tmp_path / "r", training=still))
    assert "new control tokens <|im_start|>, <|im_end|> begin as the mean of all words" in told
    before, after = load_model(base / "last"), load_model(tmp_path / "r/last")
    was, now = before.model.embed_tokens.weight, after.model.embed_tokens.weight
    assert len(now) == len(was) + 2 and torch.equal(now[: len(was)], was)
    mean = was.double().mean(dim=0).float()
    assert torch.equal(now[len(was)], mean) and torch.equal(now[len(was) + 1], mean)
    ids = torch.arange(40)[None]
    assert torch.equal(after(ids)[..., : len(was)], before(ids))


def test_the_loss_is_that_of_the_answers_and_their_ends(base: Path, talks: Path, tmp_path: Path) -> None:
    result, _ = tune(tuning_tree(base, talks, tmp_path / "r", training={"steps": 1, "eval_steps": None}))
    stage = result.stage
    assert isinstance(stage, Finetuning)
    (batch,) = stage.batches(0, 1).micro_batches(0, 4)
    model = stage.build_model("cpu").eval()
    stage.load_first_weights(model)
    total, count = 0.0, 0
    for row in range(4):
        for piece in batch.doc_ids[row].unique():  # each conversation alone, without packing
            here = batch.doc_ids[row] == piece
            logits, labels = model(batch.input_ids[row, here][None])[0], batch.labels[row, here]
            learnt = labels != IGNORE_INDEX
            total -= logits.log_softmax(-1)[learnt, labels[learnt]].sum().item()
            count += int(learnt.sum())
    assert log_without_clock(tmp_path / "r")[0]["loss"] == pytest.approx(total / count, rel=1e-5)
    assert result.state.num_tokens == count


@pytest.mark.slow
def test_a_resumed_run_is_the_run_that_was_never_stopped(
    base: Path, talks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tune(tuning_tree(base, talks, tmp_path / "whole"))
    stop_after(tuning_tree(base, talks, tmp_path / "parts"), 6, monkeypatch)
    tune(tuning_tree(base, talks, tmp_path / "parts"), resume=True)
    check_same_run(tmp_path / "parts", tmp_path / "whole")
    changed = write_talks(tmp_path / "talks.jsonl", count=36)
    with pytest.raises(UserError, match=r"cannot resume: the data \(hash of train\.bin\)"):
        tune(tuning_tree(base, changed, tmp_path / "parts", training={"steps": 12}), resume=True)
    with pytest.raises(UserError, match=r"cannot resume: finetune\.template was 'chatml' and is now 'plain'"):
        tree = tuning_tree(base, talks, tmp_path / "parts", finetune={"template": "plain"})
        tune(tree, resume=True)
    screen = io.StringIO()
    for step in (2, 5):  # from the base, whose vocabulary has grown, and from a checkpoint
        gradient = replay(tmp_path / "whole", step, Console(file=screen, width=200))
        assert gradient.loss == pytest.approx(log_without_clock(tmp_path / "whole")[step - 1]["loss"], rel=1e-6)
    assert "not the same step" not in screen.getvalue()


@pytest.mark.slow
def test_its_end_shows_answers_and_how_many_ended_by_themselves(base: Path, talks: Path, tmp_path: Path) -> None:
    tree = tuning_tree(base, talks, tmp_path / "r", finetune={"template": "plain"}, training={"steps": 2})
    _, told = tune(tree, shows=True)
    samples = json.loads((tmp_path / "r/samples.json").read_text(encoding="utf-8"))
    ended, count = sum(sample["ended"] for sample in samples), len(samples)
    assert f"{ended} of {count} answers to held-out questions ended by themselves within 12 tokens" in told
    assert all(sample["prompt"].endswith("?") for sample in samples)
    info = json.loads((tmp_path / "r/last/run_info.json").read_text(encoding="utf-8"))
    assert info["data"]["template"] == "plain" and info["data"]["val_documents"] == count
    assert (tmp_path / "r/report.html").is_file()


def test_it_opens_in_transformers_with_its_template_and_stops_at_the_end_of_an_answer(
    base: Path, talks: Path, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tune(tuning_tree(base, talks, tmp_path / "r", training={"steps": 1, "eval_steps": None}))
    last = tmp_path / "r/last"
    opened, theirs = OpenCheckpoint(last), AutoModelForCausalLM.from_pretrained(last)
    tokenizer = AutoTokenizer.from_pretrained(last)
    question = [{"role": "user", "content": "he 1?"}]
    ids = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_dict=False)
    assert ids == CHATML.prompt_ids(opened.tokenizer, [Message("user", "he 1?")])
    assert theirs.generation_config.eos_token_id == [CHATML.end_id(opened.tokenizer), opened.tokenizer.end_id]
    assert opened.end_ids[0] == CHATML.end_id(opened.tokenizer)
    there = theirs(torch.tensor([ids])).logits
    assert torch.allclose(there, opened.model(torch.tensor([ids])), atol=1e-5)


@pytest.mark.slow
def test_it_learns_to_answer_and_to_stop(base: Path, tmp_path: Path) -> None:
    """Twenty questions, each with an answer of two words: all are answered word for word, and end there."""
    words = ("red", "hen", "fox", "egg", "sun")
    talks = {f"{a}{b}?": f"{words[a]} {words[b]}" for a in range(5) for b in range(5) if a != b}
    rows = [json.dumps({"question": question, "answer": text}) for question, text in talks.items()]
    (tmp_path / "talks.jsonl").write_text("\n".join([*rows, json.dumps({"question": "x", "answer": "y"})]), "utf-8")
    training = {"steps": 150, "learning_rate": 1e-2, "eval_steps": None, "save_steps": None, "micro_batch_size": 16}
    tree = tuning_tree(base, tmp_path / "talks.jsonl", tmp_path / "r", data={"val_fraction": 1e-9}, training=training)
    result, _ = tune(tree)
    stage, opened = result.stage, OpenCheckpoint(tmp_path / "r/last")
    assert isinstance(stage, Finetuning) and len(stage.data.val.examples) == 1
    asked = [[Message("user", question)] for question in talks]
    settings = SamplingConfig(temperature=0.0, max_new_tokens=20)
    answers = dict(zip(talks, answer(opened.model, opened.tokenizer, CHATML, asked, settings), strict=True))
    held_out = stage.data.val.examples[0].messages[0].content
    learnt = [question for question in talks if question != held_out]
    assert {q: answers[q] for q in learnt} == {q: (talks[q], "end") for q in learnt}


def test_a_fine_tuned_model_goes_on_with_its_own_template(base: Path, talks: Path, tmp_path: Path) -> None:
    once = {"steps": 1, "eval_steps": None}
    tune(tuning_tree(base, talks, tmp_path / "first", finetune={"template": "alpaca"}, training=once))
    result, told = tune(tuning_tree(tmp_path / "first", talks, tmp_path / "second", training=once))
    assert "(alpaca)" in told and "new control tokens" not in told
    assert isinstance(result.stage, Finetuning) and result.stage.template is ALPACA


def test_rows_are_as_long_as_the_conversations_and_the_run_as_three_readings(
    base: Path, talks: Path, tmp_path: Path
) -> None:
    whole = {"steps": None, "eval_steps": None, "micro_batch_size": 8}
    tree = tuning_tree(base, talks, tmp_path / "r", training=whole)
    del tree["data"]["seq_len"]
    result, told = tune(tree)
    assert isinstance(result.stage, Finetuning)
    assert result.stage.config.data.seq_len == 64  # the model's context
    rows = len(result.stage.train_rows)
    assert result.state.step == -(-3 * rows // 8) and f"in {rows} rows of 64; this run sees 3." in told


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"init_from": None}, "fine-tuning starts from a trained model"),
        ({"data": {"source": "stories"}}, "fine-tuning needs conversations to learn from"),
        ({"data": {"data_dir": "data"}}, r"data\.data_dir says nothing to fine-tuning"),
        ({"data": {"tokenizer": "char"}}, r"data\.tokenizer = 'char', but the model in .* has a tokenizer of its own"),
        ({"data": {"tokenizer": "OTHER"}}, "was trained with the tokenizer byte, not with"),
        ({"training": {"eval_tokens": 64}}, r"training\.eval_tokens says nothing to fine-tuning"),
        ({"data": {"packing": "concat"}}, "packing concat would let one conversation be read in another"),
        ({"data": {"seq_len": 20}}, "everything is truncated away"),
    ],
)
def test_what_cannot_be_meant_is_refused(
    changes: dict[str, Any], says: str, base: Path, talks: Path, tmp_path: Path
) -> None:
    if changes.get("data", {}).get("tokenizer") == "OTHER":
        changes = {"data": {"tokenizer": str(other_tokenizer(tmp_path / "other"))}}
    with pytest.raises(UserError, match=says):
        tune(tuning_tree(base, talks, tmp_path / "r", **changes))
    assert not (tmp_path / "r").exists()


@pytest.mark.slow
def test_the_verb_runs_with_nothing_to_choose(
    base: Path, talks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["finetune", "--init_from", str(base), "--source", str(talks), "--minutes", "0.02", "--device", "cpu"]
    assert run(words) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "runs/talks" in told and " 0.02 minutes;" in told and "answers to held-out questions ended" in told
    saved = load_run_config(tmp_path / "runs/talks/config.yaml")
    assert saved.stage == "finetune" and saved.training.max_train_minutes == 0.02
    assert run(["finetune", "--source", "none.jsonl"]) == 2
    assert "fine-tuning starts from a trained model" in capsys.readouterr().err


def test_two_processes_take_the_same_steps(base: Path, talks: Path, tmp_path: Path) -> None:
    """Each takes its half of the rows."""
    result, _ = tune(tuning_tree(base, talks, tmp_path / "r", training={"steps": 1, "eval_steps": None}))
    whole = list(result.stage.batches(0, 1).micro_batches(3, 4))
    halves = [batch for rank in range(2) for batch in result.stage.batches(rank, 2).micro_batches(3, 4)]
    assert torch.equal(torch.cat([b.input_ids for b in whole]), torch.cat([b.input_ids for b in halves]))
    assert sum(b.num_targets for b in whole) == sum(b.num_targets for b in halves)
