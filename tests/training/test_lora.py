"""Adapters on the engine: what is trained and saved, how a run resumes, and what merge and generate make of them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from run_helpers import fingerprint
from safetensors.torch import load_file
from tuning_helpers import check_same_run, stop_after, tune, tuning_tree, write_talks

from tiny_transformer.cli import run
from tiny_transformer.config.load import load_run_config
from tiny_transformer.errors import UserError
from tiny_transformer.models import load_model
from tiny_transformer.models.adapter_base import place_seen_from
from tiny_transformer.models.open import OpenCheckpoint
from tiny_transformer.stages import run as engine
from tiny_transformer.training import loop

LORA = {"enabled": True, "rank": 2, "dropout": 0.2}
QUICK = {"optimizer": "adamw", "learning_rate": 1e-2}


@pytest.fixture(scope="module")
def base(base_run: Path) -> Path:
    return base_run / "last"


@pytest.fixture(scope="module")
def talks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_talks(tmp_path_factory.mktemp("talks") / "talks.jsonl")


@pytest.fixture(scope="module")
def tuned(base: Path, talks: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with adapters."""
    run_dir = tmp_path_factory.mktemp("tuned") / "tuned"
    _, told = tune(tuning_tree(base, talks, run_dir, lora=LORA, training=QUICK))
    assert "(alpaca)" in told and "adapters of rank 2 on 14 layers" in told
    return run_dir


def test_a_checkpoint_holds_adapters_alone_and_the_optimizer_remembers_no_more(base: Path, tuned: Path) -> None:
    last = tuned / "last"
    assert not (last / "model.safetensors").exists() and not (last / "config.json").exists()
    before, after = load_model(base).state_dict(), load_model(last).state_dict()
    learnt = {name for name in after if name.endswith((".lora_A", ".lora_B"))}
    for name, tensor in after.items():
        if name.endswith(".lora_B"):
            assert tensor.abs().max() > 0
        elif name not in learnt:
            assert torch.equal(tensor, before[name.replace(".base.", ".")])
    saved = {f"base_model.model.{name}.weight" for name in learnt}
    assert load_file(last / "adapter_model.safetensors").keys() == saved
    assert {n.rpartition("/")[0] for n in load_file(last / "trainer_state/optimizer.safetensors")} == learnt


@pytest.mark.slow
def test_a_resumed_run_is_the_run_that_was_never_stopped(
    base: Path, talks: Path, tuned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = tuning_tree(base, talks, tmp_path / "parts", lora=LORA, training=QUICK)
    with monkeypatch.context() as patch:
        inner = loop.train
        patch.setattr(engine, "train", lambda job, state, _: inner(job, state, lambda: state.step >= 6))
        tune(tree)
    tune(tree, resume=True)
    assert fingerprint(tmp_path / "parts") == fingerprint(tuned)
    with pytest.raises(UserError, match=r"cannot resume: lora\.rank was 2 and is now 3"):
        tune({**tree, "lora": {**LORA, "rank": 3}}, resume=True)


@pytest.mark.slow
def test_merged_run_and_adapters_beside_the_base_write_the_same(
    base: Path, tuned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from transformers import AutoModelForCausalLM

    adapter = shutil.copytree(tuned / "last", tmp_path / "adapter", ignore=shutil.ignore_patterns("base.json"))
    assert run(["merge", str(tuned), "--out_dir", str(tmp_path / "a")]) == 0
    assert run(["merge", str(adapter), "--base", str(base), "--out_dir", str(tmp_path / "b")]) == 0
    whole = load_model(tuned / "best")
    ids = torch.arange(30)[None]
    with torch.no_grad():
        merged = load_model(tmp_path / "a")(ids)
        assert torch.allclose(merged, whole(ids), atol=1e-5)
        theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "a")(ids).logits
        assert torch.allclose(theirs, merged, atol=1e-5)
        beside = load_model(tmp_path / "b")(ids)
        assert torch.allclose(beside, load_model(tuned / "last")(ids), atol=1e-5)
    assert OpenCheckpoint(tmp_path / "a").template == OpenCheckpoint(tuned / "last").template
    capsys.readouterr()
    words = ["--prompt", "he 1", "--temperature", "0", "--max_new_tokens", "8", "--device", "cpu"]
    assert run(["generate", "--ckpt", str(base), "--adapter", str(adapter), *words]) == 0
    with_adapters = capsys.readouterr().out
    assert run(["generate", "--ckpt", str(tuned / "last"), *words]) == 0
    assert capsys.readouterr().out == with_adapters
    assert run(["generate", "--ckpt", str(tuned), *words]) == 0
    best = capsys.readouterr().out
    assert run(["generate", "--ckpt", str(base), "--adapter", str(tuned), *words]) == 0
    assert capsys.readouterr().out == best
    assert run(["generate", "--ckpt", str(base), "--adapter", "nowhere", *words]) == 2
    assert "nowhere does not exist" in capsys.readouterr().err
    assert run(["merge", str(base), "--out_dir", str(tmp_path / "c")]) == 2
    assert "there is nothing to merge" in capsys.readouterr().err
    assert run(["merge", str(base), "--base", str(base), "--out_dir", str(tmp_path / "c")]) == 2
    assert "has its base in it" in capsys.readouterr().err
    (adapter / "manifest.json").unlink()
    assert run(["generate", "--ckpt", str(adapter), *words]) == 2
    assert f"{adapter} holds adapters and no model" in capsys.readouterr().err
    (adapter / "adapter_config.json").write_text(
        (adapter / "adapter_config.json").read_text("utf-8").replace(place_seen_from(Path.cwd(), base), "nowhere"),
        "utf-8",
    )
    named = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))["base_model_name_or_path"]
    assert run(["merge", str(adapter), "--out_dir", str(tmp_path / "c")]) == 2
    assert f"the adapters name {named} as their base" in capsys.readouterr().err


@pytest.mark.slow
def test_new_control_tokens_learn_beside_adapters_and_open_in_peft(
    base: Path, talks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from peft import AutoPeftModelForCausalLM
    from transformers import AutoTokenizer

    monkeypatch.chdir(tmp_path)
    shutil.copytree(base, tmp_path / "base")
    changes = {"lora": LORA, "training": QUICK, "finetune": {"template": "chatml"}}
    tree = tuning_tree(Path("base"), talks, Path("whole"), **changes)
    _, told = tune(tree)
    assert "(chatml)" in told and "adapters of rank 2 on 14 layers and the rows of 2 new tokens: " in told
    stop_after({**tree, "out_dir": "parts"}, 6, monkeypatch)
    tune({**tree, "out_dir": "parts"}, resume=True)
    check_same_run(tmp_path / "parts", tmp_path / "whole")
    ours, plain = OpenCheckpoint(Path("whole/last")), load_model("base")
    rows = ours.model.get_submodule("model.embed_tokens").token_rows
    assert not torch.equal(rows[0], rows[1])  # they began alike
    frozen = ours.model.get_submodule("model.embed_tokens").base.weight
    assert torch.equal(frozen[: len(plain.model.embed_tokens.weight)], plain.model.embed_tokens.weight)
    state = load_file("whole/last/trainer_state/optimizer.safetensors")
    assert state["model.embed_tokens.token_rows/exp_avg"].shape == rows.shape
    talk = [{"role": "user", "content": "he 1?"}]
    ids = AutoTokenizer.from_pretrained("whole/last").apply_chat_template(
        talk, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )["input_ids"]
    assert set(ids[0].tolist()) & set(ours.model.get_submodule("model.embed_tokens").token_ids)
    with torch.no_grad():
        expected = ours.model(ids)
        theirs = AutoPeftModelForCausalLM.from_pretrained("whole/last")
        assert torch.allclose(theirs(ids).logits, expected, atol=1e-5)
        assert run(["merge", "whole/last", "--out_dir", "merged"]) == 0
        assert torch.allclose(load_model("merged")(ids), expected, atol=1e-5)
    assert OpenCheckpoint(Path("merged")).tokenizer.fingerprint == ours.tokenizer.fingerprint
    capsys.readouterr()
    words = ["--temperature", "0", "--device", "cpu"]
    answers = []
    for checkpoint in ("whole/last", "merged"):
        assert run(["chat", "he 1?", "--ckpt", checkpoint, *words]) == 0
        answers.append(capsys.readouterr().out)
    assert answers[0] == answers[1]
    assert run(["generate", "--ckpt", "base", "--adapter", "whole", "--prompt", "he", *words]) == 2
    assert "taught tokens that the tokenizer of base does not know" in capsys.readouterr().err


def test_a_base_that_is_gone_costs_no_checkpoint(
    base: Path, talks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run goes on once the base is back; where it is, the run says, and not the checkpoint (see P1)."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    private = shutil.copytree(base, tmp_path / "of-alice/of-a-client/models/base")
    once = {**QUICK, "steps": 2, "eval_steps": None, "save_steps": 1}
    tree = tuning_tree(private, talks, tmp_path / "elsewhere/runs/r", lora=LORA, training=once)
    tune(tree)
    checkpoints = sorted((tmp_path / "elsewhere/runs/r").glob("step-*"))
    assert len(checkpoints) == 2
    load_model(checkpoints[-1])
    tree["training"]["steps"] = 3
    private.rename(private.with_name("away"))
    with pytest.raises(UserError, match=r"base of these adapters is neither at .*models/base") as refused:
        tune(tree, resume=True)
    assert f"tiny-transformer merge {checkpoints[-1]} --base DIR" in (refused.value.remedy or "")
    private.mkdir()
    (private / "config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(UserError, match=r"base of these adapters, .*models/base, cannot be opened: "):
        tune(tree, resume=True)
    shutil.rmtree(private)
    private.with_name("away").rename(private)
    assert sorted((tmp_path / "elsewhere/runs/r").glob("step-*")) == checkpoints
    assert tune(tree, resume=True)[0].state.step == 3


def test_what_adapters_cannot_do_is_refused(base: Path, talks: Path, tuned: Path, tmp_path: Path) -> None:
    head = {**LORA, "targets": ["lm_head"]}
    with pytest.raises(UserError, match="new control tokens have rows of their own in lm_head") as error:
        tune(tuning_tree(base, talks, tmp_path / "r", lora=head, finetune={"template": "chatml"}))
    assert error.value.remedy == "leave lm_head out of it, or --template alpaca or plain"
    with pytest.raises(UserError, match="no linear layer is named proj"):
        tune(tuning_tree(base, talks, tmp_path / "r", lora={**LORA, "targets": ["proj"]}))
    with pytest.raises(UserError, match="swapped layers already"):
        tune(tuning_tree(tuned, talks, tmp_path / "s", lora=LORA))
    with pytest.raises(UserError, match=r"lora\.enabled needs init_from"):
        load_run_config({"lora": {"enabled": True}})


def test_the_words_of_an_older_project_switch_it_on(base: Path) -> None:
    advanced = {"use_lora": True, "lora_rank": 4, "lora_alpha": 8}
    config = load_run_config({"advanced": advanced, "init_from": str(base)})
    assert (config.lora.enabled, config.lora.rank, config.lora.alpha) == (True, 4, 8.0)
    assert not load_run_config({"advanced": {**advanced, "use_lora": False}}).lora.enabled
