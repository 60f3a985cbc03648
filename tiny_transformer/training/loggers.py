"""The figures of log.jsonl, sent on to TensorBoard, Weights & Biases or Trackio when a run asks for it.

None of them is needed: log.jsonl is the record, and the report is drawn from it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from tiny_transformer.errors import UserError, in_words

PROJECT = "tiny-transformer"
Record = dict[str, Any]


class Loggers:
    """Every logger a run asked for, behind one call.

    Args:
        names: of `tensorboard`, `wandb`, `trackio`.
        run_dir: gives the run its name; TensorBoard writes into its folder `tensorboard`.
        settings: the resolved config, shown beside the curves.
        first_step: the step a resumed run continues from.
        tell: takes a line about a logger that failed.

    Raises:
        UserError: one of them is not installed.
    """

    def __init__(
        self,
        names: Iterable[str],
        run_dir: Path,
        settings: Record,
        first_step: int,
        tell: Callable[[str], Any] = lambda words: None,
    ) -> None:
        self._tell = tell
        self._send: list[Callable[[Record, int], Any]] = []
        self._close: list[Callable[[], Any]] = []
        for name in names:
            open_logger = {"tensorboard": self._tensorboard, "wandb": self._wandb, "trackio": self._trackio}[name]
            open_logger(run_dir, settings, first_step)

    def __call__(self, record: Record) -> None:
        """Send the numbers of one line of log.jsonl; those inside a group as `group/name`. A logger that fails gets no
        more of them: no picture elsewhere is worth a run."""
        numbers = {key: value for key, value in flat(record) if key != "step" and isinstance(value, (int, float))}
        for send in list(self._send):
            try:
                send(numbers, record["step"])
            except Exception as error:
                self._send.remove(send)
                self._tell(
                    f"a logger failed at step {record['step']:,} and receives no more figures: {in_words(error)}"
                )

    def close(self) -> None:
        """Let each write what it still holds."""
        for close in self._close:
            try:
                close()
            except Exception as error:
                self._tell(f"a logger could not be closed: {in_words(error)}")

    def _tensorboard(self, run_dir: Path, settings: Record, first_step: int) -> None:
        needs("tensorboard")
        writer = import_module("torch.utils.tensorboard").SummaryWriter(
            str(run_dir / "tensorboard"), purge_step=first_step + 1 if first_step else None
        )

        def send(numbers: Record, step: int) -> None:
            for key, value in numbers.items():
                writer.add_scalar(key, value, step)

        self._send.append(send)
        self._close.append(writer.close)

    def _wandb(self, run_dir: Path, settings: Record, first_step: int) -> None:
        where = str(run_dir.resolve())
        run = needs("wandb").init(
            project=PROJECT,
            name=run_dir.name,
            id=f"{run_dir.name}-{hashlib.sha256(where.encode()).hexdigest()[:8]}",
            dir=where,
            config=settings,
            resume="allow",
        )
        self._send.append(lambda numbers, step: run.log(numbers, step=step))
        self._close.append(run.finish)

    def _trackio(self, run_dir: Path, settings: Record, first_step: int) -> None:
        trackio = needs("trackio")
        trackio.init(project=PROJECT, name=run_dir.name, config=settings, resume="allow")
        self._send.append(lambda numbers, step: trackio.log(numbers, step=step))
        self._close.append(trackio.finish)


def flat(record: Record) -> Iterator[tuple[str, Any]]:
    """Names and values of a record and of the groups in it."""
    for key, value in record.items():
        if isinstance(value, dict):
            yield from ((f"{key}/{inner}", figure) for inner, figure in value.items())
        else:
            yield key, value


def check_installed(names: Iterable[str]) -> None:
    """Refuse a run that asks for a logger which is not there.

    Raises:
        UserError: one of them is not installed.
    """
    for name in names:
        needs(name)


def needs(name: str) -> ModuleType:
    """The package of a logger.

    Raises:
        UserError: it is not installed.
    """
    try:
        return import_module(name)
    except ImportError:
        raise UserError(
            f"training.loggers asks for {name}, which is not installed",
            remedy=f"pip install {name}, or leave it out: log.jsonl and the report have the same figures",
        ) from None
