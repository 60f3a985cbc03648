"""Second pass of `prepare`: documents to ids, on several threads, and ids to the files of the two splits.

Encoders work outside Python's lock, so threads suffice. The calling thread reads ahead by a few chunks, gives them out,
and writes the results in order: what comes out does not depend on the number of threads. Every so often the state is
noted beside the files; a run that finds such a note goes on from there, to the same bytes.
"""

from __future__ import annotations

import hashlib
import json
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tiny_transformer.data.meta import SplitMeta
from tiny_transformer.data.prepare.gather import Documents, Gathered, Split
from tiny_transformer.data.prepare.split_writer import CannotResumeError, SplitWriter
from tiny_transformer.storage import atomic_write
from tiny_transformer.tokenizers import DocumentEncoder, EncodedDocuments, Tokenizer

CHUNK_BYTES = 2**19  # text handed to an encoder at once: far more than the cost of handing it over
SAVE_BYTES = 64 * 2**20  # text between two notes of how far we are
PROGRESS_FILE = "progress.json"


class Chunk(NamedTuple):
    """Some documents in a row, encoded."""

    documents: list[Gathered]
    encoded: EncodedDocuments


class Splitter:
    """Deals documents out to the files of the two splits.

    As long as one split has none, the document that it would get if none of its own came (see `Split`) is held back.

    Args:
        directory: where the files go.
        split: which documents are for validation.
        tokenizer: the one the documents are encoded with.
        saved: what an earlier process noted with `save`, to go on from there.
    """

    def __init__(self, directory: Path, split: Split, tokenizer: Tokenizer, saved: dict[str, Any]) -> None:
        self._directory, self._split = directory, split
        self.num_documents = self.hash_sum = 0
        self._held: Chunk | None = None  # of one document
        self.train = SplitWriter(directory, "train", tokenizer.vocab_size, saved.get("train"))
        self.val = SplitWriter(directory, "val", tokenizer.vocab_size, saved.get("val"))

    def add(self, chunk: Chunk) -> None:
        """Write a chunk, or all of it but one document."""
        self.num_documents += len(chunk.documents)
        self.hash_sum = _hash_sum(chunk.documents, self.hash_sum)
        if self.train.counts.num_documents and self.val.counts.num_documents:
            self._write(chunk)
            return
        stops = np.cumsum(chunk.encoded.lengths).tolist()
        for document, stop, length in zip(chunk.documents, stops, chunk.encoded.lengths.tolist(), strict=True):
            ids = chunk.encoded.ids[stop - length : stop]
            self._add_first(Chunk([document], EncodedDocuments(ids, np.array([length]))))

    def finish(self) -> tuple[SplitMeta, SplitMeta]:
        """The figures of training and validation."""
        if self._held is not None:  # all documents fell to one side
            self._write(self._held, to_other_side=True)
        return self.train.finish(), self.val.finish()

    def save(self) -> None:
        """Note how far we are, once no document is held back."""
        if self._held is None and self.num_documents:
            splits = {"train": self.train.progress(), "val": self.val.progress()}
            state = {"num_documents": self.num_documents, "hash_sum": self.hash_sum, **splits}
            atomic_write(self._directory / PROGRESS_FILE, json.dumps({"state": state, "sha256": _digest(state)}))

    def close(self) -> None:
        """Give the files back."""
        self.train.close()
        self.val.close()

    def _add_first(self, chunk: Chunk) -> None:
        """Add one of the first documents: write it, or hold it back and write the one held until now."""
        new, held = chunk, self._held
        if held is not None and self._in_validation(new) != self._in_validation(held):
            self._write(held)
            self._held = held = None
        if held is None and (self.train.counts.num_documents or self.val.counts.num_documents):
            self._write(new)
            return
        if held is not None:
            first, second = sorted((new, held), key=lambda c: c.documents[0].hash, reverse=self._in_validation(new))
            self._write(second)
            new = first
        self._held = new

    def _in_validation(self, chunk: Chunk) -> bool:
        return chunk.documents[0].hash < self._split.threshold

    def _write(self, chunk: Chunk, *, to_other_side: bool = False) -> None:
        documents, (ids, lengths) = chunk
        for writer, wanted in ((self.train, to_other_side), (self.val, not to_other_side)):
            chosen = [(document.hash < self._split.threshold) == wanted for document in documents]
            if any(chosen):
                whole = all(chosen)
                here = [document for document, is_ours in zip(documents, chosen, strict=True) if is_ours]
                writer.write(
                    ids if whole else ids[np.repeat(chosen, lengths)],
                    lengths if whole else lengths[chosen],
                    num_bytes=sum(document.num_bytes for document in here),
                    nats=[document.nats for document in here],
                )


def encode_splits(
    documents: Documents,
    tokenizer: Tokenizer,
    directory: Path,
    *,
    split: Split,
    workers: int,
    on_bytes: Callable[[int], None],
) -> tuple[SplitMeta, SplitMeta, int]:
    """Encode every document into `train.bin` or `val.bin` in `directory`, or go on where a killed process was.

    Args:
        documents: the same in the same order whenever the directory is the same.
        tokenizer: a document becomes its begin token (if the tokenizer has one), its ids and its end token.
        directory: where the files go, and the note of how far they are.
        split: which documents go to val.bin.
        workers: how many threads encode.
        on_bytes: told how much text is done, piece by piece.

    Returns:
        The figures of training and validation, and how many different ids occur.
    """
    try:
        saved = _saved(directory / PROGRESS_FILE)
        return _encode_splits(documents, tokenizer, directory, split, workers, on_bytes, saved)
    except CannotResumeError:
        return _encode_splits(documents, tokenizer, directory, split, workers, on_bytes, {})


def _saved(note: Path) -> dict[str, Any]:
    """What an earlier process noted; nothing where there is no note, or one that is not as it was written."""
    try:
        content = json.loads(note.read_bytes())
        return content["state"] if content["sha256"] == _digest(content["state"]) else {}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return {}


def _digest(state: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()


def _encode_splits(
    documents: Documents,
    tokenizer: Tokenizer,
    directory: Path,
    split: Split,
    workers: int,
    on_bytes: Callable[[int], None],
    saved: dict[str, Any],
) -> tuple[SplitMeta, SplitMeta, int]:
    with closing(Splitter(directory, split, tokenizer, saved)) as splits:
        stream = iter(documents)
        for document in islice(stream, saved.get("num_documents", 0)):
            splits.num_documents += 1
            splits.hash_sum = _hash_sum([document], splits.hash_sum)
            on_bytes(document.num_bytes)
        if saved and splits.hash_sum != saved["hash_sum"]:
            raise CannotResumeError
        num_bytes = 0  # since the last note
        for chunk in _encoded(_chunks(stream), tokenizer.document_encoder(), workers):
            splits.add(chunk)
            size = sum(document.num_bytes for document in chunk.documents)
            on_bytes(size)
            num_bytes += size
            if num_bytes >= SAVE_BYTES:
                splits.save()
                num_bytes = 0
        splits.save()
        train, val = splits.finish()
        return train, val, int(np.count_nonzero(splits.train.used | splits.val.used))


def _hash_sum(documents: list[Gathered], start: int) -> int:
    return (start + sum(document.hash for document in documents)) % 2**64


def _chunks(documents: Iterator[Gathered]) -> Iterator[list[Gathered]]:
    chunk, num_bytes = [], 0
    for document in documents:
        chunk.append(document)
        num_bytes += document.num_bytes
        if num_bytes >= CHUNK_BYTES:
            yield chunk
            chunk, num_bytes = [], 0
    if chunk:
        yield chunk


def _encoded(chunks: Iterator[list[Gathered]], encode: DocumentEncoder, workers: int) -> Iterator[Chunk]:
    """The chunks in their order, encoded by several threads, which stay a few chunks ahead."""
    with ThreadPoolExecutor(workers) as pool:
        running: deque[tuple[list[Gathered], Future[EncodedDocuments]]] = deque()
        for documents in chunks:
            running.append((documents, pool.submit(encode, [document.text for document in documents])))
            if len(running) > 2 * workers:
                documents, future = running.popleft()
                yield Chunk(documents, future.result())
        for documents, future in running:
            yield Chunk(documents, future.result())
