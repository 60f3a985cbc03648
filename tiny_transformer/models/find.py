"""Which run or checkpoint is meant: from a path, a run's name or nothing at all to one whole checkpoint directory.

A path that exists is taken as it stands; else a name is looked for among the runs: `demo` is runs/demo, `demo/last` its
last checkpoint, `demo*` every run whose name begins so. No torch: a wrong name is refused before anything heavy is
imported.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from tiny_transformer.errors import ExitCode, UserError, command_line
from tiny_transformer.storage import RunDirectory, verify
from tiny_transformer.storage.lock import owner_of
from tiny_transformer.storage.marks import STEP_NAME, is_mark, marked_checkpoint
from tiny_transformer.storage.runs import CONFIG_FILE, NOT_FINITE_FILE, STATE_DIRECTORY
from tiny_transformer.storage.temporary import LEFTOVER_PREFIX

RUNS_DIR = Path("runs")
LINKS = ("best", "last")  # what a run is asked for, in this order
CONFIG, BASE, ADAPTER, MANIFEST = "config.json", "base.json", "adapter_config.json", "manifest.json"
DATA = "meta.json"  # only prepared data has it
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "adapter_model.safetensors")


def find_runs(names: Sequence[Path | str], runs_dir: Path = RUNS_DIR) -> tuple[list[Path], list[str]]:
    """The paths that names mean, in their order and each once, and what a reader should be told about the choice.

    Args:
        names: paths, names of runs in `runs_dir`, or patterns of either with `*`, `?` or `[...]`.
        runs_dir: where runs are looked for.

    Raises:
        UserError: nothing has that name; names those that are near.
    """
    found: list[Path] = []
    notes = []
    for name in map(Path, names):
        run = runs_dir / name if not name.is_absolute() and ".." not in name.parts else name
        if _exists(name):
            found.append(name)
            if run != name and _exists(run) and run.resolve() != name.resolve():
                notes.append(f"{name} is a path here; the run of that name is {run}")
        elif _exists(run):
            found.append(run)
        else:
            here, among_runs = _glob(Path(), name), _glob(runs_dir, name)
            matches = _of_runs(here) or _of_runs(among_runs) or here or among_runs
            if not matches:
                raise _unknown(name, runs_dir)
            found += matches
    once: dict[str, Path] = {}
    for path in found:
        once.setdefault(os.path.realpath(path), path)
    return list(once.values()), notes


def newest_run(runs_dir: Path = RUNS_DIR) -> Path:
    """The run that was written to last.

    Raises:
        UserError: there is none.
    """
    runs = [path for path in _of_runs(sorted(runs_dir.glob("*"))) if _is_run(path)]
    if not runs:
        raise UserError(f"there is no run in {runs_dir}", remedy="name one; tiny-transformer train makes one")
    return max(runs, key=lambda run: max(entry.lstat().st_mtime_ns for entry in run.iterdir()))


def find_run(name: Path | str, runs_dir: Path = RUNS_DIR) -> tuple[Path, str]:
    """The one path that a name means, and what a reader should be told about it, else nothing; see `find_runs`.

    Raises:
        UserError: nothing has that name, or a pattern means several.
    """
    found, notes = find_runs([name], runs_dir)
    if len(found) > 1:
        shown = ", ".join(map(str, found[:5])) + (" ..." if len(found) > 5 else "")
        raise UserError(f"{name} means {len(found)} directories, and one is needed", remedy=f"one of {shown}")
    return found[0], "".join(notes)


def _exists(path: Path) -> bool:
    return path.exists() or path.is_symlink()


def _glob(root: Path, pattern: Path) -> list[Path]:
    """Directories that a pattern means, sorted; none for a plain name."""
    if not set("*?[") & set(str(pattern)):
        return []
    root, pattern = (Path(pattern.anchor), pattern.relative_to(pattern.anchor)) if pattern.anchor else (root, pattern)
    return sorted(path for path in root.glob(str(pattern)) if path.is_dir())


def _of_runs(paths: list[Path]) -> list[Path]:
    """Those that are runs or checkpoints: a pattern is not meant for other directories that happen to fit it."""
    found = []
    for path in paths:
        with suppress(OSError):
            if path.is_dir() and (_is_run(path) or any((path / name).is_file() for name in (CONFIG, BASE, MANIFEST))):
                found.append(path)
    return found


def _unknown(name: Path, runs_dir: Path) -> UserError:
    runs = [path.name for path in runs_dir.glob("*") if path.is_dir()]
    beside = [name.parent / link for link in LINKS if (name.parent / link).is_symlink()]
    near = difflib.get_close_matches(name.name, runs, n=3)
    remedy = f"did you mean {' or '.join(near)}?" if near else _suggestion(runs_dir)
    return UserError(f"{name} does not exist", remedy=f"this run has {beside[0]}" if beside else remedy)


def find_checkpoint(path: Path | str | None = None, runs_dir: Path = RUNS_DIR) -> tuple[Path, str]:
    """The checkpoint directory to use, every byte of it checked, and a sentence that says which it is.

    Args:
        path: a checkpoint directory; a run directory, which stands for its `best`, else its `last`; the name of either
            in `runs_dir`, see `find_runs`; or None for the newest `best`, else the newest `last`, among the runs in
            `runs_dir`. A Hugging Face model directory without a manifest is taken as it is.
        runs_dir: where runs are looked for.

    Raises:
        UserError: nothing there, not a checkpoint, a half-written or a damaged one; names the newest whole one.
    """
    if path is None:
        return _newest_link(runs_dir)
    found, note = find_run(path, runs_dir)
    target, sentence = _checkpoint_at(found, runs_dir)
    return target, f"{sentence} ({note})" if note else sentence


def _checkpoint_at(path: Path, runs_dir: Path) -> tuple[Path, str]:
    if is_mark(path):
        return _linked(path)
    if not path.is_dir():
        raise UserError(f"{path} is not a directory", remedy=_suggestion(runs_dir))
    if _is_run(path):
        return _of_run(path)
    if (path / DATA).is_file() and not (path / CONFIG).is_file():
        raise UserError(
            f"{path} holds prepared data and no model",
            remedy=f"name a run or checkpoint; data is named with --data_dir {path}",
        )
    if not any((path / name).is_file() for name in (CONFIG, BASE, MANIFEST)):
        if (path / ADAPTER).is_file():
            raise UserError(
                f"{path} holds adapters and no model",
                remedy=f"name their base: --ckpt BASE --adapter {path}, or tiny-transformer merge {path} --base BASE",
            )
        run = runs_dir / path
        remedy = f"the run of that name is {run}" if run != path and run.is_dir() else _suggestion(runs_dir)
        raise UserError(f"{path} is not a checkpoint directory: no {CONFIG}", remedy=remedy)
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
    raise _nothing_saved(run)


def _nothing_saved(run: Path) -> UserError:
    """What to say of a run without a whole checkpoint, and what can be done about it."""
    what, remedy = f"the run {run} has no whole checkpoint", "train it again (--overwrite), or use another run"
    if (run / NOT_FINITE_FILE).is_file():
        what = f"the run {run} diverged before its first checkpoint"
        remedy = "train it again with a lower learning_rate (--overwrite), or use another run"
    elif owner_of(run):
        what, remedy = f"the run {run} has not saved yet", "let it train until its first save, or use another run"
    elif RunDirectory(run).checkpoints():
        remedy = f"{command_line('tiny-transformer', 'doctor', run)} says what is damaged; use another run"
    return UserError(what, remedy=remedy, exit_code=ExitCode.BAD_DATA)


def _linked(link: Path) -> tuple[Path, str]:
    """Where a run's mark leads, as a path beside it: a mark that moves meanwhile cannot mix two checkpoints."""
    target = marked_checkpoint(link.parent, link.name)
    if target is None:
        raise UserError(f"{link} does not point to a checkpoint of its run", remedy=f"name one in {link.parent}")
    _check(target)
    return target, f"using {link} ({target.name})"


def _check(directory: Path) -> None:
    """Refuse a checkpoint that is not whole, naming what is wrong and the newest whole one of its run."""
    try:
        if (directory / MANIFEST).exists():
            verify(directory, without=STATE_DIRECTORY)  # what only --resume reads
        elif not directory.is_dir():
            raise UserError("the link leads to a checkpoint that is not there")
        elif _is_ours(directory.name):
            raise UserError(f"half-written checkpoint: no {MANIFEST}")
        elif not any((directory / name).is_file() for name in WEIGHTS):
            raise UserError(f"half-written checkpoint: {CONFIG} but no {WEIGHTS[0]}")
    except UserError as error:
        newest = RunDirectory(directory.parent).newest_whole()[0]
        remedy = f"the newest whole checkpoint is {newest.path}" if newest else "take another run: none here is whole"
        code = error.exit_code if error.exit_code is ExitCode.IO else ExitCode.BAD_DATA
        raise UserError(error.what, where=str(directory), remedy=remedy, exit_code=code) from None


def looks_like_model(path: Path) -> bool:
    """Whether a run or a checkpoint stands at a path, so that a word which is its name is hardly a text."""
    return any((path / name).exists() for name in (CONFIG, BASE, CONFIG_FILE, "last", "best"))


def _is_run(path: Path) -> bool:
    names = [entry.name for entry in path.iterdir()]
    return CONFIG not in names and any(name in (*LINKS, "log.jsonl") or _is_ours(name) for name in names)


def _is_ours(name: str) -> bool:
    """Whether only a training run makes a directory of that name; without a manifest it is half-written."""
    return STEP_NAME.fullmatch(name) is not None or name.startswith(LEFTOVER_PREFIX)


def _find_newest(runs_dir: Path, name: str) -> Path | None:
    """The link of this name that was moved last, among all runs."""
    links = [run / name for run in runs_dir.glob("*") if marked_checkpoint(run, name)]
    return max(links, key=lambda link: (link.lstat().st_mtime_ns, str(link)), default=None)


def _suggestion(runs_dir: Path) -> str:
    newest = next((link for name in LINKS if (link := _find_newest(runs_dir, name))), None)
    if newest:
        return f"the newest checkpoint is {newest}"
    return "train a model first (tiny-transformer train --minutes 10), or name a checkpoint directory"
