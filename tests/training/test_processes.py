"""Several processes are one: the same rows, the same gradient, the same decisions; rows D21 and D27 of the reliability
table as functions without processes, and gradients in float64 with them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from worlds import Worlds

from tiny_transformer.config.load import load_run_config
from tiny_transformer.config.schema import TrainingConfig
from tiny_transformer.data.batches import Batches
from tiny_transformer.data.token_file import open_dataset
from tiny_transformer.errors import UserError
from tiny_transformer.hardware import Hardware
from tiny_transformer.parallel import heartbeat as watch
from tiny_transformer.parallel.heartbeat import Sight, find_lost
from tiny_transformer.parallel.processes import ALONE, Place, Processes
from tiny_transformer.parallel.sharing import check_shares, tree_sum
from tiny_transformer.stages import command

CPU = Hardware(torch.device("cpu"), None)
SHAPE = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "vocab_size": 257,
}
# a batch of 32 rows, cut and shared in different ways
WAYS: list[dict[str, Any]] = [
    {"micro_batch_size": 4, "grad_accum_steps": 8, "parallelism": "ddp"},
    {"micro_batch_size": 4, "grad_accum_steps": 8, "parallelism": "fsdp"},
    {"micro_batch_size": 4, "grad_accum_steps": 8, "deterministic": True},
    {"micro_batch_size": 3, "grad_accum_steps": 8, "parallelism": "ddp", "gradient_checkpointing": True},
    {"micro_batch_size": 32, "grad_accum_steps": 1, "parallelism": "fsdp", "gradient_checkpointing": True},
]


def test_what_processes_tell_each_other(worlds: Worlds) -> None:
    for size in (1, 2, 3):
        told = {
            "total": sum(10 + rank for rank in range(size)),
            "any": [size > 1, False],
            "gather": [[rank + 0.1, float("inf")] for rank in range(size)],
            "first": {"rank": 0, "text": "ééééé"},
        }
        assert worlds.results(size, "talk") == [told] * size


def difference(one: dict[str, list[float]], other: dict[str, list[float]]) -> float:
    """The largest difference of two gradients, relative to the largest entry of each weight's."""
    worst = 0.0
    for name, values in one.items():
        left, right = (torch.tensor(v, dtype=torch.float64) for v in (values, other[name]))
        worst = max(worst, ((left - right).abs().max() / left.abs().max()).item())
    return worst


@pytest.mark.slow
def test_the_gradient_is_that_of_the_whole_batch_however_it_is_shared(worlds: Worlds) -> None:
    """32 rows = 8 x 4 = two processes x 4 x 4, with 1 to 15 targets a row, and less on one process than on the
    other."""
    ((whole, *_),) = worlds.results(1, "gradients", shape=SHAPE, ways=[{"micro_batch_size": 32}])
    alone: dict[str, Any] = {}
    for size in (1, 2, 4):
        ways = worlds.results(size, "gradients", shape=SHAPE, ways=WAYS)[0]
        for way, found in zip(WAYS, ways, strict=True):
            assert found["num_tokens"] == whole["num_tokens"]
            assert found["loss"] == pytest.approx(whole["loss"], rel=1e-6), (size, way)
            assert found["norm"] == pytest.approx(whole["norm"], rel=1e-6), (size, way)
            assert difference(whole["gradients"], found["gradients"]) < 1e-6, (size, way)
        in_a_tree = next(found for way, found in zip(WAYS, ways, strict=True) if way.get("deterministic"))
        alone = in_a_tree if size == 1 else alone
        assert in_a_tree["gradients"] == alone["gradients"], "not bit for bit"


@pytest.mark.slow
def test_averaging_what_processes_found_would_be_noticed(worlds: Worlds) -> None:
    """The test above can fail: with each process's own count of targets the gradient is another one."""
    ((whole, *_),) = worlds.results(1, "gradients", shape=SHAPE, ways=[{"micro_batch_size": 32}])
    spoilt = worlds.results(2, "gradients", shape=SHAPE, ways=WAYS[:1], spoil=True)[0][0]
    assert difference(whole["gradients"], spoilt["gradients"]) > 1e-2


# --- D21 --------------------------------------------------------------------------------------------------------------

CUTS = [(1, 24), (2, 12), (3, 8), (4, 6), (6, 4), (8, 3), (12, 2), (24, 1), (5, 24), (7, 24), (16, 3), (48, 1)]


@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 8])
def test_each_step_has_the_same_examples_for_every_number_of_processes(tiny_data: Path, world_size: int) -> None:
    """Sixty combinations of processes, micro-batch and accumulation."""
    tokens = open_dataset(tiny_data).train
    for micro_batch_size, grad_accum_steps in CUTS:
        rows = micro_batch_size * grad_accum_steps
        settings: dict[str, Any] = {"seq_len": 32, "global_batch_size": rows, "seed": 5}
        alone = Batches(tokens, **settings)
        ranks = [Batches(tokens, **settings, rank=rank, world_size=world_size) for rank in range(world_size)]
        for step in (0, 1, 1000):  # the last one lies in a later epoch
            pieces = [piece for rank in ranks for piece in rank.micro_batches(step, micro_batch_size)]
            shared = torch.cat([piece.sample_ids for piece in pieces])
            assert torch.equal(shared, alone.batch(step).sample_ids)
            assert all(len(piece.sample_ids) <= micro_batch_size for piece in pieces)
            assert sum(piece.num_targets for piece in pieces) == alone.batch(step).num_targets


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "training", "message"),
    [
        (3, {"micro_batch_size": 16}, "3 processes cannot share a batch of 16 sequences equally"),
        (3, {"grad_accum_steps": 3, "deterministic": True}, "3 processes cannot share 3 micro-batches"),
        (4, {"grad_accum_steps": 2, "deterministic": True}, "4 processes cannot share 2 micro-batches"),
        (4, {"grad_accum_steps": 4, "deterministic": True}, None),
        (4, {"grad_accum_steps": 1}, None),
        (1, {"micro_batch_size": 3, "deterministic": True}, None),
    ],
)
def test_a_batch_that_cannot_be_shared_is_refused(size: int, training: dict[str, Any], message: str | None) -> None:
    processes, config = Processes(Place(0, size, 0)), TrainingConfig(**training)
    if message is None:
        check_shares(config, processes, CPU)
    else:
        with pytest.raises(UserError, match=message):
            check_shares(config, processes, CPU)


def test_one_gpu_of_apple_is_not_shared() -> None:
    mps = Hardware(torch.device("mps"), None)
    check_shares(TrainingConfig(), ALONE, mps)
    with pytest.raises(UserError, match="Apple"):
        check_shares(TrainingConfig(), Processes(Place(0, 2, 0)), mps)


def test_the_place_is_read_from_the_environment() -> None:
    told = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}
    assert Place.told_by(told) == Place(5, 8, 1)
    for alone in ({}, {"WORLD_SIZE": "1"}, {"RANK": "0", "LOCAL_RANK": "0"}, {**told, "RANK": "0", "LOCAL_RANK": "0"}):
        assert Place.told_by({**alone, **({"WORLD_SIZE": "1"} if alone else {})}) == Place(0, 1, 0)
    for others in ({"LOCAL_RANK": "x"}, {"RANK": "1"}, {"LOCAL_RANK": "1"}, {"RANK": "1", "WORLD_SIZE": "1"}):
        with pytest.raises(UserError, match="names no process of several") as refused:
            Place.told_by(others)
        assert (refused.value.remedy or "").endswith("unset " + " ".join(others))
    for wrong in ({"RANK": "8"}, {"RANK": "x"}, {"LOCAL_RANK": "6"}, {"WORLD_SIZE": "-2"}, {"LOCAL_RANK": ""}):
        with pytest.raises(UserError, match="the environment names no process of several"):
            Place.told_by({**told, **wrong})
    with pytest.raises(UserError, match="WORLD_SIZE=8"):
        Place.told_by({"WORLD_SIZE": "8"})


def test_a_mistake_in_the_config_is_told_once_a_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    with pytest.raises(SystemExit) as silent:
        command.run_training(None, ["nonsense=1"], resume=False, overwrite=False, console=None)
    assert silent.value.code == 2
    monkeypatch.setenv("LOCAL_RANK", "0")
    with pytest.raises(UserError, match="nonsense"):
        command.run_training(None, ["nonsense=1"], resume=False, overwrite=False, console=None)
    for size, rank in (("1", "1"), ("2", "x"), ("2", "0")):  # nobody else would tell it
        monkeypatch.setenv("WORLD_SIZE", size)
        monkeypatch.setenv("LOCAL_RANK", rank)
        with pytest.raises(UserError, match="nonsense"):
            command.run_training(None, ["nonsense=1"], resume=False, overwrite=False, console=None)


def test_deterministic_fsdp_is_refused_with_the_config() -> None:
    with pytest.raises(UserError, match="deterministic and fsdp exclude each other"):
        load_run_config(None, ["training.deterministic=true", "training.parallelism=fsdp"])


def test_the_tree_of_a_batch_is_made_of_the_trees_of_its_parts() -> None:
    words = tree_sum("abcdefghijkl", str, lambda left, right: f"({left}{right})")
    assert words == "((((ab)c)((de)f))(((gh)i)((jk)l)))"
    for size in (1, 2, 4):
        parts = [words_of("abcdefghijkl"[rank * 12 // size : (rank + 1) * 12 // size]) for rank in range(size)]
        assert tree_sum(parts, str, lambda left, right: f"({left}{right})") == words


def words_of(letters: str) -> str:
    return tree_sum(letters, str, lambda left, right: f"({left}{right})")


# --- who is lost ------------------------------------------------------------------------------------------------------


def seen(**changes: Any) -> Sight:
    return replace(Sight(beats=9, marks=50, step=16, activity="step", beat_time=100.0, mark_time=100.0), **changes)


@pytest.mark.parametrize(
    ("sights", "lost"),
    [
        ([seen(), seen()], None),
        ([seen(), seen(beat_time=70.0)], "rank 1 has not answered for 31 s (last seen in step 17)"),
        ([seen(), seen(beat_time=90.0)], None),
        # a rank that hangs has fewer marks than those that wait for it
        (
            [seen(mark_time=70.0), seen(marks=49, mark_time=70.0)],
            "rank 1 did not go on for 31 s in step 17 (but answered)",
        ),
        (
            [seen(marks=48, mark_time=70.0), seen(mark_time=70.0)],
            "rank 0 did not go on for 31 s in step 17 (but answered)",
        ),
        # seen by another process than the first
        ([seen(mark_time=70.0)], None),
        ([seen(beat_time=70.0)], "rank 0 has not answered for 31 s (last seen in step 17)"),
        # all at the same place: nobody can be blamed alone
        (
            [seen(mark_time=70.0), seen(mark_time=70.0)],
            "rank 0 and rank 1 did not go on for 31 s in step 17 (but answered)",
        ),
        # slow but alive: its longest stretch so far was 5 s
        ([seen(mark_time=70.0), seen(marks=49, mark_time=70.0, longest=5.0)], None),
        # rank 0 saves for two minutes, and Python's threads do not run meanwhile; rank 1 waits
        ([seen(activity="save", beat_time=-19.0, mark_time=-19.0), seen(marks=52, mark_time=-19.0)], None),
        (
            [seen(activity="save", beat_time=-900.0), seen(marks=52)],
            "rank 0 has not answered for 1001 s (last seen in save, step 17)",
        ),
        ([seen(activity="start", mark_time=-500.0), seen(activity="start", mark_time=-500.0)], None),
        (
            [seen(), seen(activity="evaluation", mark_time=70.0, marks=3)],
            "rank 1 did not go on for 31 s in evaluation, step 17 (but answered)",
        ),
    ],
)
def test_who_is_lost(sights: list[Sight], lost: str | None) -> None:
    by_rank = dict(enumerate(sights))
    assert find_lost(by_rank, 101.0, 20.0, is_suspicious=False) == lost


def test_the_first_step_may_take_long_without_a_mark_for_it_compiles() -> None:
    posted: list[str] = []
    store = SimpleNamespace(set_timeout=lambda _: None, set=lambda key, value: posted.append(value))
    store.clone = lambda: store
    watch_of_one = watch.Heartbeat(store, 0, 2, 20.0)
    for step in (7, 7, 8):  # a resumed run
        watch_of_one.mark("step", step)
    assert [text.split()[2:] for text in posted] == [["0", "start"], ["8", "step"]]


def test_a_broken_connection_makes_a_short_silence_enough() -> None:
    sights = {0: seen(), 1: seen(beat_time=95.0)}
    assert find_lost(sights, 101.0, 20.0, is_suspicious=False) is None
    assert (
        find_lost(sights, 101.0, 20.0, is_suspicious=True) == "rank 1 has not answered for 6 s (last seen in step 17)"
    )


def test_sights_remember_when_something_changed() -> None:
    sight = Sight(0, 0, 0, "start", 0.0, 0.0)
    sight.update("1 0 0 start", 1.0)
    sight.update("2 1 4 step", 30.0)
    assert (sight.longest, sight.mark_time) == (0.0, 30.0), "the start is no stretch of a step"
    sight.update("3 2 4 step", 37.0)
    sight.update("4 2 4 step", 40.0)
    assert (sight.longest, sight.mark_time, sight.beat_time, sight.step) == (7.0, 37.0, 40.0, 4)
    assert watch.PATIENCE * 20 >= 120, "saving for two minutes is allowed"
