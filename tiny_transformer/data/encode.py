"""Second pass of `prepare`: documents to ids, on several threads, and ids to the files of the two splits.

Encoders work outside Python's lock, so threads suffice. The calling thread reads ahead by a few chunks, gives them out,
and writes the results in order: what comes out does not depend on the number of threads. Every so often the state is
noted beside the files; a run that finds such a note goes on from there, to the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import math
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tiny_transformer.data.gather import Documents, Gathered, Split
from tiny_transformer.data.meta import BLOCK_BYTES, SplitMeta
from tiny_transformer.storage import atomic_write
from tiny_transformer.tokenizers import DocumentEncoder, EncodedDocuments, Tokenizer

CHUNK_BYTES = 2**19  # text handed to an encoder at once: far more than the cost of handing it over
SAVE_BYTES = 64 * 2**20  # text between two notes of how far we are
PROGRESS_FILE = "progress.json"


@dataclass
class Counts:
    """What has been written to a split: see `SplitMeta`; `nats` is NaN where the source knows no probabilities."""

    num_tokens: int = 0
    num_documents: int = 0
    num_bytes: int = 0
    longest_document: int = 0
    nats: float = 0.0


class _CannotResumeError(Exception):
    """The files or the documents are not those that a note of progress tells of."""


class SplitWriter:
    """Writes `<name>.bin` and `<name>.docs` and keeps the figures that meta.json tells about them.

    Args:
        directory: where the files go.
        name: `train` or `val`.
        dtype: of the tokens.
        vocab_size: every id is below it.
        saved: what `progress` gave in an earlier process, to go on from there; by default the files begin anew.

    Raises:
        _CannotResumeError: the files are not what `saved` says.
    """

    def __init__(
        self, directory: Path, name: str, dtype: str, vocab_size: int, saved: dict[str, Any] | None = None
    ) -> None:
        self._dtype = np.dtype(dtype).newbyteorder("<")
        self._hash, self._docs_hash = hashlib.sha256(), hashlib.sha256()
        self._block_crc32: list[int] = []
        self._crc32 = self._block_filled = 0  # of the block being filled
        self.used: np.ndarray = np.zeros(vocab_size, dtype=bool)
        self.counts = Counts(**saved["counts"]) if saved else Counts()
        try:
            self._file = (directory / f"{name}.bin").open("r+b" if saved else "w+b")
            self._docs = (directory / f"{name}.docs").open("r+b" if saved else "w+b")
        except FileNotFoundError:
            raise _CannotResumeError from None
        if saved:
            self._reread()
            if self.progress() != saved:
                raise _CannotResumeError

    def write(self, ids: np.ndarray, lengths: np.ndarray, *, num_bytes: int, nats: Iterable[float]) -> None:
        """Append documents: their ids (num_tokens,), each with its end token in place, and their lengths (N,)."""
        counts = self.counts
        self.used[ids] = True  # an id outside the vocabulary ends here, before it could wrap round in a narrower type
        starts = (counts.num_tokens + np.cumsum(lengths) - lengths).astype("<u8").tobytes()
        self._docs.write(starts)
        self._docs_hash.update(starts)
        data = ids.astype(self._dtype).tobytes()
        self._file.write(data)
        self._note(memoryview(data))
        counts.num_tokens += len(ids)
        counts.num_documents += len(lengths)
        counts.num_bytes += num_bytes
        counts.longest_document = max(counts.longest_document, int(lengths.max()))
        for value in nats:  # one by one: the sum must not depend on how documents came in chunks
            counts.nats += value

    def progress(self) -> dict[str, Any]:
        """What has been written so far, as plain JSON."""
        self._file.flush()
        self._docs.flush()
        hashes = {"sha256": self._hash.hexdigest(), "docs_sha256": self._docs_hash.hexdigest()}
        return {"counts": asdict(self.counts), **hashes}

    def finish(self) -> SplitMeta:
        """The figures of the whole split; nothing can be written after this."""
        counts = self.counts
        if self._block_filled:
            self._block_crc32.append(self._crc32)
        floor = None
        if counts.num_documents and not math.isnan(counts.nats):
            floor = {
                "nats_per_story": counts.nats / counts.num_documents,
                "nats_per_token": counts.nats / counts.num_tokens,
                "bits_per_byte": counts.nats / math.log(2) / counts.num_bytes,
            }
        hashes = self.progress()
        return SplitMeta(
            num_tokens=counts.num_tokens,
            num_documents=counts.num_documents,
            num_bytes=counts.num_bytes,
            longest_document=counts.longest_document,
            sha256=hashes["sha256"],
            docs_sha256=hashes["docs_sha256"],
            block_crc32=self._block_crc32,
            floor=floor,
        )

    def close(self) -> None:
        """Give the files back."""
        self._file.close()
        self._docs.close()

    def _reread(self) -> None:
        """Take up the state from the files: hashes, checksums and ids used; what lies behind is cut off."""
        end = self.counts.num_tokens * self._dtype.itemsize
        while block := self._file.read(min(BLOCK_BYTES, end - self._file.tell())):
            self._note(memoryview(block))
            ids: np.ndarray = np.frombuffer(block, dtype=self._dtype)
            self.used[ids[ids < self.used.size]] = True  # a damaged file has others; its hash will tell
        self._file.truncate(end)
        starts = self._docs.read(8 * self.counts.num_documents)
        self._docs_hash.update(starts)
        self._docs.truncate(len(starts))

    def _note(self, data: memoryview) -> None:
        self._hash.update(data)
        while data:
            part = data[: BLOCK_BYTES - self._block_filled]
            self._crc32 = zlib.crc32(part, self._crc32)
            self._block_filled += len(part)
            if self._block_filled == BLOCK_BYTES:
                self._block_crc32.append(self._crc32)
                self._crc32 = self._block_filled = 0
            data = data[len(part) :]


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
        options = ("uint16" if tokenizer.vocab_size <= 2**16 else "uint32", tokenizer.vocab_size)
        self.train = SplitWriter(directory, "train", *options, saved.get("train"))
        self.val = SplitWriter(directory, "val", *options, saved.get("val"))

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
            atomic_write(self._directory / PROGRESS_FILE, json.dumps(state))

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
    note = directory / PROGRESS_FILE
    try:
        saved = json.loads(note.read_text()) if note.is_file() else {}
        return _encode_splits(documents, tokenizer, directory, split, workers, on_bytes, saved)
    except _CannotResumeError:
        return _encode_splits(documents, tokenizer, directory, split, workers, on_bytes, {})


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
            raise _CannotResumeError
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
