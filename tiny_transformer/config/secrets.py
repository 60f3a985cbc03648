"""What stays with the user: values of options and keys that are secrets by their name, and where directories are."""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path

HIDDEN = "***"
WHERE_THEY_GO = (
    "secrets stay off the command line and out of configs: the libraries find them where `hf auth login` and "
    "`wandb login` put them, or in the environment (HF_TOKEN, WANDB_API_KEY)"
)
# At the end of a name: `hf_token`, `WANDB_API_KEY`; `max_tokens` and `num_key_value_heads` are none.
_SECRET = re.compile(r"(?:^|[-_.])(?:token|secret|password|passwd|pwd|api_?key|key|credentials?|auth)$", re.IGNORECASE)


def is_secret(name: str) -> bool:
    """Whether a value of this name should stay with the user: `--hf_token`, `api_key`."""
    return _SECRET.search(name.strip()) is not None


def without_secrets(command: list[str]) -> list[str]:
    """A command line as it may be shown to others: without the values of options that look like secrets, and without
    the names of directories that are nobody else's business.

    An absolute path below the current directory becomes relative, one below the home directory begins with `~`, of any
    other the last two parts are kept.
    """
    shown, hides_next = [], False
    for word in command:
        option, equals, value = word.partition("=")
        if hides_next and not word.startswith("--"):
            shown.append(HIDDEN)
        elif equals and is_secret(option):
            shown.append(f"{option}={HIDDEN}")
        else:
            shown.append(f"{option}={shown_path(value)}" if equals else shown_path(word))
        hides_next = word.startswith("-") and not equals and is_secret(option)
    return shown


def shown_path(text: str) -> str:
    """A path as it may be shown to others, see `without_secrets`; any other text as it is."""
    path = Path(text)
    if not path.is_absolute():
        return text
    with suppress(OSError, RuntimeError):  # no current directory, no home
        if path.is_relative_to(Path.cwd()):
            return str(path.relative_to(Path.cwd()))
        if path.is_relative_to(Path.home()):
            return str("~" / path.relative_to(Path.home()))
    return last_parts(text)


def last_parts(text: str) -> str:
    """The last two parts of an absolute path, which are the same from wherever one looks; any other text as it is."""
    path = Path(text)
    return str(Path("...", *path.parts[-2:])) if path.is_absolute() else text
