"""Saves with one thing wrong, each a mistake that a refactoring could make. The tests must notice every one of them.

Each entry takes a function like `setattr`, breaks the storage room with it and returns the save to run.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

from storage_harness import KEEP, Acknowledged, SaveStep, files_of, save

from tiny_transformer.storage import Fs, RunDirectory, commit
from tiny_transformer.storage.manifest import MANIFEST

Patch = Callable[[Any, str, Any], None]


def manifest_after_the_rename(patch: Patch) -> SaveStep:
    def seal(self: commit.Staging, info: dict) -> Any:
        fs, manifest = self._fs, real_seal(self, info)
        fs.unlink(self.path / MANIFEST)
        return manifest

    def read_back(path: Path, manifest: Any, fs: Fs) -> None:
        commit.write_new(path / MANIFEST, manifest.encode(), fs)
        real_read_back(path, manifest, fs)

    real_seal, real_read_back = commit.Staging.seal, commit.read_back
    patch(commit.Staging, "seal", seal)
    patch(commit, "read_back", read_back)
    return save


def no_temporary_directory(patch: Patch) -> SaveStep:
    def save_in_place(path: Path, step: int, acknowledged: Acknowledged, fs: Fs) -> None:
        run = RunDirectory(path, fs)
        with run.lock():
            target = run.step_path(step)
            if target.exists():
                shutil.rmtree(target)
            staging = commit.Staging(target, fs)
            fs.mkdir(target)
            for name, data in files_of(step).items():
                staging.write(name, data)
            staging.seal({"step": step})
            fs.fsync_dir(path)
            acknowledged.note(fs, "saved", step)
            run.point("last", step)
            acknowledged.note(fs, "last", step)
            run.prune(KEEP)

    return save_in_place


def no_read_back(patch: Patch) -> SaveStep:
    patch(commit, "read_back", lambda path, manifest, fs: None)
    return save


def link_moved_before_the_read_back(patch: Patch) -> SaveStep:
    def read_back(path: Path, manifest: Any, fs: Fs) -> None:
        fs.unlink(path.parent / "last")
        fs.symlink(path.name, path.parent / "last")
        real(path, manifest, fs)

    real = commit.read_back
    patch(commit, "read_back", read_back)
    return save


def link_removed_and_made_again(patch: Patch) -> SaveStep:
    def point(self: RunDirectory, name: str, step: int) -> None:
        with suppress(FileNotFoundError):
            self._fs.unlink(self.path / name)
        self._fs.symlink(self.step_path(step).name, self.path / name)
        self._fs.fsync_dir(self.path)

    patch(RunDirectory, "point", point)
    return save


def prune_before_publish(patch: Patch) -> SaveStep:
    def make_room_first(path: Path, step: int, acknowledged: Acknowledged, fs: Fs) -> None:
        with suppress(OSError):
            commit.remove_tree(RunDirectory(path).checkpoints()[-1].path, fs)
        save(path, step, acknowledged, fs)

    return make_room_first


def prune_in_sight(patch: Patch) -> SaveStep:
    def prune(self: RunDirectory, keep: int) -> None:
        kept = {self._target(name) for name in ("last", "best")}
        for checkpoint in self.checkpoints()[:-keep]:
            if checkpoint.path.name not in kept:
                commit.remove_tree(checkpoint.path, self._fs)

    patch(RunDirectory, "prune", prune)
    return save


def prune_what_links_lead_to(patch: Patch) -> SaveStep:
    patch(RunDirectory, "_target", lambda self, name: None)
    return save


def leftovers_never_removed(patch: Patch) -> SaveStep:
    patch(RunDirectory, "clean_leftovers", lambda self: [])
    return save


class Careless:
    """Passes everything on to a file system and takes a failed fsync lightly."""

    def __init__(self, fs: Fs, handle: Callable[[Callable[[Path], None], Path], None]) -> None:
        self._fs, self._handle = fs, handle

    def __getattr__(self, name: str) -> Any:
        operation = getattr(self._fs, name)
        return (lambda path: self._handle(operation, path)) if name.startswith("fsync") else operation


def failed_fsync_ignored(patch: Patch) -> SaveStep:
    def ignore(operation: Callable[[Path], None], path: Path) -> None:
        with suppress(OSError):
            operation(path)

    return lambda path, step, acknowledged, fs: save(path, step, acknowledged, Careless(fs, ignore))


def failed_fsync_tried_again(patch: Patch) -> SaveStep:
    def again(operation: Callable[[Path], None], path: Path) -> None:
        try:
            operation(path)
        except OSError:
            operation(path)

    return lambda path, step, acknowledged, fs: save(path, step, acknowledged, Careless(fs, again))


def errors_of_the_system_escape(patch: Patch) -> SaveStep:
    patch(commit, "refusals", lambda action, path: nullcontext())
    return save
