"""The child process of a verifier, run by path: `python -P verifier_process.py FILE.py FUNCTION`.

It loads a file of the user's and answers lines of JSON, `[prompt, text, answer]`, with lines of JSON: `{"score": ...}`
or `{"problem": ...}`. Standard library only. What the function prints goes to standard error. It ends when the program
that asks has ended, whatever the function is doing then.
"""

from __future__ import annotations

import importlib.util
import inspect
import json
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def load_function(path: str, name: str) -> Callable[..., Any]:
    """The function of that name in a Python file, whose directory its own imports may use."""
    sys.path.insert(0, str(Path(path).resolve().parent))
    spec = importlib.util.spec_from_file_location("verifier", path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is not Python")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return getattr(module, name)


def num_taken(function: Callable[..., Any]) -> int:
    """How many of prompt, text and answer a function takes: two, or three where it has room for them."""
    try:
        kinds = [parameter.kind for parameter in inspect.signature(function).parameters.values()]
    except (TypeError, ValueError):  # of one that is not written in Python
        return 2
    positional = sum(kind in (kind.POSITIONAL_ONLY, kind.POSITIONAL_OR_KEYWORD) for kind in kinds)
    return 3 if positional > 2 or any(kind is kind.VAR_POSITIONAL for kind in kinds) else 2


def answered(function: Callable[..., Any], request: list[str | None]) -> dict[str, Any]:
    """What the function says of one text."""
    try:
        score = function(*request[: num_taken(function)])
        if not isinstance(score, bool | int | float) or not math.isfinite(score):
            return {"problem": f"it returned {score!r:.80}, which is no finite number and not true or false"}
        return {"score": float(score)}
    except Exception as error:
        return {"problem": f"{type(error).__name__}: {error}"[:300]}


def end_with(parent: int) -> None:
    """End this process, and what it has started, soon after its parent has ended."""
    while os.getppid() == parent:
        time.sleep(1)
    os.killpg(0, signal.SIGKILL)


def main() -> None:
    """Answer until standard input ends."""
    threading.Thread(target=end_with, args=(os.getppid(),), daemon=True).start()
    requests = os.fdopen(os.dup(0), "r", encoding="utf-8")
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(2, 1)
    try:
        function = load_function(sys.argv[1], sys.argv[2])
        first: dict[str, Any] = {"score": 0.0} if callable(function) else {"problem": f"{sys.argv[2]} is no function"}
    except BaseException as error:
        first = {"problem": f"{type(error).__name__}: {error}"[:300]}
    answers.write(json.dumps(first) + "\n")
    answers.flush()
    for line in requests if "score" in first else ():
        answers.write(json.dumps(answered(function, json.loads(line))) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
