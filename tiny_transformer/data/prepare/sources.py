"""Where text comes from: `open_source` turns a name or a path into a stream of documents.

Names are the built-in story corpus, four known data sets on the Hugging Face hub, and any other hub id. A path is a
file, a folder or a glob pattern; `files` says how each kind of file becomes documents.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from tiny_transformer.config.schema import DataConfig
from tiny_transformer.data.prepare import files, hub
from tiny_transformer.data.prepare.find import find_files, looks_like_hub_id
from tiny_transformer.data.prepare.rows import TEXT_FIELD
from tiny_transformer.errors import UserError
from tiny_transformer.storage.reading import at_home

STORIES = "stories"
STORIES_DEFAULT_BYTES = 16_000_000
UNKNOWN_LICENCE = "not stated: ask the owner of these files"


class Document(NamedTuple):
    """A text, the natural logarithm of its probability where the source knows it, and whether it is for validation
    where that is not left to its hash."""

    text: str
    log_probability: float | None = None
    is_validation: bool | None = None


@dataclass(frozen=True)
class Source:
    """A stream of documents that can be started again.

    Attributes:
        name: what the user asked for.
        licence: under which terms the text may be used.
        fingerprint: changes when the text may have changed; what it is made of depends on the source.
        max_bytes: the stream ends with the document that reaches this many bytes of UTF-8; None is no limit.
        total_bytes: how much text there will be, for a progress bar; None when not known.
        start: begins the stream, without limit.
        note: a sentence for the user: which files are read, and which are not.
    """

    name: str
    licence: str
    fingerprint: str
    max_bytes: int | None
    total_bytes: int | None
    start: Callable[[], Iterator[Document]]
    note: str = ""

    def documents(self) -> Iterator[str]:
        """The texts, up to `max_bytes`.

        Raises:
            UserError: a file that is not what its name says, naming the place in it.
        """
        return (document.text for document in self.scored_documents())

    def scored_documents(self) -> Iterator[Document]:
        """The texts with their log-probabilities, up to `max_bytes`."""
        num_bytes = 0
        for document in self.start():
            yield document
            num_bytes += len(document.text.encode("utf-8", errors="replace"))
            if self.max_bytes is not None and num_bytes >= self.max_bytes:
                return


def source_of(data: DataConfig) -> Source:
    """The source that a config asks for; see `open_source`."""
    settings = data.model_dump(include={"text_field", "max_bytes", "val_fraction"})
    return open_source(data.source, **settings)


def open_source(
    name_or_path: str | Path,
    *,
    text_field: str = "text",
    max_bytes: int | None = None,
    val_fraction: float | None = None,
    seed: int = 0,
) -> Source:
    """The source of that name or path; nothing is read yet, but a path is looked up.

    Args:
        name_or_path: `stories`, `wiki-intros`, `wikipedia`, `wiki-bookscorpus`, `tinystories`, a hub id `org/name`, or
            a file, folder or glob; `files` says which kinds are read.
        text_field: the field of a row that holds the text.
        max_bytes: stop after this many bytes of text; stories stop after 16 MB unless told, others when they end.
        val_fraction: share for validation of a text that is a single document; by default from its size.
        seed: which stories; the other sources have none.

    Raises:
        UserError: no such name or path, a folder without text, or a hub that cannot be reached.
    """
    name = str(name_or_path)
    if max_bytes is not None and max_bytes < 1:
        raise UserError(f"max_bytes {max_bytes} is not a positive number of bytes", remedy="leave it out for no limit")
    if not name.strip():
        raise UserError("--source is empty", remedy="a name such as stories, or a file, folder or glob")
    if name == STORIES:
        _refuse_field(name, text_field)
        return _stories(max_bytes or STORIES_DEFAULT_BYTES, seed)
    if name in hub.KNOWN_SETS:
        return _from_hub(name, replace(hub.KNOWN_SETS[name], text_field=text_field), max_bytes)
    if not at_home(name).exists() and looks_like_hub_id(name):
        return _from_hub(name, hub.HubSet(name, text_field=text_field), max_bytes)
    _refuse_a_slip(name)
    found, note = find_files(name)
    for path in found:
        files.check_readable(path)
    if all(map(files.is_running_text, found)):
        _refuse_field(name, text_field)
    num_bytes = sum(path.stat().st_size for path in found)

    def start() -> Iterator[Document]:
        if len(found) == 1 and files.is_running_text(found[0]):
            stretches = files.read_split(found[0], val_fraction, max_bytes)
            return (Document(text, is_validation=is_validation) for text, is_validation in stretches)
        return (Document(text) for path in found for text in files.read_documents(path, text_field))

    return Source(
        name=name,
        licence=UNKNOWN_LICENCE,
        fingerprint=files.identity_of(found, at_home(name)),
        max_bytes=max_bytes,
        total_bytes=min(num_bytes, max_bytes or num_bytes) if all(map(files.is_plain_text, found)) else max_bytes,
        start=start,
        note=note,
    )


def _refuse_a_slip(name: str) -> None:
    """Refuse what is no path and nearly one of the names."""
    near = difflib.get_close_matches(name.strip("/").lower(), (STORIES, *hub.KNOWN_SETS), n=1, cutoff=0.7)
    if near and not any(sign in name for sign in "*?[{") and not os.path.lexists(at_home(name)):
        raise UserError(f"no such file, folder or data set: {name}", remedy=f"did you mean --source {near[0]}?")


def _refuse_field(name: str, text_field: str) -> None:
    """Refuse a field that was asked for where there are no fields."""
    if text_field != TEXT_FIELD:
        raise UserError(f"{name} has no rows, so no field {text_field!r}", remedy="leave text_field out")


def _stories(max_bytes: int, seed: int) -> Source:
    from tiny_transformer.data import stories

    return Source(
        name=STORIES,
        licence=stories.LICENCE,
        fingerprint=f"grammar {stories.GRAMMAR_VERSION}, seed {seed}",
        max_bytes=max_bytes,
        total_bytes=max_bytes,
        start=lambda: (Document(story.text, story.log_probability) for story in stories.documents(seed)),
    )


def _from_hub(name: str, hub_set: hub.HubSet, max_bytes: int | None) -> Source:
    hub.require_hub(hub_set, max_bytes)
    return Source(
        name=name,
        licence=hub_set.licence,
        fingerprint=repr(hub_set),
        max_bytes=max_bytes,
        total_bytes=max_bytes,
        start=lambda: (Document(text) for text in hub.read_documents(hub_set)),
    )
