"""Stopped anywhere and resumed, a run ends as if it had never stopped."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from run_helpers import evaluation, fingerprint, log_without_clock, run_tiny

from tiny_transformer.errors import UserError
from tiny_transformer.stages import run as pretrain
from tiny_transformer.storage import RunDirectory
from tiny_transformer.storage.manifest import Manifest, digest, read_manifest
from tiny_transformer.training import gradient, loop, state


def stop_after(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Ask the run to stop once it has made `step` updates."""
    inner = loop.train
    monkeypatch.setattr(
        pretrain, "train", lambda job, run_state, _: inner(job, run_state, lambda: run_state.step >= step)
    )


def interrupted(
    tiny_data: Path, out_dir: Path, monkeypatch: pytest.MonkeyPatch, stops: list[int], **options: object
) -> Path:
    """A run stopped at each of some steps and resumed each time."""
    for index, step in enumerate(stops):
        with monkeypatch.context() as patch:
            stop_after(patch, step)
            assert run_tiny(tiny_data, out_dir, resume=index > 0, **options).status == "stopped"
    assert run_tiny(tiny_data, out_dir, resume=True, **options).status == "finished"
    return out_dir


@pytest.mark.parametrize("options", [{}, {"optimizer": "adamw", "grad_accum_steps": 2}])
def test_a_stopped_run_ends_like_an_undisturbed_one(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, object]
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    run_tiny(tiny_data, whole, **options)
    interrupted(tiny_data, parts, monkeypatch, [3, 7], **options)
    assert fingerprint(whole) == fingerprint(parts)
    assert fingerprint(whole, "best") == fingerprint(parts, "best")
    assert log_without_clock(whole) == log_without_clock(parts)


def test_random_numbers_that_depend_on_the_past_are_noticed(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The test above can fail: with generators that only go on, dropout draws other numbers after a resume."""
    monkeypatch.setattr(gradient, "draw_random_numbers_for", lambda seed, step, row: None)
    whole = tmp_path / "whole"
    run_tiny(tiny_data, whole)
    parts = interrupted(tiny_data, tmp_path / "parts", monkeypatch, [3, 7])
    assert fingerprint(whole)["model.safetensors"] != fingerprint(parts)["model.safetensors"]


def test_a_checkpoint_of_an_older_version_with_random_number_state_is_resumed(tiny_data: Path, tmp_path: Path) -> None:
    run_tiny(tiny_data, tmp_path / "r", steps=4)
    checkpoint, name = tmp_path / "r/step-00000004", "trainer_state/random.safetensors"
    (checkpoint / name).write_bytes(b"the state of a generator")
    manifest = read_manifest(checkpoint)
    files = {**manifest.files, name: digest(checkpoint / name)}
    (checkpoint / "manifest.json").write_bytes(Manifest(files, manifest.info).encode())
    assert run_tiny(tiny_data, tmp_path / "r", resume=True, steps=6).state.step == 6
    assert not (tmp_path / "r/last/trainer_state/random.safetensors").exists()


@pytest.mark.parametrize("forgotten", ["num_tokens", "best_val_loss", "evaluations_without_gain"])
def test_forgetting_a_counter_is_noticed(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, forgotten: str
) -> None:
    # a validation loss that is best at step 4 and grows from there
    monkeypatch.setattr(pretrain.Run, "evaluate", lambda run: evaluation(1.0 + abs(run.state.step - 4)))
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    run_tiny(tiny_data, whole, eval_steps=2)
    load = state.load_state

    def forgetful(*arguments: object) -> state.TrainState:
        loaded = load(*arguments)  # ty: ignore[invalid-argument-type]
        setattr(loaded, forgotten, state.TrainState.__dataclass_fields__[forgotten].default)
        return loaded

    monkeypatch.setattr(pretrain, "load_state", forgetful)
    interrupted(tiny_data, parts, monkeypatch, [9], eval_steps=2)
    ends = [json.loads((run / "last/trainer_state/state.json").read_text()) for run in (whole, parts)]
    assert ends[0][forgotten] != ends[1][forgotten]


def test_a_longer_run_can_be_asked_for_on_resume(tiny_data: Path, tmp_path: Path) -> None:
    assert run_tiny(tiny_data, tmp_path / "r", steps=5, schedule="constant", warmup_steps=0).state.step == 5
    longer = run_tiny(tiny_data, tmp_path / "r", resume=True, steps=9, schedule="constant", warmup_steps=0)
    assert longer.state.step == 9
    assert [record["step"] for record in log_without_clock(tmp_path / "r")] == list(range(1, 10))


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"seed": 9}, "training.seed"),
        ({"optimizer": "adamw"}, "training.optimizer"),
        ({"dropout": 0.5}, "training.dropout"),
        ({"micro_batch_size": 2}, "micro_batch_size x grad_accum_steps"),
    ],
)
def test_what_must_not_change_is_refused_by_name(
    tiny_data: Path, tmp_path: Path, change: dict[str, object], key: str
) -> None:
    run_tiny(tiny_data, tmp_path / "r", steps=4)
    before = fingerprint(tmp_path / "r")
    with pytest.raises(UserError) as caught:
        run_tiny(tiny_data, tmp_path / "r", resume=True, steps=8, **change)
    assert key in caught.value.what
    assert fingerprint(tmp_path / "r") == before


def test_the_same_batch_may_be_cut_otherwise(tiny_data: Path, tmp_path: Path) -> None:
    run_tiny(tiny_data, tmp_path / "r", steps=4)
    assert (
        run_tiny(tiny_data, tmp_path / "r", resume=True, steps=8, micro_batch_size=2, grad_accum_steps=2).state.step
        == 8
    )


def test_a_run_that_stopped_early_stays_stopped_until_it_gets_more_patience(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pretrain.Run, "evaluate", lambda run: evaluation(1.0 + run.state.step))
    options = {"eval_steps": 2, "early_stopping_patience": 2}
    outcome = run_tiny(tiny_data, tmp_path / "r", **options)
    assert (outcome.status, outcome.state.step) == ("stopped_early", 6)
    outcome = run_tiny(tiny_data, tmp_path / "r", resume=True, **options)
    assert (outcome.status, outcome.state.step) == ("stopped_early", 6)
    options["early_stopping_patience"] = 4
    outcome = run_tiny(tiny_data, tmp_path / "r", resume=True, **options)
    assert (outcome.status, outcome.state.step) == ("stopped_early", 10)


@pytest.mark.parametrize("missing", ["last", "best"])
def test_links_that_a_kill_left_behind_are_moved_on_resume(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    run_tiny(tiny_data, whole)
    point = RunDirectory.point

    def killed_before(run: RunDirectory, name: str, step: int) -> None:
        if (name, step) == (missing, 12):
            raise KeyboardInterrupt  # the checkpoint of step 12 is there, nothing leads to it
        point(run, name, step)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(RunDirectory, "point", killed_before)
        run_tiny(tiny_data, killed)
    assert (killed / missing).readlink() != (whole / missing).readlink() == Path("step-00000012")
    run_tiny(tiny_data, killed, resume=True)
    assert [(killed / name).readlink() for name in ("last", "best")] == [Path("step-00000012")] * 2


def test_a_damaged_newest_checkpoint_is_skipped(tiny_data: Path, tmp_path: Path) -> None:
    whole, hurt = tmp_path / "whole", tmp_path / "hurt"
    run_tiny(tiny_data, whole)
    run_tiny(tiny_data, hurt, steps=8)
    weights = hurt / "step-00000008/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    run_tiny(tiny_data, hurt, resume=True, steps=12)
    # the learning rate of the first eight steps was fitted to eight steps: only the structure can be compared
    assert [record["step"] for record in log_without_clock(hurt)] == [
        record["step"] for record in log_without_clock(whole)
    ]
