"""Files that may be anything: opened without waiting, and read within a bound.

A name in a run or a model directory can turn out to be a pipe, a device or a sparse file of twenty gigabytes. Opening a
pipe waits for a writer that never comes; reading a device never ends. And a link among files that came from elsewhere
must not carry in what lies outside.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import BinaryIO

from tiny_transformer.errors import ExitCode, UserError

MAX_SMALL_BYTES = 16 << 20  # far above any config, state, plan, manifest or run_info.json
MAX_LOG_BYTES = 1 << 30  # a million logged steps of a deep model


def open_regular(path: Path | str, max_bytes: int | None = None) -> BinaryIO:
    """Opens a regular file for reading, or a link to one; never waits.

    Args:
        path: the file.
        max_bytes: the largest size that is accepted; None accepts any.

    Raises:
        OSError: there is no such file, or the system refuses.
        UserError: BAD_DATA, it is no regular file or larger than `max_bytes`.
    """
    if not stat.S_ISREG(os.stat(path).st_mode):  # noqa: PTH116 - opening a device can have effects of its own
        raise _unusable(path, "is not a regular file")
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise _unusable(path, "is not a regular file")
        if max_bytes is not None and status.st_size > max_bytes:
            raise _unusable(path, f"has {status.st_size:,} bytes; at most {max_bytes:,} bytes are read")
        return os.fdopen(fd, "rb")
    except BaseException:
        os.close(fd)
        raise


def read_regular(path: Path | str, max_bytes: int = MAX_SMALL_BYTES) -> bytes:
    """All bytes of a small file. Errors as in `open_regular`."""
    with open_regular(path, max_bytes) as file:
        raw = file.read(max_bytes + 1)
    if len(raw) > max_bytes:  # it grew meanwhile
        raise _unusable(path, f"has more than {max_bytes:,} bytes")
    return raw


def at_home(path: Path | str) -> Path:
    """The path with a leading `~` as a home directory, as a shell has it.

    Raises:
        UserError: there is no such user, and no file of that very name: what is written would be looked for elsewhere;
            or a NUL character, which no path can hold.
    """
    if "\0" in str(path):
        raise UserError(f"a path cannot hold a NUL character: {path}", where="path", remedy="write it without")
    home = Path(os.path.expanduser(path))  # noqa: PTH111 - that of Path raises where there is no such user
    first = home.parts[0] if home.parts else ""
    if first.startswith("~") and not os.path.lexists(first):
        whose = f"no user {first[1:]!r}" if first != "~" else "no home directory"
        raise UserError(
            f"there is {whose} here, so {path} leads nowhere",
            where="path",
            remedy=f"write it out; a name that begins so is meant as ./{path}",
        )
    return home


def check_inside(path: Path) -> None:
    """Refuse a file of a model directory that is a link to somewhere else.

    Allowed are links to files inside the directory, and those of the Hugging Face hub's cache, whose
    `snapshots/REVISION/` holds links into the `blobs` folder beside `snapshots`. What does not exist is not judged.

    Raises:
        UserError: the link leads outside; nothing has been opened.
    """
    if not path.is_symlink():
        return
    directory, real = path.parent.resolve(), Path(os.path.realpath(path))  # a link to itself is no error to this one
    is_hub_file = directory.parent.name == "snapshots" and real.parent == directory.parent.parent / "blobs"
    if not real.is_relative_to(directory) and not is_hub_file:
        raise UserError(
            f"{path.name} is a link that leads outside its directory, and is not followed",
            where=str(path),
            remedy="put the file itself there, if it is meant",
            exit_code=ExitCode.BAD_DATA,
        )


def _unusable(path: Path | str, what: str) -> UserError:
    return UserError(
        f"{Path(path).name} {what}",
        where=str(path),
        remedy="put a regular file of that name there, or remove it",
        exit_code=ExitCode.BAD_DATA,
    )
