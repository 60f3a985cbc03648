"""`meta.json`: what a prepared data directory holds, and the numbers that prove it whole.

The file ends with a hash of its own content, so that a flipped bit in a number is as visible as one in a token file.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, get_origin, get_type_hints

import numpy as np

from tiny_transformer.errors import ExitCode, UserError, command_line

META_FILE = "meta.json"
FORMAT_VERSION = 1
BLOCK_BYTES = 2**20  # checksums are kept per block of this many bytes
MAX_META_BYTES = 64 * 2**20
TOKEN_DTYPES = ("uint16", "uint32")
MAX_COUNT = 2**53
FLOOR_KEYS = {"nats_per_story", "nats_per_token", "bits_per_byte"}
# Keys of the request that identify the source's text: today's, and that of older versions.
SOURCE_IDENTITY, OLD_IDENTITY = "source_identity", "source_fingerprint"
# Keys of the request that are read again, and what they may be.
REQUEST_KINDS: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("source", "tokenizer", "text_field"), (str,)),
    **dict.fromkeys(("vocab_size", "max_bytes"), (int, NoneType)),
    "val_fraction": (float, int, NoneType),
}


@dataclass(frozen=True)
class SplitMeta:
    """One split: `<name>.bin` and `<name>.docs`.

    Attributes:
        num_tokens: tokens in the .bin, the end token of each document included.
        num_documents: entries in the .docs: the offset in tokens at which each document starts, little-endian uint64.
        num_bytes: bytes of UTF-8 text the tokens stand for, without end tokens; what bits per byte divides by.
        longest_document: tokens in the longest document.
        sha256: of the .bin.
        docs_sha256: of the .docs.
        block_crc32: CRC-32 of each MiB of the .bin.
        floor: the best loss possible, where the source knows it: nats_per_story, nats_per_token, bits_per_byte.
    """

    num_tokens: int
    num_documents: int
    num_bytes: int
    longest_document: int
    sha256: str
    docs_sha256: str
    block_crc32: list[int]
    floor: dict[str, float] | None


@dataclass(frozen=True)
class Meta:
    """A prepared data directory.

    Attributes:
        dtype: `uint16` or `uint32`, little-endian.
        vocab_size: every id is below it.
        seq_len: the training length asked for at prepare; a run may choose another.
        num_used_ids: how many different ids occur in the two splits.
        tokenizer, tokenizer_fingerprint: name and content hash of the tokenizer beside the token files.
        tokenizer_files: SHA-256 of each of its files, by name; empty where an older version wrote this.
        source, licence: where the text comes from, and under which terms.
        num_duplicates: documents left out because an earlier one is the same, character for character.
        request: what was asked for; asking for the same again needs no work.
    """

    dtype: str
    vocab_size: int
    seq_len: int
    num_used_ids: int
    tokenizer: str
    tokenizer_fingerprint: str
    source: str
    licence: str
    num_duplicates: int
    request: dict[str, Any]
    train: SplitMeta
    val: SplitMeta
    tokenizer_files: dict[str, str] = field(default_factory=dict)

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of the tokens of both splits and of what turned text into them."""
        parts = (self.dtype, self.train.sha256, self.val.sha256, self.tokenizer_fingerprint)
        return hashlib.sha256(" ".join(parts).encode()).hexdigest()

    @property
    def text_fingerprint(self) -> str:
        """A hash that is the same for the same validation text, whatever turned it into tokens: what makes the losses
        of two runs comparable."""
        identities = (self.request.get(key) for key in (SOURCE_IDENTITY, OLD_IDENTITY))
        source = next(filter(None, identities), self.val.sha256)  # token files of others have no source
        return hashlib.sha256(f"{source} {self.val.num_documents} {self.val.num_bytes}".encode()).hexdigest()[:16]

    def to_json(self) -> str:
        """The text of meta.json."""
        body = {"format_version": FORMAT_VERSION, **asdict(self)}
        return json.dumps({**body, "meta_sha256": _hash(body)}, indent=1) + "\n"


def read_meta(data_dir: Path) -> Meta:
    """What `data_dir` holds.

    Raises:
        UserError: no meta.json there (usage), or one that is damaged or of another version (bad data).
    """
    file = data_dir / META_FILE
    try:
        if file.stat().st_size > MAX_META_BYTES:
            raise damaged(file, "it is far too large")
        body = json.loads(file.read_bytes())
        is_ours = isinstance(body, dict) and body.pop("meta_sha256", None) == _hash(body)
    except FileNotFoundError:
        raise not_prepared(data_dir) from None
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror}", exit_code=ExitCode.IO) from None
    except (ValueError, RecursionError):
        raise damaged(file, "it is not JSON") from None
    if not is_ours:
        raise damaged(file, "its content does not match its own hash")
    version = body.pop("format_version", None)
    if version != FORMAT_VERSION:
        raise damaged(file, f"it has format {version!r:.40}; this version reads format {FORMAT_VERSION}")
    try:
        return checked(body)
    except (ValueError, TypeError, OverflowError) as error:
        raise damaged(file, f"it has not the keys that meta.json has, or one of another kind ({error})") from None


def checked(body: dict[str, Any]) -> Meta:
    """The content as a `Meta`; ValueError or TypeError where a key is missing, surplus or cannot be what it is."""
    splits = {name: SplitMeta(**_of_kind(body[name], SplitMeta)) for name in ("train", "val") if name in body}
    meta = Meta(**_of_kind({"tokenizer_files": {}, **body, **splits}, Meta))
    if meta.dtype not in TOKEN_DTYPES or not 1 <= meta.vocab_size <= 2 ** (8 * np.dtype(meta.dtype).itemsize):
        raise ValueError(f"dtype {meta.dtype!r:.40} for vocab_size {meta.vocab_size}")
    if not 1 <= meta.seq_len <= MAX_COUNT or meta.num_used_ids > meta.vocab_size:
        raise ValueError("seq_len or num_used_ids")
    for name, split in (("train", meta.train), ("val", meta.val)):
        if not _is_possible(split, np.dtype(meta.dtype).itemsize):
            raise ValueError(f"figures of {name} that do not fit each other")
    for name, digest in meta.tokenizer_files.items():
        if not isinstance(digest, str) or "/" in name or name.startswith("."):
            raise ValueError("tokenizer_files")
    for key, kinds in REQUEST_KINDS.items():
        if key in meta.request and type(meta.request[key]) not in kinds:
            raise ValueError(f"request.{key}")
    return meta


def _is_possible(split: SplitMeta, width: int) -> bool:
    """Whether the figures of a split can be those of one: something in it, checksums for each block, a finite floor."""
    num_blocks = -(-split.num_tokens * width // BLOCK_BYTES)
    floor = split.floor
    return (
        1 <= split.num_documents <= split.num_tokens <= MAX_COUNT
        and split.longest_document <= split.num_tokens
        and split.num_bytes <= MAX_COUNT
        and len(split.block_crc32) == num_blocks
        and all(0 <= crc < 2**32 for crc in split.block_crc32)
        and (floor is None or (floor.keys() == FLOOR_KEYS and all(math.isfinite(value) for value in floor.values())))
    )


def _of_kind(values: Any, form: type[Meta | SplitMeta]) -> dict[str, Any]:
    """The values once each is of the kind that its field says; whole numbers are not negative."""
    if not isinstance(values, dict):
        raise TypeError("a split that is no object")
    for name, kind in get_type_hints(form).items():
        value = values.get(name)
        plain = get_origin(kind) or kind
        if plain is UnionType:  # dict[str, float] | None
            right = value is None or (isinstance(value, dict) and all(type(v) in (int, float) for v in value.values()))
        else:
            right = type(value) is plain and not (plain is int and value < 0)
        right = right and not (plain is list and not all(type(v) is int for v in value))
        if not right:
            raise ValueError(name)
    return values


def file_hashes(paths: Iterable[Path]) -> dict[str, str]:
    """SHA-256 (hex) of files by name."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(paths)}


def not_prepared(data_dir: Path) -> UserError:
    """The error for a directory without meta.json, with the command that makes prepared data of what is there."""
    if (data_dir / "train.bin").is_file():
        imported = Path(f"{data_dir}-imported")
        return UserError(
            f"{data_dir} holds token files of another program: it has no {META_FILE}",
            where=str(data_dir),
            remedy="take them in with their tokenizer: "
            + command_line("tiny-transformer", "import", data_dir, "--out_dir", imported, "--tokenizer", "gpt2"),
        )
    return UserError(
        f"{data_dir} holds no prepared data: it has no {META_FILE}",
        where=str(data_dir),
        remedy="make it with: "
        + command_line("tiny-transformer", "prepare", "--source", "YOUR_TEXT", "--out_dir", data_dir),
    )


def token_dtype(vocab_size: int) -> str:
    """The narrowest type that holds every id below `vocab_size`."""
    return "uint16" if vocab_size <= 2**16 else "uint32"


def damaged(file: Path, problem: str, *, offset: int | None = None) -> UserError:
    """The error for a file of prepared data that is not what was written; `offset` in bytes."""
    return UserError(
        f"damaged data: {problem}",
        where=str(file) if offset is None else f"{file}, byte {offset:,}",
        remedy="make it again from its text: "
        + command_line("tiny-transformer", "prepare", "--source", "YOUR_TEXT", "--out_dir", file.parent, "--overwrite"),
        exit_code=ExitCode.BAD_DATA,
    )


def _hash(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
