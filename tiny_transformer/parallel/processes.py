"""What a run knows about its fellow processes, and the few things they tell each other.

`torchrun` starts the same command several times and tells each copy its number in the environment. All copies read the
same config, compute on their own rows of each batch, and must come to the same decisions. So whatever depends on the
clock, the disk or a signal is decided by the first process, or by all together, through one of the functions here. With
one process each of them gives back what it was given, and `torch.distributed` is never started.

The figures that travel here are few and small, and go over the CPU's network (gloo) on every machine. Gradients and
weights take the road of `sharing`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
from torch import distributed

from tiny_transformer.config.schema import TrainingConfig
from tiny_transformer.errors import UserError
from tiny_transformer.parallel.heartbeat import Heartbeat

T = TypeVar("T")
COLLECTIVE_TIMEOUT = timedelta(hours=2)  # far beyond any save: `heartbeat` ends a run that does not go on much sooner


@dataclass(frozen=True)
class Place:
    """Which of how many processes this is; `local_rank` counts those of one machine."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0

    @classmethod
    def told_by(cls, environment: Mapping[str, str]) -> Place:
        """The place that `torchrun` wrote into the environment; without it there is one process.

        Raises:
            UserError: the numbers are not a place, or say that there are others without saying how many.
        """
        alone = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}
        told = {name: environment[name] for name in alone if name in environment}
        whole = alone | told if told.get("WORLD_SIZE", "1") == "1" else told
        try:
            rank, world_size, local_rank = (int(whole[name]) for name in alone)
            if 0 <= local_rank <= rank < world_size:
                return cls(rank, world_size, local_rank)
        except (KeyError, ValueError):
            pass
        raise UserError(
            "the environment names no process of several: " + ", ".join(f"{k}={v}" for k, v in told.items()),
            where="environment",
            remedy="start with torchrun, which sets RANK, WORLD_SIZE and LOCAL_RANK, or, for one process: unset "
            + " ".join(told),
        )


class Processes:
    """One process among `world_size`; see the module.

    Attributes:
        rank, world_size: this is process number `rank`, counted from 0.
        is_first: whether this is the one that writes files and shows progress.
    """

    def __init__(self, place: Place | None = None, heartbeat: Heartbeat | None = None) -> None:
        place = place or Place()
        self.rank, self.world_size, self.is_first = place.rank, place.world_size, place.rank == 0
        self._heartbeat = heartbeat

    def mark(self, activity: str, step: int | None = None) -> None:
        """Say what this process does now (`step`, `evaluation`, or anything else that may take long), and that it goes
        on; see `heartbeat`."""
        if self._heartbeat is not None:
            self._heartbeat.mark(activity, step)

    def describe(self) -> str:
        """For the terminal, behind the device: `, 8 processes`."""
        return f", {self.world_size} processes" if self.world_size > 1 else ""

    def total(self, value: int) -> int:
        """The sum over all processes."""
        if self.world_size == 1:
            return value
        tensor = torch.tensor(value, dtype=torch.int64)
        distributed.all_reduce(tensor)
        return int(tensor)

    def any(self, flag: bool) -> bool:
        """Whether it holds for one of them."""
        return self.total(int(flag)) > 0

    def barrier(self) -> None:
        """Wait until every process has come here."""
        self.total(0)

    def gather(self, values: Sequence[float]) -> list[list[float]]:
        """Everybody's figures, first process first; each must give equally many."""
        if self.world_size == 1:
            return [list(values)]
        mine = torch.tensor(values, dtype=torch.float64)
        everybodys = [torch.empty_like(mine) for _ in range(self.world_size)]
        distributed.all_gather(everybodys, mine)
        return [figures.tolist() for figures in everybodys]

    def join(self, text: str) -> str:
        """Everybody's texts as one, first process first."""
        if self.world_size == 1:
            return text
        data = text.encode()
        longest = int(max(size for (size,) in self.gather([len(data)])))
        rows = self.gather([len(data), *data, *[0] * (longest - len(data))])
        return "".join(bytes(map(int, row[1 : 1 + int(row[0])])).decode() for row in rows)

    def broadcast(self, value: T) -> T:
        """What the first process says: anything JSON can write. The others' values are ignored."""
        if self.world_size == 1:
            return value
        text = bytearray(json.dumps(value).encode()) if self.is_first else bytearray()
        size = torch.tensor(len(text), dtype=torch.int64)
        distributed.broadcast(size, src=0)
        data = torch.frombuffer(text, dtype=torch.uint8) if self.is_first else torch.empty(int(size), dtype=torch.uint8)
        distributed.broadcast(data, src=0)
        return json.loads(bytes(data.tolist()))


ALONE = Processes()


@contextmanager
def fellow_processes(
    training: TrainingConfig, environment: Mapping[str, str] = os.environ, lost: Callable[[int], None] = os._exit
) -> Generator[Processes]:
    """Meet the other processes that `torchrun` started, and part again when the block ends; alone there is nobody to
    meet.

    Whatever ends the block in one process ends the others too, with the same exit code; it is shown once.

    Args:
        training: `device` says what computes: gradients travel by NCCL between GPUs, by gloo between CPUs.
        environment: where `torchrun` tells the place.
        lost: ends this process when another one is lost.

    Raises:
        UserError: more processes on this machine than GPUs, or a wrong environment.
    """
    place = Place.told_by(environment)
    if place.world_size == 1:
        yield ALONE
        return
    backend = "gloo"
    if training.device == "cuda" or (training.device == "auto" and torch.cuda.is_available()):
        if place.local_rank >= torch.cuda.device_count():
            raise UserError(
                f"{torch.cuda.device_count()} GPUs here for process {place.local_rank + 1} of this machine",
                remedy="start one process per GPU (--nproc-per-node), or set training.device=cpu",
            )
        torch.cuda.set_device(place.local_rank)
        backend = "cpu:gloo,cuda:nccl"
    store, _, _ = next(distributed.rendezvous("env://", place.rank, place.world_size))
    distributed.init_process_group(
        backend, store=store, rank=place.rank, world_size=place.world_size, timeout=COLLECTIVE_TIMEOUT
    )
    heartbeat = Heartbeat(store, place.rank, place.world_size, training.lost_rank_seconds, lost)
    processes = Processes(place, heartbeat)
    processes.barrier()  # everybody has said that it is there
    heartbeat.start()
    try:
        yield processes
        processes.barrier()
    except BaseException as error:
        heartbeat.failed(error)
        raise
    heartbeat.stop()
    processes.barrier()  # nobody leaves while another one still watches
    distributed.destroy_process_group()
