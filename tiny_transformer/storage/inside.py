"""Files of a directory that came from elsewhere: a link among them must not carry in what lies outside."""

from __future__ import annotations

import os
from pathlib import Path

from tiny_transformer.errors import ExitCode, UserError


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
