"""Alignment with pairs on the engine: where it begins, what it keeps, refuses, tells, and how it resumes."""

from __future__ import annotations

import io
import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from rich.console import Console
from run_helpers import log_without_clock
from tuning_helpers import check_same_run, other_tokenizer, stop_after, tune, tuning_tree, write_pairs, write_talks
from worlds import Worlds

from tiny_transformer.cli import run
from tiny_transformer.config.load import load_run_config
from tiny_transformer.data.preferences import answer_rows
from tiny_transformer.errors import UserError
from tiny_transformer.evaluation.preferences import answer_logps, logps_of
from tiny_transformer.models import load_model
from tiny_transformer.models.open import OpenCheckpoint
from tiny_transformer.stages.align import Aligning
from tiny_transformer.stages.launch import launch
from tiny_transformer.stages.replay import replay
from tiny_transformer.stages.stage import Request
from tiny_transformer.storage.replaced import RUN_FILES
from tiny_transformer.storage.runs import REFERENCE_FILE
from tiny_transformer.tokenizers.chat import Message
from tiny_transformer.tokenizers.templates import PLAIN
from tiny_transformer.training.modifiers import use_blocked_attention

ADAPTERS: dict[str, Any] = {"enabled": True, "rank": 2, "quantize": "int8"}


@pytest.fixture(scope="module")
def base(base_run: Path) -> Path:
    """A trained run."""
    return base_run


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pairs(tmp_path_factory.mktemp("pairs") / "pairs.jsonl")


def tree(base: Path, pairs: Path, out_dir: Path, **changes: Any) -> dict[str, Any]:
    """The config of a run of alignment."""
    align = {"template": "plain", **changes.pop("align", {})}
    return tuning_tree(base, pairs, out_dir, stage="align", align=align, **changes)


@pytest.mark.parametrize("lora", [{}, ADAPTERS])
def test_the_first_loss_of_dpo_is_that_of_a_coin(lora: dict[str, Any], base: Path, pairs: Path, tmp_path: Path) -> None:
    """Against itself no model prefers anything: the reference is the base, in 8 bits where the base is."""
    once = {"steps": 1, "eval_steps": None, "dropout": 0.0}
    result, told = tune(tree(base, pairs, tmp_path / "r", lora=lora, training=once))
    assert "1 step as asked; 4 pairs a step" in told and "tokens a step" not in told
    assert "eval_steps is null, so no alarm can ring" in told
    (row,) = log_without_clock(tmp_path / "r")
    assert row["loss"] == pytest.approx(math.log(2), abs=1e-6) and row["margin"] == pytest.approx(0, abs=1e-6)
    assert row["num_tokens"] == result.state.num_tokens == 4  # pairs
    assert row["chosen_logp"] < 0 > row["rejected_logp"] and row["chosen_shift"] == pytest.approx(0, abs=1e-5)


def test_in_bf16_the_reference_is_what_training_computes_bit_for_bit(base: Path, pairs: Path, tmp_path: Path) -> None:
    """Rows of the same shape, with the gradient's attention; that of an evaluation rounds otherwise."""
    once = {"steps": 1, "eval_steps": None, "dropout": 0.0, "precision": "bf16", "attention": "blocks"}
    result, _ = tune(tree(base, pairs, tmp_path / "r", training={**once, "micro_batch_size": 8}))
    stage, hardware = result.stage, result.hardware
    assert isinstance(stage, Aligning) and hardware.precision == "bf16" and stage.train.reference is not None
    model = stage.build_model("cpu")
    stage.load_first_weights(model)
    use_blocked_attention(model)
    rows = [answer for pair in stage.data.train[:8] for answer in (pair.chosen, pair.rejected)]
    with hardware.autocast():
        now = answer_logps(model, answer_rows(rows)).detach()
    assert torch.equal(now.view(-1, 2), stage.train.reference[:8])
    assert not torch.equal(logps_of(model.eval(), rows, hardware, lambda: None), now)


def test_the_reference_reads_no_more_rows_at_once_than_a_step(
    base: Path, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second model has the room of gradients and of the optimizer; activations have what a step has."""
    seen: list[int] = []
    monkeypatch.setattr(
        "tiny_transformer.evaluation.preferences.answer_rows", lambda rows: seen.append(len(rows)) or answer_rows(rows)
    )
    monkeypatch.setattr(
        "tiny_transformer.stages.launch.check_memory", lambda config, hardware, console, rows: seen.append(-rows)
    )
    tune(tree(base, pairs, tmp_path / "r", training={"steps": 1, "eval_steps": None, "micro_batch_size": 3}))
    assert seen[0] == -2 and max(seen) == 6


@pytest.mark.parametrize("method", ["dpo", "orpo"])
def test_it_learns_the_preference(method: str, base: Path, pairs: Path, tmp_path: Path) -> None:
    training = {"steps": 30, "learning_rate": 1e-2, "eval_steps": 30, "save_steps": None, "sample_tokens": 8}
    _, told = tune(tree(base, pairs, tmp_path / "r", align={"method": method}, training=training))
    rows = log_without_clock(tmp_path / "r")
    assert rows[-1]["val_accuracy"] > 0.9 and rows[-1]["val_margin"] > rows[0]["margin"] and rows[-1]["val_kl"] > 0
    assert "pairs and" in told and ("cross_entropy" in rows[0]) == (method == "orpo")


def test_logged_figures_are_those_of_the_model(base: Path, pairs: Path, tmp_path: Path) -> None:
    """Held-out pairs, each answer alone, without padding."""
    result, _ = tune(tree(base, pairs, tmp_path / "r", training={"steps": 2, "eval_steps": 2, "learning_rate": 1e-3}))
    stage, (model, before) = result.stage, (load_model(tmp_path / "r/last"), load_model(base / "last"))
    assert isinstance(stage, Aligning)
    shifts: dict[str, list[float]] = {"chosen": [], "rejected": []}
    for pair in stage.data.val:
        for name, found in shifts.items():
            ids, is_answer = getattr(pair, name)
            logps = [
                each(torch.tensor([ids]))[0, :-1].log_softmax(-1)[range(len(ids) - 1), ids[1:]]
                for each in (model, before)
            ]
            found.append(((logps[0] - logps[1]) * torch.tensor(is_answer[1:])).sum().item())
    row, (chosen, rejected) = log_without_clock(tmp_path / "r")[-1], (sum(s) / len(s) for s in shifts.values())
    assert row["val_chosen_shift"] == pytest.approx(chosen, abs=1e-4)
    assert row["val_margin"] == pytest.approx(0.1 * (chosen - rejected), abs=1e-4)


@pytest.mark.slow
def test_a_resumed_run_is_the_run_that_was_never_stopped_and_asks_nobody_again(
    base: Path, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = tmp_path / "base"
    shutil.copytree(base, own, symlinks=True)
    tune(tree(own, pairs, tmp_path / "whole"))
    stop_after(tree(own, pairs, tmp_path / "parts"), 6, monkeypatch)
    kept = (tmp_path / "parts" / REFERENCE_FILE).read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr("tiny_transformer.stages.reference.compute_reference", None)
        tune(tree(own, pairs, tmp_path / "parts"), resume=True)
    check_same_run(tmp_path / "parts", tmp_path / "whole")
    screen = io.StringIO()
    gradient = replay(tmp_path / "whole", 5, Console(file=screen, width=200))
    assert gradient.loss == pytest.approx(log_without_clock(tmp_path / "whole")[4]["loss"], rel=1e-6)
    (tmp_path / "parts" / REFERENCE_FILE).unlink()  # lost: the base is asked again
    longer = {"training": {"steps": 10}}
    tune(tree(own, pairs, tmp_path / "parts", **longer), resume=True)
    assert (tmp_path / "parts" / REFERENCE_FILE).read_bytes() == kept
    own.rename(tmp_path / "away")  # the base is gone, and not needed
    tune(tree(own, pairs, tmp_path / "parts", training={"steps": 11}), resume=True)
    (tmp_path / "away").rename(own)
    changed = write_pairs(tmp_path / "pairs.jsonl", count=36)
    with pytest.raises(UserError, match="cannot resume: the data"):
        tune(tree(own, changed, tmp_path / "parts", training={"steps": 12}), resume=True)
    weights = (own / "last").resolve() / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    with pytest.raises(UserError, match="has changed since this run began"):
        tune(tree(own, pairs, tmp_path / "parts", training={"steps": 12}), resume=True)
    (tmp_path / "parts" / REFERENCE_FILE).unlink()
    with pytest.raises(UserError, match=r"cannot resume: the base \(hash of its weights\)"):
        tune(tree(own, pairs, tmp_path / "parts", training={"steps": 12}), resume=True)


def test_it_opens_in_transformers_with_its_template(base: Path, pairs: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tune(tree(base, pairs, tmp_path / "r", training={"steps": 1, "eval_steps": None}))
    last = tmp_path / "r/last"
    opened, theirs = OpenCheckpoint(last), AutoModelForCausalLM.from_pretrained(last)
    ids = AutoTokenizer.from_pretrained(last).apply_chat_template(
        [{"role": "user", "content": "he 1?"}], return_dict=False
    )
    assert ids == PLAIN.prompt_ids(opened.tokenizer, [Message("user", "he 1?")])
    assert torch.allclose(theirs(torch.tensor([ids])).logits, opened.model(torch.tensor([ids])), atol=1e-5)


def test_adapters_open_in_peft_with_the_template(base: Path, pairs: Path, tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    training = {"steps": 3, "eval_steps": None, "learning_rate": 1e-2}
    tune(tree(base, pairs, tmp_path / "r", lora={"enabled": True, "rank": 2}, training=training))
    last, before = tmp_path / "r/last", AutoModelForCausalLM.from_pretrained(base / "last")
    asked = [{"role": "user", "content": "he 1?"}]
    ids = torch.tensor([AutoTokenizer.from_pretrained(last).apply_chat_template(asked, return_dict=False)])
    unchanged = before(ids).logits
    theirs, ours = PeftModel.from_pretrained(before, last)(ids).logits, OpenCheckpoint(last).model(ids)
    assert torch.allclose(theirs, ours, atol=1e-5) and not torch.allclose(theirs, unchanged, atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["dpo", "orpo"])
def test_two_processes_learn_what_one_learns_and_share_one_reference(
    method: str, worlds: Worlds, base: Path, pairs: Path, tmp_path: Path
) -> None:
    """By the verb; of one batch each process reads its half."""
    training = {"steps": 4, "eval_steps": 2, "dropout": 0.0, "sample_tokens": 8, "micro_batch_size": 4}
    for size in (1, 2):
        own = tree(base, pairs, tmp_path / str(size), align={"method": method}, training=training)
        (tmp_path / f"{size}.yaml").write_text(yaml.safe_dump(own), encoding="utf-8")
        ended = worlds.run(size, "command", arguments=["align", "--config", str(tmp_path / f"{size}.yaml")])
        assert ended.codes == [0] * size, ended.output
    one, two = (log_without_clock(tmp_path / str(size)) for size in (1, 2))
    for key in ("num_tokens", "epoch"):
        assert [row[key] for row in one] == [row[key] for row in two]
    for key in ("loss", "margin", "grad_norm", "val_loss", "val_margin", "val_kl", "val_length_ratio"):
        found = [[row[key] for row in rows if key in row] for rows in (one, two)]
        assert found[0] == pytest.approx(found[1], rel=1e-3, abs=1e-6), key
    kept = [(tmp_path / str(size) / REFERENCE_FILE).read_bytes() for size in (1, 2)]
    assert kept[0] == kept[1]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"init_from": None}, "alignment starts from a trained model"),
        ({"data": {"source": "stories"}}, "alignment needs preferences to learn from"),
        ({"data": {"data_dir": "data"}}, r"data\.data_dir says nothing to alignment"),
        ({"data": {"tokenizer": "char"}}, r"data\.tokenizer = 'char', but the model in .* has a tokenizer of its own"),
        ({"data": {"tokenizer": "OTHER"}}, "was trained with the tokenizer byte, not with"),
        ({"training": {"eval_tokens": 64}}, r"training\.eval_tokens says nothing to alignment"),
        ({"data": {"seq_len": 4}}, "everything is truncated away: no pair has two different answers within 4 tokens"),
        ({"align": {"template": "auto"}}, "alignment needs a model that was taught to chat"),
        ({"align": {"template": "chatml"}}, "needs new control tokens, which fine-tuning teaches first"),
    ],
)
def test_what_cannot_be_meant_is_refused(
    changes: dict[str, Any], says: str, base: Path, pairs: Path, tmp_path: Path
) -> None:
    if changes.get("data", {}).get("tokenizer") == "OTHER":
        changes = {"data": {"tokenizer": str(other_tokenizer(tmp_path / "other"))}}
    with pytest.raises(UserError, match=says):
        tune(tree(base, pairs, tmp_path / "r", **changes))
    assert not (tmp_path / "r").exists()


def test_what_is_cut_and_left_out_is_told(base: Path, tmp_path: Path) -> None:
    rows = [{"prompt": f"he {n}?", "chosen": "no" * (1 + 20 * (n == 3)), "rejected": "egg"} for n in range(12)]
    rows.append({"prompt": "long " * 9, "chosen": "a", "rejected": "b"})
    rows.append({"prompt": "same?", "chosen": "a", "rejected": "a "})
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    once = {"steps": 1, "eval_steps": None}
    with pytest.raises(UserError, match="chosen and rejected are the same answer") as caught:
        tune(tree(base, tmp_path / "p.jsonl", tmp_path / "r", training=once))
    assert "line 14" in str(caught.value.where)
    changes = {"align": {"skip_bad_rows": True}, "data": {"seq_len": 20}, "training": once}
    _, told = tune(tree(base, tmp_path / "p.jsonl", tmp_path / "r", **changes))
    assert "1 bad records left out, the first: " in told and "line 14" in told
    assert "1 pairs are longer than a row and cut" in told and "1 left out, whose answers begin" in told


def test_alarms_ring_in_the_log_on_the_terminal_and_at_the_end(base: Path, pairs: Path, tmp_path: Path) -> None:
    """A rate beyond all reason drives the model away from what it was; each alarm is told once on the way."""
    training = {"steps": 60, "learning_rate": 0.1, "eval_steps": 20, "save_steps": None, "sample_tokens": 8}
    _, told = tune(tree(base, pairs, tmp_path / "r", training={**training, "log_steps": 50}), shows=True)
    rows = [row for row in log_without_clock(tmp_path / "r") if "val_loss" in row]
    assert [row["step"] for row in rows] == [20, 40, 60] and rows[-1]["alarm_kl"] == 1.0 and rows[-1]["val_kl"] > 0.5
    assert told.count("alarm: the model runs away from its reference") == 1
    assert "The model runs away from its reference: KL is" in told


def test_a_run_that_takes_its_place_finds_nothing_of_it(base: Path, pairs: Path, tmp_path: Path) -> None:
    once = {"steps": 1, "eval_steps": None}
    tune(tree(base, pairs, tmp_path / "r", training=once), shows=True)
    own = {path.name for path in (tmp_path / "r").iterdir()} - {".lock"}
    assert REFERENCE_FILE in own and own <= {"last", "best", "step-00000001", *RUN_FILES}
    other = tuning_tree(base, write_talks(tmp_path / "t.jsonl"), tmp_path / "r", training=once)
    request = Request(load_run_config(other), "tuned", overwrite=True, command=["test"])
    launch(request, Console(file=io.StringIO()))
    assert not (tmp_path / "r" / REFERENCE_FILE).exists()


@pytest.mark.slow
def test_the_verb_runs_with_nothing_to_choose(
    base: Path, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["align", "--init_from", str(base), "--source", str(pairs), "--template", "plain", "--beta", "0.3"]
    assert run([*words, "--minutes", "0.02", "--device", "cpu", "--sample_tokens", "8"]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "runs/pairs" in told and "in the right order" in told and "answers to held-out questions ended" in told
    saved: Any = load_run_config(tmp_path / "runs/pairs/config.yaml")
    assert saved.stage == "align" and saved.align.beta == 0.3 and saved.align.template == "plain"
    assert (tmp_path / "runs/pairs/report.html").is_file()
