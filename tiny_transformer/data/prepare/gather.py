"""First pass of `prepare`: every document of a source once, with what is needed to split and to resume.

`Gathering` reads a source and leaves out repeated documents; in memory stays one number per document, in the set that
finds them. Where a tokenizer is trained on the text before any is encoded, a `Spool` keeps the documents on disk.
"""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple, Protocol

from tiny_transformer.data.prepare.sources import Source


class Gathered(NamedTuple):
    """A document.

    Attributes:
        text: its text.
        num_bytes: the length of its UTF-8.
        hash: a number below 2**64 that is uniform and depends on the text alone.
        nats: minus the natural logarithm of its probability; NaN where the source does not know it.
    """

    text: str
    num_bytes: int
    hash: int
    nats: float


class Documents(Protocol):
    """Documents in a fixed order, all different; `num_duplicates` is known when they have come to their end."""

    num_duplicates: int

    def __iter__(self) -> Iterator[Gathered]: ...


class Gathering:
    """The documents of a source in its order, the second and later of equal ones left out and counted.

    Where the source says for which split a document is, its hash is moved into that split's part of the range.
    """

    def __init__(self, source: Source, split: Split) -> None:
        self._source, self._split = source, split
        self.num_duplicates = 0

    def __iter__(self) -> Iterator[Gathered]:
        seen: set[int] = set()
        self.num_duplicates = 0
        for text, log_probability, is_validation in self._source.scored_documents():
            data = text.encode("utf-8")
            digest = hashlib.blake2b(data, digest_size=16).digest()
            identity = int.from_bytes(digest[8:], "little")
            if identity in seen:
                self.num_duplicates += 1
                continue
            seen.add(identity)
            nats = float("nan") if log_probability is None else -log_probability
            document_hash = self._split.moved(int.from_bytes(digest[:8], "little"), is_validation)
            yield Gathered(text, len(data), document_hash, nats)


class Split:
    """Which documents are for validation: those whose hash falls into the lowest `val_fraction` of the range.

    That depends on the document alone, so adding data moves none. When this would leave one side empty, the document
    with the lowest hash goes to validation, or the one with the highest to training.
    """

    def __init__(self, val_fraction: float) -> None:
        self.threshold = max(1, min(int(val_fraction * 2.0**64), 2**64 - 1))

    def moved(self, document_hash: int, is_validation: bool | None) -> int:
        """The hash of a document that is for that split; as it is where that is not said."""
        if is_validation is None:
            return document_hash
        if is_validation:
            return document_hash % self.threshold
        return self.threshold + document_hash % (2**64 - self.threshold)

    def is_validation(self, document_hash: int, *, lowest: int, highest: int) -> bool:
        """Of a corpus whose lowest and highest hashes are these."""
        if lowest >= self.threshold:
            return document_hash == lowest
        if highest < self.threshold:
            return document_hash != highest
        return document_hash < self.threshold


class Spool:
    """Documents on disk. `fill` writes the file whole or not at all; `whole` opens one that an earlier process left.

    The file: number of duplicates, bytes of text, lowest and highest hash, SHA-256 of all else; then for each document
    its size, hash and nats, and its UTF-8.
    """

    _FIGURES, _HASH_BYTES, _RECORD = struct.Struct("<QQQQ"), 32, struct.Struct("<QQd")

    def __init__(self, path: Path) -> None:
        self._path = path
        with path.open("rb") as file:
            figures = self._FIGURES.unpack(file.read(self._FIGURES.size))
        self.num_duplicates, self.num_bytes, self.lowest, self.highest = figures

    @classmethod
    def whole(cls, path: Path) -> Spool | None:
        """The spool at `path`, if there is one whose every byte is as it was written."""
        if not path.is_file():
            return None
        with path.open("rb") as file:
            figures, digest = file.read(cls._FIGURES.size), file.read(cls._HASH_BYTES)
            content = hashlib.sha256(figures)
            while block := file.read(2**20):
                content.update(block)
        return cls(path) if content.digest() == digest else None

    @classmethod
    def fill(cls, path: Path, documents: Documents, on_bytes: Callable[[int], None]) -> Spool:
        """Write all documents to `path`; `on_bytes` is told the size of each."""
        unfinished = path.with_name(f"{path.name}.part")
        total_bytes, lowest, highest = 0, 2**64 - 1, 0
        with unfinished.open("w+b") as file:
            file.write(bytes(cls._FIGURES.size + cls._HASH_BYTES))
            for text, num_bytes, document_hash, nats in documents:
                file.write(cls._RECORD.pack(num_bytes, document_hash, nats))
                file.write(text.encode("utf-8"))
                lowest, highest = min(lowest, document_hash), max(highest, document_hash)
                total_bytes += num_bytes
                on_bytes(num_bytes)
            figures = cls._FIGURES.pack(documents.num_duplicates, total_bytes, lowest, highest)
            content = hashlib.sha256(figures)
            file.seek(cls._FIGURES.size + cls._HASH_BYTES)
            while block := file.read(2**20):
                content.update(block)
            file.seek(0)
            file.write(figures + content.digest())
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
        return cls(path)

    def __iter__(self) -> Iterator[Gathered]:
        return self.chosen(lambda _: True)

    def chosen(self, keep: Callable[[int], bool]) -> Iterator[Gathered]:
        """The documents whose hash `keep` accepts."""
        with self._path.open("rb") as file:
            file.seek(self._FIGURES.size + self._HASH_BYTES)
            while record := file.read(self._RECORD.size):
                num_bytes, document_hash, nats = self._RECORD.unpack(record)
                if keep(document_hash):
                    yield Gathered(file.read(num_bytes).decode("utf-8"), num_bytes, document_hash, nats)
                else:
                    file.seek(num_bytes, os.SEEK_CUR)
