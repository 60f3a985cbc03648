"""Second pass of `prepare`: texts to ids, on all cores, and ids to the files of the two splits."""

from __future__ import annotations

import hashlib
import math
import zlib
from array import array
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import chain
from pathlib import Path

import numpy as np

from tiny_transformer.data.gather import Gathered
from tiny_transformer.data.meta import BLOCK_BYTES, SplitMeta
from tiny_transformer.tokenizers import Tokenizer

BATCH_BYTES = 2**20  # text handed to the encoder at once: enough for all cores, little enough to stay in memory


class SplitWriter:
    """Writes `<name>.bin` and `<name>.docs` and keeps the figures that meta.json tells about them."""

    def __init__(self, directory: Path, name: str, dtype: str, vocab_size: int) -> None:
        self._path, self._dtype = directory / f"{name}.bin", np.dtype(dtype).newbyteorder("<")
        self._file = self._path.open("xb")
        self._block = bytearray()
        self._block_crc32: list[int] = []
        self._hash = hashlib.sha256()
        self._starts = array("Q")
        self._num_tokens = self._longest = 0
        self.used = np.zeros(vocab_size, dtype=bool)

    def write(self, documents: list[list[int]]) -> None:
        """Append documents, each with its end token already in place."""
        lengths = np.array([len(ids) for ids in documents], dtype=np.int64)
        ids = np.fromiter(chain.from_iterable(documents), dtype=np.int64, count=int(lengths.sum()))
        self.used[ids] = True  # an id outside the vocabulary ends here, before it could wrap round in a narrower type
        starts = self._num_tokens + np.cumsum(lengths) - lengths
        self._starts.frombytes(starts.astype(np.uint64).tobytes())
        self._num_tokens += len(ids)
        self._longest = max(self._longest, int(lengths.max()))
        self._block += ids.astype(self._dtype).tobytes()
        whole = len(self._block) // BLOCK_BYTES * BLOCK_BYTES
        self._flush(whole)

    def finish(self, *, num_bytes: int, nats: np.ndarray) -> SplitMeta:
        """Write what is left; `nats` (documents,) may be NaN where the source knows no probabilities."""
        self._flush(len(self._block))
        self._file.close()
        starts = np.frombuffer(self._starts, dtype=np.uint64).astype("<u8").tobytes()
        self._path.with_suffix(".docs").write_bytes(starts)
        total = float(nats.sum())
        floor = None
        if len(nats) and not math.isnan(total):
            floor = {
                "nats_per_story": total / len(nats),
                "nats_per_token": total / self._num_tokens,
                "bits_per_byte": total / math.log(2) / num_bytes,
            }
        return SplitMeta(
            num_tokens=self._num_tokens,
            num_documents=len(self._starts),
            num_bytes=num_bytes,
            longest_document=self._longest,
            sha256=self._hash.hexdigest(),
            docs_sha256=hashlib.sha256(starts).hexdigest(),
            block_crc32=self._block_crc32,
            floor=floor,
        )

    def close(self) -> None:
        """Give the file back when the work was broken off."""
        self._file.close()

    def _flush(self, num_bytes: int) -> None:
        for start in range(0, num_bytes, BLOCK_BYTES):
            block = bytes(self._block[start : min(start + BLOCK_BYTES, num_bytes)])
            self._block_crc32.append(zlib.crc32(block))
            self._hash.update(block)
            self._file.write(block)
        del self._block[:num_bytes]


def encode_splits(
    gathered: Gathered,
    in_validation: np.ndarray,
    tokenizer: Tokenizer,
    directory: Path,
    on_bytes: Callable[[int], None],
) -> tuple[SplitMeta, SplitMeta, int]:
    """Encode every document into `train.bin` or `val.bin` in `directory`.

    Args:
        gathered: the documents.
        in_validation: boolean (N,), which of them go to val.bin.
        tokenizer: a document becomes its begin token (if the tokenizer has one), its ids and its end token.
        directory: where the files go; they must not exist.
        on_bytes: told how much text each batch had.

    Returns:
        The figures of training and validation, and how many different ids occur.
    """
    dtype = "uint16" if tokenizer.vocab_size <= 2**16 else "uint32"
    before = [] if tokenizer.begin_id is None else [tokenizer.begin_id]
    with ExitStack() as stack:
        writers = []
        for name in ("train", "val"):
            writers.append(SplitWriter(directory, name, dtype, tokenizer.vocab_size))
            stack.callback(writers[-1].close)
        done = 0
        for texts, num_bytes in _batches(gathered):
            documents = [[*before, *ids, tokenizer.end_id] for ids in tokenizer.encode_batch(texts)]
            is_val = in_validation[done : done + len(documents)]
            for writer, chosen in zip(writers, (~is_val, is_val), strict=True):
                if chosen.any():
                    writer.write([documents[i] for i in np.flatnonzero(chosen)])
            done += len(documents)
            on_bytes(num_bytes)
        train, val = (
            writer.finish(num_bytes=int(gathered.num_bytes[chosen].sum()), nats=gathered.nats[chosen])
            for writer, chosen in zip(writers, (~in_validation, in_validation), strict=True)
        )
    return train, val, int(np.count_nonzero(writers[0].used | writers[1].used))


def _batches(gathered: Gathered) -> Iterator[tuple[list[str], int]]:
    texts, num_bytes = [], 0
    for text, size in zip(gathered.texts(), gathered.num_bytes.tolist(), strict=True):
        texts.append(text)
        num_bytes += size
        if num_bytes >= BATCH_BYTES:
            yield texts, num_bytes
            texts, num_bytes = [], 0
    if texts:
        yield texts, num_bytes
