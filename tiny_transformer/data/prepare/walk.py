"""Going through a folder that is searched for text."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from tiny_transformer.data.meta import META_FILE
from tiny_transformer.data.prepare.unpack import unreadable
from tiny_transformer.errors import UserError
from tiny_transformer.storage.manifest import MANIFEST, read_manifest
from tiny_transformer.storage.replaced import RUN_FILES
from tiny_transformer.storage.runs import CONFIG_FILE


class Walk:
    """All files below a folder, each real folder looked at once, however many links lead to it or back; what is hidden
    is not looked at, and what this program wrote is left out.

    Attributes:
        files: in the order of their folders.
        num_ours: how many files of prepared data, checkpoints and runs were left out.
        num_linked, num_again: links to folders that were followed, and those to a folder that was there already.
    """

    def __init__(self, root: Path) -> None:
        self.files: list[Path] = []
        self.num_ours = 0
        self.num_linked = self.num_again = 0
        self._root, self._seen = root, {place_of(root)}
        for directory, folders, names in os.walk(root, followlinks=True, onerror=self._refuse):
            folders[:] = [
                name for name in sorted(folders) if not name.startswith(".") and self._is_new(directory, name)
            ]
            shown = [name for name in names if not name.startswith(".")]
            ours = _ours(Path(directory), shown)
            self.num_ours += len(ours)
            self.files += [Path(directory, name) for name in shown if name not in ours]

    def _is_new(self, directory: str, name: str) -> bool:
        folder = Path(directory, name)
        is_new = (place := place_of(folder)) not in self._seen
        self._seen.add(place)
        if folder.is_symlink():
            self.num_linked, self.num_again = self.num_linked + is_new, self.num_again + (not is_new)
        return is_new

    def _refuse(self, error: OSError) -> None:
        raise unreadable(error.filename or self._root, error)


def _ours(folder: Path, names: list[str]) -> set[str]:
    """Which files of a folder are parts of prepared data, of a checkpoint or of a run."""
    ours: set[str] = set()
    if MANIFEST in names:
        with suppress(UserError):
            ours |= {MANIFEST, META_FILE, *read_manifest(folder).files}
    if {CONFIG_FILE, "log.jsonl", "plan.json"} <= set(names):
        ours |= set(RUN_FILES)
    return ours.intersection(names)


def place_of(path: Path) -> tuple[int, int] | str:
    """What tells a file or folder from every other, however many links lead to it."""
    try:
        status = path.stat()
    except OSError:
        return str(path)
    return status.st_dev, status.st_ino
