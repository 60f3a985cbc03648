"""Import of token files as nanoGPT and others write them: `train.bin` and `val.bin`, headerless uint16 or uint32.

Such files say neither which tokenizer made them nor where documents start. The tokenizer has to be named; documents
start after each end token. What is written is prepared data like any other: counted, hashed, checked when it is read.
A `meta.pkl` beside the files is a pickle and is not read.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from tiny_transformer.data.meta import META_FILE, Meta, SplitMeta, file_hashes, token_dtype
from tiny_transformer.data.prepare.split_writer import SplitWriter
from tiny_transformer.data.token_file import TokenFile, open_token_files
from tiny_transformer.errors import ExitCode, UserError
from tiny_transformer.storage.commit import publish
from tiny_transformer.tokenizers import Tokenizer, make_tokenizer

READ_TOKENS = 2**20
LONGEST_DOCUMENT = 2**20  # a longer run without an end token is cut: memory stays flat


def import_token_bins(
    source: Path | str, out_dir: Path | str, *, tokenizer: str, dtype: str = "uint16", seq_len: int | None = None
) -> Meta:
    """Write a directory of token files as prepared data, all or nothing.

    Args:
        source: a directory with `train.bin` and `val.bin` (or `validation.bin`).
        out_dir: a directory that does not exist yet.
        tokenizer: the one the tokens were made with, as `make_tokenizer` takes it; usually `gpt2`.
        dtype: `uint16` or `uint32`; the files do not say.
        seq_len: noted in meta.json; each split must be longer. None: 512, or what the shorter split has room for.

    Raises:
        UserError: no such files, files of the other width, an id outside the vocabulary, a split that is too short, or
            `out_dir` exists.
    """
    source = Path(source)
    made = make_tokenizer(tokenizer)
    files = open_token_files(source, made, dtype=dtype)
    try:
        for file in files:
            _check_width(file, made.vocab_size, bits=16 if dtype == "uint16" else 32)
        seq_len = min(512, *(len(file) - 1 for file in files)) if seq_len is None else seq_len
        for name, file in zip(("train", "val"), files, strict=True):
            if len(file) <= max(seq_len, 2):
                raise UserError(
                    f"the {name} split has {len(file):,} tokens, fewer than one sequence of {max(seq_len, 2)} + 1",
                    where=str(file.path),
                    remedy="give token files of more text",
                    exit_code=ExitCode.BAD_DATA,
                )
        with publish(out_dir, info={"imported_from": source.absolute().name}) as staging:
            written = [
                _copy(file, name, made, staging.path) for name, file in zip(("train", "val"), files, strict=True)
            ]
            made.save(staging)
            meta = Meta(
                dtype=token_dtype(made.vocab_size),
                vocab_size=made.vocab_size,
                seq_len=seq_len,
                num_used_ids=int(np.count_nonzero(written[0][1] | written[1][1])),
                tokenizer=made.name,
                tokenizer_fingerprint=made.fingerprint,
                source=source.absolute().name,
                licence="unknown",
                num_duplicates=0,
                request={"imported_from": source.absolute().name},
                train=written[0][0],
                val=written[1][0],
                tokenizer_files=file_hashes(p for p in staging.path.iterdir() if p.suffix not in (".bin", ".docs")),
            )
            staging.write(META_FILE, meta.to_json())
    finally:
        for file in files:
            file.close()
    return meta


def _check_width(file: TokenFile, vocab_size: int, *, bits: int) -> None:
    """Refuse wider tokens read as narrow ones: every second number is then the upper half of an id, 0 as a rule.

    No text gives that: it would need the first few words of the vocabulary in every second place.

    Raises:
        UserError: such a file, or an id outside the vocabulary.
    """
    highest = (vocab_size - 1) >> bits
    if len(file) < 4 or len(file) % 2:
        return
    is_64_bit = bits == 32 or len(file) % 4 == 0
    for start in range(0, len(file), READ_TOKENS):
        tokens = _read(file, start)
        if (tokens[1::2] > highest).any():
            return
        is_64_bit = is_64_bit and (bits == 32 or not (tokens[2::4].any() or tokens[3::4].any()))
    actual = 64 if is_64_bit else 32
    convert = "write them as 32-bit numbers: numpy.fromfile(FILE, '<i8').astype('<u4').tofile(FILE)"
    raise UserError(
        f"every second token is 0 or next to it: these are {actual}-bit tokens read as {bits}-bit ones",
        where=str(file.path),
        remedy="import with --dtype uint32" if actual == 32 else f"{convert}; then import with --dtype uint32",
        exit_code=ExitCode.BAD_DATA,
    )


def _read(file: TokenFile, start: int) -> np.ndarray:
    """The next stretch of tokens, once every id is one of the vocabulary."""
    try:
        return file.read(start, min(start + READ_TOKENS, len(file)))
    except UserError as error:
        if error.exit_code != ExitCode.BAD_DATA:
            raise
        remedy = "name the tokenizer that they were made with, and their width with --dtype; big-endian numbers, and "
        remedy += "those of other types, have to be written as little-endian uint16 or uint32 first"
        raise UserError(
            error.what.removeprefix("damaged data: "), where=error.where, remedy=remedy, exit_code=error.exit_code
        ) from None


def _copy(file: TokenFile, name: str, tokenizer: Tokenizer, directory: Path) -> tuple[SplitMeta, np.ndarray]:
    """One split, document by document; its figures, and which ids occur."""
    writer = SplitWriter(directory, name, tokenizer.vocab_size)
    try:
        for ids in _documents(file, tokenizer.end_id):
            num_bytes = len(tokenizer.decode(ids).encode("utf-8", errors="replace"))
            writer.write(np.array(ids), np.array([len(ids)]), num_bytes=num_bytes, nats=[math.nan])
        return writer.finish(), writer.used
    finally:
        writer.close()


def _documents(file: TokenFile, end_id: int) -> Iterator[list[int]]:
    """Each document with its end token; the last one may have none, and a very long one comes in parts."""
    held: list[int] = []
    for start in range(0, len(file), READ_TOKENS):
        tokens = _read(file, start)
        ends = np.flatnonzero(tokens == end_id) + 1
        for part in np.split(tokens, ends):
            held += part.tolist()
            if held and (held[-1] == end_id or len(held) >= LONGEST_DOCUMENT):
                yield held
                held = []
    if held:
        yield held
