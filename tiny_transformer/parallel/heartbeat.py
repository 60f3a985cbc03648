"""A lost process ends the others, by name, instead of letting them wait for ever.

What *alive* means. A process is alive while it answers: a thread of its own posts a number that grows, once a second,
to the store that `torchrun` keeps. A process that was killed or stopped, or whose machine or network is gone, does not.
That is not enough for a process that hangs: its thread still answers. So the run also marks its way: each step that
begins, each pass over rows, each exchange, each update is one mark more. In a step, the process that everybody waits
for is the one with the fewest marks; when it has added none for `lost_seconds`, *and* for ten times as long as its
longest stretch so far, it is lost too. A step that is slow but goes on is therefore never mistaken for one that hangs,
and whoever only waits for others is never blamed, for it has more marks than they.

Some work takes long without a mark: compiling the first step, saving, reading data; samples and log, which the first
process alone writes, and while the disk is full waits to write. It is announced, by all, (an activity other
than `step` and `evaluation`); then marks are not asked for, and `PATIENCE` times as long a silence is allowed, for
writing a large file can keep Python's threads from running. A process that dies meanwhile is still found soon: its
connections break, and whoever notices asks for a closer look.

The first process looks at all others; they look at the first and at its verdicts. So a thousand processes ask the store
for two thousand small numbers a second, not a million.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from tiny_transformer.errors import ExitCode, UserError
from tiny_transformer.parallel.stop import SIGNALS

BEAT_SECONDS = 1.0
PATIENCE = 30  # times `lost_seconds`: for work that is announced
STRETCH = 10  # times the longest stretch between two marks
MARKED = ("step", "evaluation")  # activities in which marks are expected
BROKEN = ("gloo", "Connection", "NCCL", "Socket", "socket")  # what messages of broken connections have in common
VERDICT, SUSPICION = "verdict", "suspicion"


@dataclass
class Sight:
    """What is known of one process, and when it last changed."""

    beats: int
    marks: int
    step: int
    activity: str
    beat_time: float
    mark_time: float
    longest: float = 0.0

    def update(self, posted: str, now: float) -> None:
        """Take in what it posted last."""
        beats, marks, step, activity = posted.split()
        if int(beats) != self.beats:
            self.beats, self.beat_time = int(beats), now
        if int(marks) != self.marks or activity != self.activity:
            if self.activity in MARKED:
                self.longest = max(self.longest, now - self.mark_time)
            self.marks, self.activity, self.step, self.mark_time = int(marks), activity, int(step), now


def beat_seconds(lost_seconds: float) -> float:
    """How often a process answers."""
    return min(BEAT_SECONDS, lost_seconds / 8)


def find_lost(sights: dict[int, Sight], now: float, lost_seconds: float, *, is_suspicious: bool) -> str | None:
    """Who is lost, in words; None while everybody is alive. What that means stands at the top of this module.

    Args:
        sights: what is known, by rank; of the first process alone, when another one looks: then only its silence
            counts, for who has the fewest marks is seen from all.
        now: on the clock of the sights.
        lost_seconds: how long a process may be silent, or without a mark.
        is_suspicious: a connection broke, so that somebody must be lost: a few missing answers are enough.
    """
    for rank, sight in sights.items():
        silent = now - sight.beat_time
        allowed = lost_seconds if sight.activity in MARKED else PATIENCE * lost_seconds
        if is_suspicious:
            allowed = min(allowed, 4 * beat_seconds(lost_seconds))
        if silent > allowed:
            return f"rank {rank} has not answered for {silent:.0f} s (last seen in {_where(sight)})"
    if len(sights) == 1:
        return None
    fewest = min(sight.marks for sight in sights.values())
    behind = {rank: sight for rank, sight in sights.items() if sight.marks == fewest}
    for sight in behind.values():
        still = now - sight.mark_time
        if sight.activity not in MARKED or still <= max(lost_seconds, STRETCH * sight.longest):
            return None
    names = " and ".join(f"rank {rank}" for rank in behind)
    first = next(iter(behind.values()))
    return f"{names} did not go on for {now - first.mark_time:.0f} s in {_where(first)} (but answered)"


def _where(sight: Sight) -> str:
    return f"step {sight.step + 1}" if sight.activity == "step" else f"{sight.activity}, step {sight.step + 1}"


class Heartbeat:
    """Posts that this process is alive, and looks after the others.

    Args:
        store: of the process group; this object takes a connection of its own.
        rank, world_size: the place of this process.
        lost_seconds: see the module.
        leave: ends the process at once, with an exit code.
    """

    def __init__(
        self, store: Any, rank: int, world_size: int, lost_seconds: float, leave: Callable[[int], None] = os._exit
    ) -> None:
        self._store = store.clone()
        self._store.set_timeout(timedelta(seconds=lost_seconds))
        self._rank, self._lost_seconds, self._leave = rank, lost_seconds, leave
        self._watched = range(world_size) if rank == 0 else range(1)
        self._beats, self._marks, self._now = 0, 0, ("start", 0)
        self._first_step: int | None = None
        self._lock, self._done, self._is_over = threading.Lock(), threading.Event(), False
        self._thread = threading.Thread(target=self._watch, name="watch", daemon=True)
        self._post()

    def start(self) -> None:
        """Begin; every process has made its `Heartbeat` before."""
        self._thread.start()

    def stop(self) -> None:
        """End; every process has come to the end of its run before."""
        self._done.set()
        self._thread.join()

    def mark(self, activity: str, step: int | None) -> None:
        """One mark more; a new activity is posted before it begins. Without a step it is the last one's."""
        if activity == "step":
            self._first_step = step if self._first_step is None else self._first_step
            if step == self._first_step:  # it may be compiled in the middle
                activity = "start"
        is_new = activity != self._now[0]
        self._marks, self._now = self._marks + 1, (activity, self._now[1] if step is None else step)
        if is_new:
            self._post()

    def failed(self, error: BaseException) -> None:
        """Tell the others that the run has ended here. Returns if this process is the one to show why, else ends it.

        A broken connection is somebody else's failure: then this waits for the verdict, which ends the process.

        Raises:
            UserError: in the place of a broken connection for which nobody was found lost.
        """
        if isinstance(error, RuntimeError) and any(word in str(error) for word in BROKEN):
            for number in SIGNALS:  # torchrun sends one to all when a process has died; the reason is still to be told
                signal.signal(number, signal.SIG_IGN)
            self._try(lambda: self._store.set(SUSPICION, "1"))
            self._thread.join(self._lost_seconds + 8 * BEAT_SECONDS)
            what = f"rank {self._rank} lost its connection to the others in step {self._now[1] + 1}: {error}"
            self._judge(what, ExitCode.IO, is_shown=False)
            raise UserError(what, remedy=REMEDY, exit_code=ExitCode.IO) from None
        code = ExitCode.INTERNAL
        if isinstance(error, UserError):
            code = error.exit_code
        elif isinstance(error, OSError):
            code = ExitCode.IO
        self._judge(f"rank {self._rank} failed", code, is_shown=False)

    def _judge(self, what: str, code: int, *, is_shown: bool) -> None:
        """Give a verdict, unless there is one already: then this process ends as that one says."""
        self._is_over = True
        mine = json.dumps({"what": what, "code": code, "by": self._rank})
        posted = self._try(lambda: self._store.compare_set(VERDICT, "", mine).decode())
        if posted is not None and posted != mine:
            self._leave(json.loads(posted)["code"])
        elif is_shown:
            error = UserError(what, remedy=REMEDY, exit_code=ExitCode.IO)
            sys.stderr.write(f"{error}\n")
            sys.stderr.flush()
            self._leave(code)

    def _post(self) -> None:
        with self._lock:
            self._beats += 1
            activity, step = self._now
            self._store.set(f"alive/{self._rank}", f"{self._beats} {self._marks} {step} {activity}")

    def _watch(self) -> None:
        now = time.monotonic()
        sights = {rank: Sight(0, 0, 0, "start", now, now) for rank in self._watched}
        keys = [f"alive/{rank}" for rank in sights]
        while not self._done.wait(beat_seconds(self._lost_seconds)):
            try:
                self._post()
                if self._store.check([VERDICT]):
                    return self._end_as_told(json.loads(self._store.get(VERDICT)))
                is_suspicious = self._store.check([SUSPICION])
                posted = self._store.multi_get(keys)
            except RuntimeError as error:
                if not self._done.is_set() and not self._is_over:
                    what = f"rank {self._rank} cannot reach the others at rank 0's machine ({_first_line(error)})"
                    self._judge(what, ExitCode.IO, is_shown=True)
                return None
            now = time.monotonic()
            for sight, text in zip(sights.values(), posted, strict=True):
                sight.update(text.decode(), now)
            lost = find_lost(sights, now, self._lost_seconds, is_suspicious=is_suspicious)
            if lost is not None:
                return self._judge(lost, ExitCode.IO, is_shown=True)
        return None

    def _end_as_told(self, verdict: dict[str, Any]) -> None:
        """Another process has ended the run. This one's own verdict lets it show why; it has a moment to do so."""
        if verdict["by"] == self._rank:
            self._done.wait(5 * BEAT_SECONDS)
        self._leave(verdict["code"])

    def _try(self, ask: Callable[[], Any]) -> Any:
        try:
            return ask()
        except RuntimeError:
            return None


REMEDY = "see what happened to it (its machine, its memory), then start again with --resume"


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0][:120]
