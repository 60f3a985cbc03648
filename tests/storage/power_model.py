"""What a power cut may leave on the disk, worked out from the operations of a save.

The model grants the disk only what fsync brought there: a file's bytes by an fsync of the file, a directory's entries
by an fsync of that directory. Everything else may or may not have arrived, each entry and each file on its own; bytes
that were not brought to the disk may also be zeros (the length arrived before the data, as measured on ext4).
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

from storage_harness import Acknowledged, Plant, Watched, new_run, real_save, violations

Operation = tuple[str, tuple[Any, ...]]
Tree = dict[str, Any]  # name -> bytes (a file), str (a link) or Tree


@dataclass(eq=False)
class File:
    now: bytes = b""
    disk: bytes = b""


@dataclass(eq=False)
class Link:
    target: str


@dataclass(eq=False)
class Directory:
    now: dict[str, Node] = field(default_factory=dict)
    disk: dict[str, Node] = field(default_factory=dict)


Node = File | Link | Directory


class Recorder(Watched):
    """Performs the operations and keeps them: (name, arguments), with descriptors replaced by paths."""

    def __init__(self) -> None:
        super().__init__()
        self.log: list[Operation] = []
        self._paths: dict[int, Path] = {}

    def done(self, name: str, args: tuple[Any, ...], result: Any) -> None:
        if name == "create":
            self._paths[result] = args[0]
        elif name in ("write", "close"):
            args = (self._paths[args[0]], *(bytes(data) for data in args[1:]))
        self.log.append((name, args))


def load(path: Path) -> Directory:
    """A directory as it stands, all of it on the disk."""
    entries: dict[str, Node] = {}
    for entry in path.iterdir():
        if entry.is_symlink():
            entries[entry.name] = Link(str(entry.readlink()))
        elif entry.is_dir():
            entries[entry.name] = load(entry)
        else:
            entries[entry.name] = File(entry.read_bytes(), entry.read_bytes())
    return Directory(dict(entries), dict(entries))


def play(root: Directory, base: Path, operation: Operation) -> None:
    """Applies one recorded operation; paths are below `base`, which `root` stands for."""
    name, args = operation

    def folder(path: Path) -> Directory:
        here = root
        for part in path.relative_to(base).parts:
            found = here.now[part]
            assert isinstance(found, Directory)
            here = found
        return here

    if name == "mkdir":
        folder(args[0].parent).now[args[0].name] = Directory()
    elif name == "create":
        folder(args[0].parent).now[args[0].name] = File()
    elif name == "symlink":
        folder(args[1].parent).now[args[1].name] = Link(args[0])
    elif name in ("unlink", "rmdir"):
        del folder(args[0].parent).now[args[0].name]
    elif name == "rename":
        folder(args[1].parent).now[args[1].name] = folder(args[0].parent).now.pop(args[0].name)
    elif name == "fsync_dir":
        directory = folder(args[0])
        directory.disk = dict(directory.now)
    elif name in ("write", "fsync"):
        file = folder(args[0].parent).now[args[0].name]
        assert isinstance(file, File)
        if name == "write":
            file.now += args[1]
        else:
            file.disk = file.now


def survivors(node: Node) -> Iterator[bytes | str | Tree]:
    """Everything that may be found after the power is back. Hidden entries count as empty: nobody looks into them."""
    if isinstance(node, Link):
        yield node.target
    elif isinstance(node, File):
        yield from {node.disk, node.now, bytes(len(node.now))} if node.disk != node.now else {node.disk}
    else:
        choices = []
        for name in sorted(node.disk.keys() | node.now.keys()):
            kept = list({id(n): n for n in (node.disk.get(name), node.now.get(name))}.values())
            found: list[tuple[str, Any]] = []
            for entry in kept:
                if entry is None:
                    found.append((name, None))
                elif name.startswith(".tmp-"):
                    found.append((name, {}))
                else:
                    found += [(name, tree) for tree in survivors(entry)]
            choices.append(found)
        for combination in product(*choices):
            yield {name: tree for name, tree in combination if tree is not None}


def build(tree: Tree, path: Path) -> None:
    """Puts a surviving tree on the real disk, for the judge."""
    path.mkdir()
    for name, entry in tree.items():
        if isinstance(entry, dict):
            build(entry, path / name)
        elif isinstance(entry, str):
            (path / name).symlink_to(entry)
        else:
            (path / name).write_bytes(entry)


def check_power_cuts(
    base: Path, before: Directory, log: list[Operation], acknowledged: Acknowledged, run: str = "run"
) -> Iterator[str]:
    """Yields what is wrong in anything that a power cut before each operation, or after the last, may leave."""
    root, judged = copy.deepcopy(before), set()
    for cut in range(len(log) + 1):
        known = acknowledged.before(cut)
        for tree in survivors(root):
            state = repr((tree, known.saved, known.links))
            if state not in judged:
                judged.add(state)
                path = Path(tempfile.mkdtemp(dir=base.parent)) / "after"
                build(tree, path)
                yield from (f"cut before operation {cut}: {text}" for text in violations(path / run, known))
        if cut < len(log):
            play(root, base, log[cut])


def recorded_save(base: Path, plant: Plant = real_save) -> tuple[Directory, list[Operation], Acknowledged]:
    """A run with three checkpoints as the disk has it, the operations of a fourth save, and what was acknowledged."""
    base.mkdir()
    acknowledged = new_run(base / "run")
    before, recorder = load(base), Recorder()
    plant()(base / "run", 4, acknowledged, recorder)
    return before, recorder.log, acknowledged


def leave_out(log: list[Operation], position: int) -> list[Operation]:
    """The operations with one that does nothing in the place of one: acknowledgements keep their places."""
    return [("lstat", args) if i == position else (name, args) for i, (name, args) in enumerate(log)]
