"""`requirements.txt`: what `tiny-transformer[all]` needs, and what that needs in turn, pinned by constraints.txt.

`python tests/requirements.py` writes it; a test compares.
"""

from __future__ import annotations

import re
from importlib.metadata import requires
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parent.parent
HEAD = """\
# pip install -r requirements.txt: the package, in place, and all that `tiny-transformer[all]` needs, each pinned.
# Written by `python tests/requirements.py` from pyproject.toml and constraints.txt.
"""


def name_of(text: str) -> str:
    """One spelling for a package's name."""
    return re.sub(r"[-_.]+", "-", text).lower()


def needed() -> set[str]:
    """Names of all packages that `tiny-transformer[all]` brings into an environment like this one."""
    found: set[str] = set()
    todo = [("tiny-transformer", frozenset({"all"}))]
    seen = set(todo)
    while todo:
        name, extras = todo.pop()
        found.add(name)
        for text in requires(name) or []:
            one = Requirement(text)
            if one.marker and not any(one.marker.evaluate({"extra": extra}) for extra in (*extras, "")):
                continue
            if (key := (name_of(one.name), frozenset(one.extras))) not in seen:
                seen.add(key)
                todo.append(key)
    return found - {"tiny-transformer"}


def requirements() -> str:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = {name_of(line.split("==")[0]): line for line in lines if "==" in line}
    return HEAD + "-e .\n" + "".join(f"{pinned[name]}\n" for name in sorted(needed()))


if __name__ == "__main__":
    (ROOT / "requirements.txt").write_text(requirements(), encoding="utf-8")
