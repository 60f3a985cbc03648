"""Documents streamed from data sets on the Hugging Face hub, through the `datasets` package, and kept on disk.

A stream is not downloaded as a whole, and `datasets` keeps nothing of it. So the texts are written to a cache as they
pass by, in parts, each with the place in the stream where it ends: what has been read once is there without a network,
and whoever wants more goes on from there.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tiny_transformer.data.prepare.files import read_documents as read_file
from tiny_transformer.errors import ExitCode, UserError
from tiny_transformer.storage import RunLock, atomic_write
from tiny_transformer.storage.reading import at_home
from tiny_transformer.tokenizers.published import hub_is_reachable

PART_BYTES = 16 * 2**20  # of text in a part of the cache

_OFFLINE_REMEDY = "add --source stories (built in, no network needed) or --source PATH for text of yours"


@dataclass(frozen=True)
class HubSet:
    """A data set on the hub: where it is, which part of it, and which field holds the text.

    `intros_only` keeps of each text what stands before its first blank line.
    """

    repository: str
    config: str | None = None
    split: str = "train"
    text_field: str = "text"
    licence: str = "see the data set's page on the hub"
    intros_only: bool = False


_WIKIPEDIA_LICENCE = "CC BY-SA 3.0 and GFDL, by the authors of Wikipedia"
KNOWN_SETS = {
    "wikipedia": HubSet("wikimedia/wikipedia", "20231101.en", licence=_WIKIPEDIA_LICENCE),
    "wiki-intros": HubSet("wikimedia/wikipedia", "20231101.en", licence=_WIKIPEDIA_LICENCE, intros_only=True),
    "wiki-bookscorpus": HubSet("shahrukhx01/wikipedia-bookscorpus-en-preprocessed"),
    "tinystories": HubSet("roneneldan/TinyStories", licence="CDLA-Sharing-1.0, Ronen Eldan and Yuanzhi Li"),
}


class Cache:
    """What has been read of a data set: `part-00000.jsonl.gz` and so on, and `state.json`, which tells the parts that
    count.

    Attributes:
        directory: where they stand.
        num_parts, num_bytes: how much is there, in parts and in bytes of text.
        complete: whether that is all.
        position: where the stream goes on, as `datasets` tells it; None at its beginning.
    """

    def __init__(self, hub_set: HubSet) -> None:
        home = at_home(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
        name = hub_set.repository.strip("/").rsplit("/", 1)[-1]
        digest = hashlib.sha256(repr(hub_set).encode()).hexdigest()
        self.directory = home / "tiny-transformer" / "hub" / f"{name}-{digest[:12]}"
        self.refresh()

    def refresh(self) -> None:
        """Read how much is there."""
        file = self.directory / "state.json"
        state = json.loads(file.read_text()) if file.is_file() else {}
        self.num_parts, self.num_bytes = state.get("num_parts", 0), state.get("num_bytes", 0)
        self.complete, self.position = state.get("complete", False), state.get("position")

    def texts(self) -> Iterator[str]:
        """All that is there."""
        for number in range(self.num_parts):
            yield from read_file(self._part(number))

    def append(self, texts: list[str], *, position: Any, complete: bool) -> None:
        """Add a part, unless there are no texts, and note where the stream goes on."""
        if texts:
            lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
            atomic_write(self._part(self.num_parts), gzip.compress(lines.encode(), compresslevel=1, mtime=0))
        state = {
            "num_parts": self.num_parts + bool(texts),
            "num_bytes": self.num_bytes + sum(len(text.encode()) for text in texts),
            "complete": complete,
            "position": position,
        }
        atomic_write(self.directory / "state.json", json.dumps(state))
        self.refresh()

    def _part(self, number: int) -> Path:
        return self.directory / f"part-{number:05d}.jsonl.gz"


def require_hub(hub_set: HubSet, max_bytes: int | None) -> None:
    """Refuse early, in one line, when the package or the network is missing and the cache has not enough."""
    cache = Cache(hub_set)
    if cache.complete or (max_bytes is not None and cache.num_bytes >= max_bytes):
        return
    try:
        import datasets  # noqa: F401
    except ImportError:
        raise UserError(
            f"the source {hub_set.repository} is read from the hub, which needs the package datasets",
            remedy=f"pip install datasets; or {_OFFLINE_REMEDY}",
        ) from None
    if not hub_is_reachable():
        raise _unreachable(hub_set, "no network")


def read_documents(hub_set: HubSet) -> Iterator[str]:
    """The texts of a data set, in its order: first what has been read before, then the stream from where that ends."""
    cache = Cache(hub_set)
    yield from cache.texts()
    if not cache.complete:
        with RunLock(cache.directory):
            yield from _stream(hub_set, cache)


def _stream(hub_set: HubSet, cache: Cache) -> Iterator[str]:
    """The texts behind those in the cache, written to it as they pass by."""
    import datasets

    held: list[str] = []
    num_bytes = 0
    try:
        rows = datasets.load_dataset(hub_set.repository, hub_set.config, split=hub_set.split, streaming=True)
        if cache.position is not None:
            rows.load_state_dict(cache.position)
        for row in rows:
            text = _text_of(row, hub_set).strip("\r\n")
            if not text.strip():
                continue
            held.append(text)
            num_bytes += len(text)
            try:
                yield text
            except GeneratorExit:  # the reader has enough
                cache.append(held, position=rows.state_dict(), complete=False)
                raise
            if num_bytes >= PART_BYTES:
                cache.append(held, position=rows.state_dict(), complete=False)
                held, num_bytes = [], 0
        cache.append(held, position=None, complete=True)
    except UserError:
        raise
    except Exception as error:  # datasets and its file systems raise a dozen kinds for a hub that fails or refuses
        reason = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        raise _unreachable(hub_set, reason) from None


def _text_of(row: dict[str, Any], hub_set: HubSet) -> str:
    text = row.get(hub_set.text_field)
    if not isinstance(text, str):
        names = ", ".join(name for name, value in row.items() if isinstance(value, str)) or "none"
        raise UserError(
            f"the rows of {hub_set.repository} have no text in the field {hub_set.text_field!r}",
            remedy=f"choose one with --text_field; fields that hold text: {names}",
            exit_code=ExitCode.BAD_DATA,
        )
    return text.split("\n\n", 1)[0] if hub_set.intros_only else text


def _unreachable(hub_set: HubSet, reason: str) -> UserError:
    cached = Cache(hub_set).num_bytes
    return UserError(
        f"{hub_set.repository} is read from the Hugging Face hub, which cannot be reached ({reason})",
        remedy=f"--max_bytes {cached} uses what was read before; or {_OFFLINE_REMEDY}" if cached else _OFFLINE_REMEDY,
        exit_code=ExitCode.IO,
    )
