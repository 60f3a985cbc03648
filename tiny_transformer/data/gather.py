"""First pass of `prepare`: read every document once, drop repeated ones, note what is needed to split them.

The texts wait in a file on the disk (the tokenizer is trained on some of them before any is encoded); in memory stay 24
bytes a document and the set of hashes that finds repeated ones.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tiny_transformer.data.sources import Source


@dataclass(frozen=True)
class Gathered:
    """The documents of a source, waiting in a file.

    Attributes:
        path: their UTF-8 bytes, one after another.
        num_bytes: (N,) int64, the length of each.
        hashes: (N,) uint64, a hash of each that is uniform and depends on its text alone.
        nats: (N,) float64, minus the log-probability of each; NaN where the source does not know it.
        num_duplicates: how many documents were left out as repetitions.
    """

    path: Path
    num_bytes: np.ndarray
    hashes: np.ndarray
    nats: np.ndarray
    num_duplicates: int

    def __len__(self) -> int:
        return len(self.num_bytes)

    def texts(self, keep: np.ndarray | None = None) -> Iterator[str]:
        """The texts in the order they came, all or those where the boolean array `keep` (N,) is true."""
        with self.path.open("rb") as file:
            for i, size in enumerate(self.num_bytes.tolist()):
                if keep is None or keep[i]:
                    yield file.read(size).decode("utf-8")
                else:
                    file.seek(size, 1)

    def in_validation(self, val_fraction: float) -> np.ndarray:
        """Which documents are kept for validation: boolean (N,).

        A document is when its hash falls into the lowest `val_fraction` of the range. That depends on the document
        alone, so adding data moves none. When a handful of documents leaves one side empty, the one with the lowest
        hash goes to validation, or the one with the highest to training.
        """
        chosen = self.hashes < np.uint64(min(int(val_fraction * 2.0**64), 2**64 - 1))
        if len(self) > 1 and not chosen.any():
            chosen[np.argmin(self.hashes)] = True
        if len(self) > 1 and chosen.all():
            chosen[np.argmax(self.hashes)] = False
        return chosen


def gather(source: Source, path: Path, on_bytes: Callable[[int], None]) -> Gathered:
    """Read `source` into the new file `path`; `on_bytes` is told the size of each document read."""
    num_bytes, hashes, nats = array("q"), array("Q"), array("d")
    seen: set[int] = set()
    num_duplicates = 0
    with path.open("xb") as file:
        for text, log_probability in source.scored_documents():
            data = text.encode("utf-8")
            digest = hashlib.blake2b(data, digest_size=16).digest()
            identity = int.from_bytes(digest[8:], "little")
            on_bytes(len(data))
            if identity in seen:
                num_duplicates += 1
                continue
            seen.add(identity)
            file.write(data)
            num_bytes.append(len(data))
            hashes.append(int.from_bytes(digest[:8], "little"))
            nats.append(float("nan") if log_probability is None else -log_probability)
    return Gathered(
        path,
        num_bytes=np.frombuffer(num_bytes, dtype=np.int64),
        hashes=np.frombuffer(hashes, dtype=np.uint64),
        nats=np.frombuffer(nats, dtype=np.float64),
        num_duplicates=num_duplicates,
    )
