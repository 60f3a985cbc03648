"""Which checkpoint is meant: from a path as a person gives it, or from none at all, to one whole checkpoint directory.

No torch: a wrong path is told before anything heavy is imported.
"""

from __future__ import annotations

import re
from pathlib import Path

from tiny_transformer.errors import ExitCode, UserError
from tiny_transformer.storage import RunDirectory, verify
from tiny_transformer.storage.marks import is_mark, marked_checkpoint
from tiny_transformer.storage.runs import STATE_DIRECTORY

RUNS_DIR = Path("runs")
LINKS = ("best", "last")  # what a run is asked for, in this order
CONFIG, MANIFEST = "config.json", "manifest.json"
WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
# Directories that only a training run makes; without a manifest they are half-written.
_OURS = re.compile(r"step-\d{8,}|\.tmp-.*")


def find_checkpoint(path: Path | None = None, runs_dir: Path = RUNS_DIR) -> tuple[Path, str]:
    """The checkpoint directory to use, every byte of it checked, and a sentence that says which it is.

    Args:
        path: a checkpoint directory; a run directory, which stands for its `best`, else its `last`; or None for the
            newest `best`, else the newest `last`, among the runs in `runs_dir`. A Hugging Face model directory without
            a manifest is taken as it is.
        runs_dir: where runs are looked for.

    Raises:
        UserError: nothing there, not a checkpoint, a half-written or a damaged one; names the newest whole one.
    """
    if path is None:
        return _newest_link(runs_dir)
    if is_mark(path):
        return _linked(path)
    if not path.is_dir():
        what = "is not a directory" if path.exists() else "does not exist"
        beside = [path.parent / name for name in LINKS if marked_checkpoint(path.parent, name)]
        remedy = f"this run has {beside[0]}" if beside else _suggestion(runs_dir)
        raise UserError(f"{path} {what}", remedy=remedy)
    if _is_run(path):
        return _of_run(path)
    if not any((path / name).is_file() for name in (CONFIG, MANIFEST)):
        raise UserError(f"{path} is not a checkpoint directory: no {CONFIG}", remedy=_suggestion(runs_dir))
    _check(path)
    return path, f"using {path}"


def _newest_link(runs_dir: Path) -> tuple[Path, str]:
    for name in LINKS:
        if link := _find_newest(runs_dir, name):
            target, sentence = _linked(link)
            return target, f"{sentence}, the newest {name} in {runs_dir}"
    raise UserError(f"there is no checkpoint in {runs_dir}", remedy=_suggestion(runs_dir))


def _of_run(run: Path) -> tuple[Path, str]:
    for name in LINKS:
        if marked_checkpoint(run, name):
            return _linked(run / name)
    # A run killed after its first save and before the link was made.
    if newest := RunDirectory(run).newest_whole()[0]:
        return newest.path, f"using {newest.path}"
    what = f"the run {run} has no whole checkpoint"
    raise UserError(what, remedy="let it train until its first save, or use another run", exit_code=ExitCode.BAD_DATA)


def _linked(link: Path) -> tuple[Path, str]:
    """Where a run's mark leads, as a path beside it: a mark that moves meanwhile cannot mix two checkpoints."""
    target = marked_checkpoint(link.parent, link.name)
    if target is None:
        raise UserError(f"{link} is no mark of a run: it names no checkpoint", remedy=f"name one in {link.parent}")
    _check(target)
    return target, f"using {link} ({target.name})"


def _check(directory: Path) -> None:
    """Refuse a checkpoint that is not whole, naming what is wrong and the newest whole one of its run."""
    try:
        if (directory / MANIFEST).exists():
            verify(directory, without=STATE_DIRECTORY)  # what only --resume reads
        elif not directory.is_dir():
            raise UserError("the link leads to a checkpoint that is not there")
        elif _OURS.fullmatch(directory.name):
            raise UserError(f"half-written checkpoint: no {MANIFEST}")
        elif not any((directory / name).is_file() for name in WEIGHTS):
            raise UserError(f"half-written checkpoint: {CONFIG} but no {WEIGHTS[0]}")
    except UserError as error:
        newest = RunDirectory(directory.parent).newest_whole()[0]
        remedy = f"the newest whole checkpoint is {newest.path}" if newest else "take another run: none here is whole"
        code = error.exit_code if error.exit_code is ExitCode.IO else ExitCode.BAD_DATA
        raise UserError(error.what, where=str(directory), remedy=remedy, exit_code=code) from None


def _is_run(path: Path) -> bool:
    names = [entry.name for entry in path.iterdir()]
    return CONFIG not in names and any(name in (*LINKS, "log.jsonl") or _OURS.fullmatch(name) for name in names)


def _find_newest(runs_dir: Path, name: str) -> Path | None:
    """The link of this name that was moved last, among all runs."""
    links = [run / name for run in runs_dir.glob("*") if marked_checkpoint(run, name)]
    return max(links, key=lambda link: (link.lstat().st_mtime_ns, str(link)), default=None)


def _suggestion(runs_dir: Path) -> str:
    newest = next((link for name in LINKS if (link := _find_newest(runs_dir, name))), None)
    if newest:
        return f"the newest checkpoint is {newest}"
    return "train a model first (tiny-transformer train --config configs/demo.yaml), or name a checkpoint directory"
