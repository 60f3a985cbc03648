"""The child process of foreign chat templates, run by path: `python -I template_process.py`.

It answers lines of JSON, `{"template": ..., "values": ...}`, with `{"text": ...}` or `{"problem": ...}`. A template is
a program of whoever wrote it: it runs in Jinja's sandbox, with a second of processor time, 256 MB of memory and a
megabyte of output. Standard library and Jinja only.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
from contextlib import suppress
from typing import Any, NoReturn

from jinja2 import TemplateError, sandbox

CPU_SECONDS, MEMORY_BYTES, OUTPUT_BYTES = 1, 256 << 20, 1 << 20


def limit(kind: int, value: int) -> None:
    """Lower a limit of this process, where the system has it."""
    with suppress(ValueError, OSError):
        resource.setrlimit(kind, (value, resource.getrlimit(kind)[1]))


def raise_exception(message: object) -> NoReturn:
    """What templates call to refuse a conversation."""
    raise TemplateError(str(message))


def rendered(template: str, values: dict[str, Any]) -> dict[str, Any]:
    """What a template makes of its values, or what is wrong with it. It gets what transformers gives it."""
    environment = sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    try:
        parts, size = [], 0
        for part in environment.from_string(template).generate({**values, "raise_exception": raise_exception}):
            size += len(part.encode())
            if size > OUTPUT_BYTES:
                return {"problem": "it writes more than 1 MB"}
            parts.append(part)
        return {"text": "".join(parts)}
    except MemoryError:
        return {"problem": "it needs more than 256 MB of memory"}
    except Exception as error:  # of any kind: it is the template's
        return {"problem": f"{type(error).__name__}: {error}"[:300]}


def main() -> None:
    """Answer until standard input ends."""
    requests = os.fdopen(os.dup(0), "r", encoding="utf-8")
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 0)
    os.dup2(nothing, 1)
    os.dup2(nothing, 2)
    limit(resource.RLIMIT_CORE, 0)
    limit(resource.RLIMIT_AS, MEMORY_BYTES)
    for line in requests:
        signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)  # then the system ends this process, wherever it is
        request = json.loads(line)
        answer = json.dumps(rendered(request["template"], request["values"]))
        signal.setitimer(signal.ITIMER_PROF, 0)
        answers.write(answer + "\n")
        answers.flush()


if __name__ == "__main__":
    sys.setrecursionlimit(400)
    main()
