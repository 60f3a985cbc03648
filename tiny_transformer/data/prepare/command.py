"""From any source of text to a directory that training reads: `train.bin`, `val.bin`, tokenizer, meta.json.

The directory changes hands in one instant. Everything is written and verified in a hidden directory inside `out_dir`
(through `storage.publish`); then meta.json, which says where the files stand, is replaced; only then are the files
moved up to their own names. A reader looks into the hidden directory first, so a `prepare` that dies between two of
these steps leaves either the old data or the new data, and the next `prepare` moves what is left.

Before all that, files grow in another hidden directory, which outlives a killed `prepare`: the next one with the same
request goes on from there.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from tiny_transformer.config.schema import DataConfig
from tiny_transformer.data.meta import META_FILE, Meta, file_hashes, not_prepared, read_meta, token_dtype
from tiny_transformer.data.prepare.encode import encode_splits
from tiny_transformer.data.prepare.gather import Documents, Gathering, Split, Spool
from tiny_transformer.data.prepare.request import changed_keys, is_trained_here, request_of
from tiny_transformer.data.prepare.sources import Source, source_of
from tiny_transformer.data.prepare.texts import DEFAULT_VAL_FRACTION, LEAST_SPLIT_BYTES
from tiny_transformer.data.token_file import STAGED_PREFIX, open_dataset, staging_dir
from tiny_transformer.errors import ExitCode, UserError
from tiny_transformer.storage import RunLock, atomic_write, publish
from tiny_transformer.storage.fs import refusals
from tiny_transformer.storage.lock import LOCK_NAME
from tiny_transformer.storage.temporary import LEFTOVER_PREFIX, remove_tree
from tiny_transformer.tokenizers import Tokenizer, load_tokenizer, make_tokenizer

if TYPE_CHECKING:
    from rich.console import Console

WORK_PREFIX = ".work-"
TOKEN_FILES = ("train.bin", "train.docs", "val.bin", "val.docs")
TRAINING_SAMPLE_BYTES = 64 * 2**20  # of text a BPE is trained on at most; more hardly changes its merges
Progress = Callable[[int, int | None], None]


def prepare(
    data: DataConfig,
    out_dir: str | Path,
    *,
    source: Source | None = None,
    workers: int | None = None,
    overwrite: bool = False,
    on_progress: Progress | None = None,
) -> Meta:
    """Turn text into token files in `out_dir`; returns what meta.json says about them.

    When `out_dir` holds the same already (same source, unchanged, and same settings), nothing is done; when an earlier
    call was killed, this one goes on where that was, to the same bytes. Other files in `out_dir` are left alone.

    Args:
        data: which text, which tokenizer, how it is split; `packing` and `data_dir` play no part. The training
            split must hold at least one sequence (seq_len + 1 tokens).
        out_dir: made if missing.
        source: the text, where it is open already; by default `data.source` is opened.
        workers: threads that encode, by default one per core; the result does not depend on it.
        overwrite: replace other prepared data; a training that reads it keeps what it has open.
        on_progress: called with (bytes of text done, bytes in all or None); where a tokenizer is made from the text,
            reading and encoding count half each.

    Raises:
        UserError: see `open_source` and `make_tokenizer`; other data is there already (usage); a split is empty or
            shorter than one sequence (bad data); `out_dir` is in use (locked) or cannot be written (I/O).
    """
    if workers is not None and workers < 1:
        raise UserError(f"workers {workers} is not a positive number", remedy="leave it out for one per core")
    source = source or source_of(data)
    out_dir = Path(out_dir)
    if out_dir.exists() and not out_dir.is_dir():
        what = f"{out_dir} is a file, and data need a directory"
        raise UserError(what, remedy="choose another --out_dir", exit_code=ExitCode.IO)
    fixed = None
    if not is_trained_here(data.tokenizer):
        fixed = make_tokenizer(data.tokenizer, vocab_size=data.vocab_size)
    request = request_of(data, source, fixed)
    if (there := _already_there(out_dir, request, overwrite)) is not None:
        return there
    with _gone_when_refused(out_dir), RunLock(out_dir):
        staged = staging_dir(out_dir, request)
        work_dir = out_dir / staged.name.replace(STAGED_PREFIX, WORK_PREFIX)
        _finish_or_remove(out_dir, request, work_dir)
        if (there := _already_there(out_dir, request, overwrite)) is not None:
            return there
        work = _Work(source, data, work_dir, workers or os.cpu_count() or 1, on_progress)
        return _publish(*work.run(fixed, request), work_dir=work_dir, staged=staged, out_dir=out_dir)


@contextmanager
def _gone_when_refused(out_dir: Path) -> Generator[None]:
    """Remove a directory that was made for nothing, its lock in it, when the block is refused."""
    is_new = not out_dir.exists()
    try:
        yield
    except UserError:
        with suppress(OSError):
            if is_new and [path.name for path in out_dir.iterdir()] == [LOCK_NAME]:
                (out_dir / LOCK_NAME).unlink()
                out_dir.rmdir()
        raise


def is_prepared(data_dir: str | Path) -> bool:
    """Whether there is prepared data, whole or damaged."""
    return (Path(data_dir) / META_FILE).is_file()


def prepare_with_progress(data: DataConfig, out_dir: str | Path, console: Console, **options: Any) -> Meta:
    """`prepare` with a progress bar, a sentence about what is read, and a table of what came out; `options` are those
    of `prepare`."""
    from tiny_transformer.data.prepare.summary import print_summary, progress_bar

    source = source_of(data)
    if source.note:
        console.print(source.note, markup=False, highlight=False)
    with progress_bar(console) as on_progress:
        meta = prepare(data, out_dir, source=source, on_progress=on_progress, **options)
    print_summary(meta, Path(out_dir), console)
    return meta


class _Work:
    """The way from documents to token files in a directory that nobody reads yet, or the rest of that way."""

    def __init__(
        self, source: Source, settings: DataConfig, directory: Path, workers: int, on_progress: Progress | None
    ) -> None:
        self.source, self.settings, self.directory, self.workers = source, settings, directory, workers
        self._on_progress = on_progress
        self._num_done = 0
        self._num_total = source.total_bytes
        self._num_passes = 1

    def run(self, fixed: Tokenizer | None, request: dict[str, Any]) -> tuple[Meta, Tokenizer]:
        """Read, split and encode; with a `fixed` tokenizer in one go, else after one has been made from the text."""
        try:
            with refusals("prepare", self.directory):
                self.directory.mkdir(exist_ok=True)
                return self._run(fixed, request)
        except UserError as error:
            if error.exit_code != ExitCode.IO:  # a full disk or a lost network may come back, a wrong request may not
                remove_tree(self.directory)
            raise

    def _run(self, fixed: Tokenizer | None, request: dict[str, Any]) -> tuple[Meta, Tokenizer]:
        split = Split(self.settings.val_fraction or DEFAULT_VAL_FRACTION)
        documents: Documents = Gathering(self.source, split)
        tokenizer = fixed
        if tokenizer is None:
            self._num_passes = 2
            documents = spool = self._spooled(documents)
            if spool.highest <= spool.lowest:  # fewer than two documents; duplicates are out already
                self._refuse_so_few(spool.num_bytes, spool.num_duplicates)
            tokenizer = self._trained_tokenizer(documents, split)
        train, val, num_used_ids = encode_splits(
            documents, tokenizer, self.directory, split=split, workers=self.workers, on_bytes=self._advance
        )
        meta = Meta(
            dtype=token_dtype(tokenizer.vocab_size),
            vocab_size=tokenizer.vocab_size,
            seq_len=self.settings.seq_len,
            num_used_ids=num_used_ids,
            tokenizer=tokenizer.name,
            tokenizer_fingerprint=tokenizer.fingerprint,
            source=self.source.name,
            licence=self.source.licence,
            num_duplicates=documents.num_duplicates,
            request=request,
            train=train,
            val=val,
        )
        if meta.train.num_documents + meta.val.num_documents < 2:
            self._refuse_so_few(meta.train.num_bytes + meta.val.num_bytes, meta.num_duplicates)
        self._check_lengths(meta)
        self._num_total = self._num_done // self._num_passes
        self._advance(0)
        return meta, tokenizer

    def _advance(self, num_bytes: int) -> None:
        """Tell of so much text read or encoded; where both are done apart, each counts half."""
        self._num_done += num_bytes
        if self._on_progress is not None:
            done, total = self._num_done // self._num_passes, self._num_total
            self._on_progress(done, None if total is None else max(total, done))

    def _spooled(self, documents: Documents) -> Spool:
        path = self.directory / "texts"
        spool = Spool.whole(path) or Spool.fill(path, documents, self._advance)
        self._num_total = spool.num_bytes
        return spool

    def _trained_tokenizer(self, documents: Spool, split: Split) -> Tokenizer:
        """The tokenizer an earlier process has left here, or a new one."""
        directory, note = self.directory / "tokenizer", self.directory / "tokenizer_files.json"
        with suppress(OSError, ValueError):  # none there, or half of one
            if json.loads(note.read_bytes()) == file_hashes(directory.iterdir()):
                return load_tokenizer(directory, name=self.settings.tokenizer)
        tokenizer = self._train_tokenizer(documents, split)
        remove_tree(directory)
        tokenizer.save(directory)
        atomic_write(note, json.dumps(file_hashes(directory.iterdir())))
        return tokenizer

    def _train_tokenizer(self, documents: Spool, split: Split) -> Tokenizer:
        """A BPE from (a sample of) the training documents; characters from all, so that none lacks one."""
        name, vocab_size = self.settings.tokenizer, self.settings.vocab_size
        if name == "char":
            return make_tokenizer(name, texts=(d.text for d in documents), vocab_size=vocab_size)

        def in_training(document_hash: int) -> bool:
            return not split.is_validation(document_hash, lowest=documents.lowest, highest=documents.highest)

        text_bytes = sum(document.num_bytes for document in documents.chosen(in_training))
        # The low bits of the hash: the high ones have chosen the validation documents.
        share = max(1, round(min(1.0, TRAINING_SAMPLE_BYTES / max(text_bytes, 1)) * 2**16))
        sample = documents.chosen(lambda h: in_training(h) and h % 2**16 < share)
        texts = (document.text for document in sample)
        return make_tokenizer(name, texts=texts, vocab_size=vocab_size, text_bytes=text_bytes)

    def _refuse_so_few(self, num_bytes: int, num_duplicates: int) -> NoReturn:
        found = f"one document of {num_bytes:,} bytes" if num_bytes else "no text"
        if num_duplicates:
            found += f", and {num_duplicates:,} more that {'is' if num_duplicates == 1 else 'are'} equal to it"
        raise UserError(
            f"{self.source.name} holds {found}: training and validation need at least one document each",
            remedy="give more text: in a .txt a line <|endoftext|> ends a document, and a text without such lines is "
            f"divided from {LEAST_SPLIT_BYTES:,} bytes on",
            exit_code=ExitCode.BAD_DATA,
        )

    def _check_lengths(self, meta: Meta) -> None:
        """Training reads whole sequences; validation is scored to its last token, however few there are."""
        for name, split, least in (("training", meta.train, self.settings.seq_len + 1), ("validation", meta.val, 2)):
            if split.num_tokens < least:
                is_sequence = f" (one sequence of {least - 1} + 1)" if split is meta.train else ""
                raise UserError(
                    f"the {name} split has {split.num_tokens:,} tokens ({split.num_documents:,} documents), fewer than "
                    f"{least}{is_sequence}",
                    where=self.source.name,
                    remedy="give more text, a smaller --seq_len, or another --val_fraction",
                    exit_code=ExitCode.BAD_DATA,
                )


def _publish(meta: Meta, tokenizer: Tokenizer, *, work_dir: Path, staged: Path, out_dir: Path) -> Meta:
    """Let finished work become what `out_dir` holds."""
    with publish(staged) as staging:
        for name in TOKEN_FILES:
            (work_dir / name).replace(staging / name)
        tokenizer.save(staging)
        saved = (path for path in staging.path.iterdir() if path.name not in TOKEN_FILES)
        meta = replace(meta, tokenizer_files=file_hashes(saved))
        staging.write(META_FILE, meta.to_json())
    atomic_write(out_dir / META_FILE, meta.to_json())  # from here on the new data is what this directory holds
    _move_up(staged, out_dir)
    remove_tree(work_dir)
    return meta


def _already_there(out_dir: Path, request: dict[str, Any], overwrite: bool) -> Meta | None:
    """The prepared data that answers the request, if it is there; raises when other data is in the way."""
    if not is_prepared(out_dir) and not overwrite and (out_dir / TOKEN_FILES[0]).exists():
        raise not_prepared(out_dir)
    if not is_prepared(out_dir) or any(_left_behind(out_dir)):
        return None
    try:
        meta = read_meta(out_dir)
        changed = changed_keys(request, meta.request)
        if not changed:
            _check_files(out_dir, thoroughly=overwrite)
            return meta
    except UserError:
        if overwrite:
            return None
        raise
    if overwrite:
        return None
    raise UserError(
        f"{out_dir} already holds other prepared data, from {meta.source} (what differs: {', '.join(changed)})",
        where=str(out_dir / META_FILE),
        remedy="--overwrite replaces it, another --out_dir leaves it alone",
    )


def _check_files(data_dir: Path, *, thoroughly: bool) -> None:
    """Raise UserError where a file is not as it was written: its length, or, read `thoroughly`, any of its bytes."""
    dataset = open_dataset(data_dir)
    for tokens in (dataset.train, dataset.val):
        for start in range(0, len(tokens) if thoroughly else 0, 2**20):
            tokens.read(start, min(start + 2**20, len(tokens)))
        tokens.close()


def _finish_or_remove(out_dir: Path, request: dict[str, Any], work_dir: Path) -> None:
    """Finish or remove what a killed `prepare` left behind, all but the work that this request can go on with."""
    if is_prepared(out_dir):
        try:
            there = read_meta(out_dir).request
        except UserError as error:
            if error.exit_code != ExitCode.BAD_DATA:
                raise
        else:
            _move_up(staging_dir(out_dir, there), out_dir)
            if there == request:
                remove_tree(work_dir)
    for path in _left_behind(out_dir):
        if path != work_dir:
            _take_back(path, work_dir)
            remove_tree(path)


def _take_back(staged: Path, work_dir: Path) -> None:
    """Move the token files of a publication that did not come about back to the work they came from."""
    digest = work_dir.name.removeprefix(WORK_PREFIX)
    if work_dir.is_dir() and staged.name.removeprefix(LEFTOVER_PREFIX).startswith(STAGED_PREFIX + digest):
        for name in TOKEN_FILES:
            if (staged / name).is_file():
                (staged / name).replace(work_dir / name)


def _left_behind(out_dir: Path) -> Iterator[Path]:
    """Directories and files that only a `prepare` makes here, and only for as long as it runs."""
    ours = (STAGED_PREFIX, WORK_PREFIX, LEFTOVER_PREFIX + STAGED_PREFIX, LEFTOVER_PREFIX + META_FILE)
    yield from sorted(path for path in out_dir.iterdir() if path.name.startswith(ours))


def _move_up(staged: Path, out_dir: Path) -> None:
    """Move the files of a committed staging directory to their names in `out_dir`; may be broken off and repeated."""
    if not staged.is_dir():
        return
    for path in sorted(staged.iterdir()):
        path.replace(out_dir / path.name)
    staged.rmdir()
