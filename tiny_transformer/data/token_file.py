"""Reading prepared data: the tokens of a split as an array, checked where they are touched.

Files are read with `pread`, not mapped: a mapped file that another process cuts short kills the reader with a bus
error, and a read just returns less. The operating system caches both the same.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
import zlib
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any

import numpy as np

from tiny_transformer.data.meta import BLOCK_BYTES, TOKEN_DTYPES, Meta, SplitMeta, damaged, read_meta
from tiny_transformer.errors import ExitCode, UserError
from tiny_transformer.tokenizers import Tokenizer, load_tokenizer

STAGED_PREFIX = ".staged-"
MOST_SWAPS = 50  # how often an open data set may be replaced while it is opened


class TokenFile:
    """The tokens of one split, `file[start:stop]` as an array of the file's dtype.

    Each MiB is checked when it is first touched: its CRC-32 (where meta.json gives one), and that every id is below
    `vocab_size`. Files stay open, so that replacing them on disk does not disturb a reader.

    Args:
        path: raw little-endian tokens.
        docs: where each document starts, little-endian uint64; by default the `.docs` file beside, if there is one.
        dtype: `uint16` or `uint32`.
        vocab_size: ids must be below it.
        split: what meta.json says about the file; None for a file that came without.

    Raises:
        UserError: the file is missing, has another length than meta.json says, or (on reading) a damaged block.
    """

    def __init__(
        self, path: Path, *, dtype: str, vocab_size: int, split: SplitMeta | None = None, docs: Path | None = None
    ) -> None:
        self.path, self.vocab_size, self.split = path, vocab_size, split
        self._dtype = np.dtype(dtype).newbyteorder("<")
        docs = docs or path.with_suffix(".docs")
        self._file = _open(path)
        self._docs_file = _open(docs) if split is not None or docs.is_file() else None
        self._size_bytes = os.fstat(self._file.fileno()).st_size
        if split is not None and self._size_bytes != split.num_tokens * self._dtype.itemsize:
            expected = split.num_tokens * self._dtype.itemsize
            raise damaged(path, f"{path.name} has {self._size_bytes:,} bytes, meta.json says {expected:,}")
        if self._size_bytes % self._dtype.itemsize:
            what = f"{path.name} has {self._size_bytes:,} bytes, not a multiple of {self._dtype.itemsize}"
            error = damaged(path, what)
            if split is None:  # not made here
                error.remedy = "fetch the file again: it was cut short, or holds numbers of another width"
            raise error
        self._checked = bytearray(-(-self._size_bytes // BLOCK_BYTES))

    def __len__(self) -> int:
        return self._size_bytes // self._dtype.itemsize

    def __getitem__(self, window: slice) -> np.ndarray:
        start, stop, stride = window.indices(len(self))
        if stride != 1:
            raise ValueError("tokens are read in one run: no stride")
        return self.read(start, max(start, stop))

    def read(self, start: int, stop: int) -> np.ndarray:
        """Tokens start to stop (not included), in the file's dtype; both must lie inside the file."""
        first_byte, last_byte = start * self._dtype.itemsize, stop * self._dtype.itemsize
        for block in range(first_byte // BLOCK_BYTES, -(-last_byte // BLOCK_BYTES)):
            if not self._checked[block]:
                self._check_block(block)
        return self._read_bytes(first_byte, last_byte - first_byte)

    def documents(self) -> np.ndarray:
        """The offset in tokens at which each document starts: (documents,) int64.

        Raises:
            UserError: the file that tells is missing, or is not what was written.
        """
        if self._docs_file is None:
            raise damaged(self.path.with_suffix(".docs"), "nothing says where the documents start")
        self._docs_file.seek(0)
        data = self._docs_file.read()
        if self.split is not None and hashlib.sha256(data).hexdigest() != self.split.docs_sha256:
            raise damaged(Path(self._docs_file.name), "it differs from what was written (SHA-256)")
        return np.frombuffer(data, dtype="<u8").astype(np.int64)

    def close(self) -> None:
        """Give the files back to the system."""
        self._file.close()
        if self._docs_file is not None:
            self._docs_file.close()

    def _check_block(self, block: int) -> None:
        offset = block * BLOCK_BYTES
        tokens = self._read_bytes(offset, min(BLOCK_BYTES, self._size_bytes - offset))
        if self.split is not None and zlib.crc32(tokens.data) != self.split.block_crc32[block]:
            raise damaged(self.path, f"block {block} of {self.path.name} does not match its checksum", offset=offset)
        if tokens.max() >= self.vocab_size:
            place = int(np.argmax(tokens >= self.vocab_size))
            raise damaged(
                self.path,
                f"id {tokens[place]} is not below the vocabulary size {self.vocab_size}",
                offset=offset + place * self._dtype.itemsize,
            )
        self._checked[block] = True

    def _read_bytes(self, offset: int, size_bytes: int) -> np.ndarray:
        try:
            data = os.pread(self._file.fileno(), size_bytes, offset)
            while data and len(data) < size_bytes:
                more = os.pread(self._file.fileno(), size_bytes - len(data), offset + len(data))
                if not more:
                    break
                data += more
        except OSError as error:
            raise UserError(
                f"cannot read {self.path}: {error.strerror}", where=f"byte {offset:,}", exit_code=ExitCode.IO
            ) from None
        if len(data) < size_bytes:
            raise damaged(self.path, f"{self.path.name} was cut short while it was open", offset=offset + len(data))
        return np.frombuffer(data, dtype=self._dtype)


@dataclass(frozen=True)
class Dataset:
    """A prepared data directory, open: what it says about itself, its two splits and its tokenizer."""

    meta: Meta
    train: TokenFile
    val: TokenFile
    tokenizer: Tokenizer


def unigram_nats(tokens: TokenFile, max_tokens: int = 2**20) -> float:
    """The entropy of single tokens in nats, from the first `max_tokens`: the loss of a model that knows how often each
    token occurs, and nothing about what stands before it."""
    _, counts = np.unique(tokens.read(0, min(max_tokens, len(tokens))), return_counts=True)
    shares = counts / counts.sum()
    return float(-(shares * np.log(shares)).sum())


def open_dataset(data_dir: str | Path) -> Dataset:
    """Open what `prepare` made; while a `prepare` replaces it, what was there or what comes, never half of each.

    Raises:
        UserError: not prepared data, or a file whose length, tokenizer or checksum is not what meta.json says.
    """
    data_dir = Path(data_dir)
    for attempt in range(MOST_SWAPS):
        meta = read_meta(data_dir)
        is_moving = staging_dir(data_dir, meta.request).is_dir()
        try:
            dataset = _open_as(data_dir, meta)
        except UserError:
            is_moving = is_moving or staging_dir(data_dir, meta.request).is_dir()
            if attempt == MOST_SWAPS - 1 or (not is_moving and read_meta(data_dir) == meta):
                raise
        else:
            if read_meta(data_dir) == meta:
                return dataset
            dataset.train.close()
            dataset.val.close()
        time.sleep(0.002 * attempt)
    raise UserError(
        f"{data_dir} is being replaced again and again",
        remedy="wait until prepare has ended",
        exit_code=ExitCode.LOCKED,
    )


def _open_as(data_dir: Path, meta: Meta) -> Dataset:
    """What meta.json describes, or the error for the first file that is something else."""
    for name, digest in meta.tokenizer_files.items():
        path = locate(data_dir, meta, name)
        with _open(path) as file:
            if hashlib.sha256(file.read()).hexdigest() != digest:
                raise damaged(path, f"{name} differs from what was written (SHA-256)")
    tokenizer = load_tokenizer(locate(data_dir, meta, "tokenizer.json"), name=meta.tokenizer)
    if tokenizer.fingerprint != meta.tokenizer_fingerprint:
        raise damaged(
            data_dir / "tokenizer.json",
            f"the tokenizer ({tokenizer.fingerprint[:12]}) is not the one the tokens were made with "
            f"({meta.tokenizer_fingerprint[:12]})",
        )
    train, val = (
        TokenFile(
            locate(data_dir, meta, f"{name}.bin"),
            dtype=meta.dtype,
            vocab_size=meta.vocab_size,
            split=split,
            docs=locate(data_dir, meta, f"{name}.docs"),
        )
        for name, split in (("train", meta.train), ("val", meta.val))
    )
    return Dataset(meta, train, val, tokenizer)


def open_token_files(
    data_dir: str | Path, tokenizer: Tokenizer, *, dtype: str = "uint16"
) -> tuple[TokenFile, TokenFile]:
    """The splits of a directory without meta.json: `train.bin` and `val.bin` or `validation.bin`, headerless tokens.

    Args:
        data_dir: a directory as nanoGPT and others write it.
        tokenizer: the one the tokens were made with; ids outside its vocabulary are an error on reading.
        dtype: `uint16` or `uint32`; the files do not say.
    """
    data_dir = Path(data_dir)
    if dtype not in TOKEN_DTYPES:
        raise UserError(f"token files are {' or '.join(TOKEN_DTYPES)}, not {dtype}")
    names = [name for name in ("val.bin", "validation.bin") if (data_dir / name).is_file()]
    odd = [path.name for path in map(data_dir.joinpath, ("train.bin", "val.bin")) if path.exists() != path.is_file()]
    if not names or not (data_dir / "train.bin").is_file():
        raise UserError(
            f"{odd[0]} is not a regular file" if odd else f"no token files in {data_dir}",
            where=str(data_dir),
            remedy="it needs train.bin and val.bin (or validation.bin); prepare makes them from text",
        )
    files = [
        TokenFile(data_dir / name, dtype=dtype, vocab_size=tokenizer.vocab_size) for name in ("train.bin", names[0])
    ]
    return files[0], files[1]


def _open(path: Path) -> FileIO:
    try:
        return FileIO(path)
    except FileNotFoundError:
        raise damaged(path, f"{path.name} is missing") from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}", exit_code=ExitCode.IO) from None


def locate(data_dir: Path, meta: Meta, name: str) -> Path:
    """Where a file of the data that `meta` describes stands.

    A `prepare` that died between its commit and its last move has left the file in the staging directory.
    """
    staged = staging_dir(data_dir, meta.request) / name
    return staged if staged.is_file() else data_dir / name


def staging_dir(data_dir: Path, request: dict[str, Any]) -> Path:
    """The directory inside `data_dir` in which the files for a request wait until meta.json names that request."""
    digest = hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()
    return data_dir / f"{STAGED_PREFIX}{digest[:16]}"
