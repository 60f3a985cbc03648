"""What an attack is, and the ways to spoil a good directory that several kinds of files share."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Attack:
    """One hostile file.

    Attributes:
        target: what is opened: `model`, `tokenizer`, `generation`, `llama2c`, `gguf`, `import`, `directory` (as a
            whole, by `import`), `manifest` or `data`.
        spoil: gets the good directory and spoils it.
        words: each must be in the message.
    """

    target: str
    spoil: Callable[[Path], object]
    words: tuple[str, ...]


def write(name: str, data: bytes | str) -> Callable[[Path], object]:
    """Replace one file."""
    return lambda d: (d / name).write_bytes(data.encode() if isinstance(data, str) else data)


def change(name: str, **values: Any) -> Callable[[Path], object]:
    """Change keys of one JSON file, `a__b` for a key inside another; None stays null."""

    def spoil(directory: Path) -> None:
        content = json.loads((directory / name).read_text())
        for path, value in values.items():
            inner = content
            *parents, last = path.split("__")
            for key in parents:
                inner = inner[int(key) if isinstance(inner, list) else key]
            inner[int(last) if isinstance(inner, list) else last] = value
        (directory / name).write_text(json.dumps(content))

    return spoil


def replaced_by(name: str, make: Callable[[Path], object]) -> Callable[[Path], object]:
    """Something else than a regular file of this name."""

    def spoil(directory: Path) -> None:
        (directory / name).unlink()
        make(directory / name)

    return spoil
