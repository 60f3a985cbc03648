"""Writing one split: `<name>.bin`, `<name>.docs` and the figures about them, in one process or continued in another."""

from __future__ import annotations

import hashlib
import math
import zlib
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tiny_transformer.data.meta import BLOCK_BYTES, SplitMeta, token_dtype


@dataclass
class Counts:
    """What has been written to a split: see `SplitMeta`; `nats` is NaN where the source knows no probabilities."""

    num_tokens: int = 0
    num_documents: int = 0
    num_bytes: int = 0
    longest_document: int = 0
    nats: float = 0.0


class CannotResumeError(Exception):
    """The files or the documents are not those that a note of progress tells of."""


class SplitWriter:
    """Writes `<name>.bin` and `<name>.docs` and keeps the figures that meta.json tells about them.

    Args:
        directory: where the files go.
        name: `train` or `val`.
        vocab_size: every id is below it.
        saved: what `progress` gave in an earlier process, to go on from there; by default the files begin anew.

    Raises:
        CannotResumeError: the files are not what `saved` says.
    """

    def __init__(self, directory: Path, name: str, vocab_size: int, saved: dict[str, Any] | None = None) -> None:
        self._dtype = np.dtype(token_dtype(vocab_size)).newbyteorder("<")
        self._hash, self._docs_hash = hashlib.sha256(), hashlib.sha256()
        self._block_crc32: list[int] = []
        self._crc32 = self._block_filled = 0  # of the block being filled
        self.used: np.ndarray = np.zeros(vocab_size, dtype=bool)
        self.counts = Counts(**saved["counts"]) if saved else Counts()
        try:
            self._file = (directory / f"{name}.bin").open("r+b" if saved else "w+b")
            self._docs = (directory / f"{name}.docs").open("r+b" if saved else "w+b")
        except FileNotFoundError:
            raise CannotResumeError from None
        if saved:
            self._reread()
            if self.progress() != saved:
                raise CannotResumeError

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
