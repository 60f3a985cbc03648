"""A GGUF file's keys and the places of its tensors, read as a stranger's file: numbers are judged before they are used.

A file is a magic, a version, two counts, key/value pairs, one record per tensor (name, shape, type, offset), and then
the tensors' bytes, each beginning at a multiple of the alignment. All numbers are little-endian; shapes have the
fastest axis first. Source: the format's description in the ggml repository. No torch, and not the `gguf` package, whose
reader believes the counts it finds.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tiny_transformer.errors import ExitCode, UserError

MAX_HEADER_BYTES = 64 * 2**20  # the largest published vocabularies take about 20 MB
MAX_TENSORS, MAX_KEYS = 100_000, 10_000
MAX_ENTRIES = 2**20  # of one list of numbers, and of all lists of texts together: published vocabularies have up to
# 262,144 tokens and 514,906 merges
MAX_TEXT_BYTES = 2**20  # of a text that is no list's entry; chat templates have up to 100,000
MAX_NAME_BYTES, MAX_DIMENSIONS = 256, 4
VERSIONS = (2, 3)  # version 1 counted in 32 bits and was replaced within weeks
_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_LENGTH = struct.Struct("<Q")
# Tensor types that are read: number in the file -> name, weights in a block, bytes of a block.
_TENSOR_TYPES = {0: ("F32", 1, 4), 1: ("F16", 1, 2), 2: ("Q4_0", 32, 18), 8: ("Q8_0", 32, 34), 30: ("BF16", 1, 2)}


@dataclass(frozen=True)
class GgufTensor:
    """Where a tensor's bytes are.

    Attributes:
        type: `F32`, `F16`, `BF16`, `Q8_0` or `Q4_0`.
        shape: slowest axis first, as torch has it.
        start, num_bytes: in the file.
    """

    type: str
    shape: tuple[int, ...]
    start: int
    num_bytes: int


@dataclass(frozen=True)
class Passed:
    """A list that nobody asked for: its length stands in the place of its entries."""

    length: int


def read_gguf_header(path: Path, lists: frozenset[str] = frozenset()) -> tuple[dict[str, Any], dict[str, GgufTensor]]:
    """The keys (numbers, booleans, text, lists of them) and the tensors of a file, by name.

    Args:
        path: of the file.
        lists: the names of keys whose lists are wanted; other lists are passed over by their size.

    Raises:
        UserError: not such a file, one that describes other bytes than follow, or a tensor of a type not read here.
    """
    try:
        if not path.is_file():
            raise ValueError("it is not a regular file" if path.exists() else "there is no such file")
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(0)
            return _Header(file.read(min(size, MAX_HEADER_BYTES)), size, lists).parse()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}", exit_code=ExitCode.IO) from None
    except ValueError as error:
        raise UserError(
            f"not a GGUF file that can be read here: {error}",
            where=str(path),
            remedy="fetch it again, or import the Hugging Face directory it was made from",
            exit_code=ExitCode.BAD_DATA,
        ) from None


def read_gguf_tensor(path: Path, tensor: GgufTensor) -> np.ndarray:
    """A tensor's weights in float32, quantized ones at the value that their block gives them."""
    with path.open("rb") as file:
        file.seek(tensor.start)
        raw = file.read(tensor.num_bytes)
    match tensor.type:
        case "F32":
            weights = np.frombuffer(raw, "<f4").astype("=f4")
        case "F16":
            weights = np.frombuffer(raw, "<f2").astype("=f4")
        case "BF16":
            weights = (np.frombuffer(raw, "<u2").astype("=u4") << 16).view("=f4")
        case _:
            integers, scales = _blocks(raw, tensor.type)
            weights = integers * scales.astype("=f4")
    return weights.reshape(tensor.shape)


def read_gguf_blocks(path: Path, tensor: GgufTensor) -> tuple[np.ndarray, np.ndarray]:
    """The integers (..., K) int8 of a Q8_0 or Q4_0 tensor, -128 to 127 or -8 to 7, and the scale of each 32 of them,
    (..., K / 32) float16."""
    with path.open("rb") as file:
        file.seek(tensor.start)
        integers, scales = _blocks(file.read(tensor.num_bytes), tensor.type)
    return integers.reshape(tensor.shape), scales.reshape(*tensor.shape[:-1], -1)


def _blocks(raw: bytes, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """Blocks of 32 weights: a float16 scale, then 32 signed bytes (Q8_0) or 16 bytes of two numbers 0 to 15 (Q4_0).

    Returns:
        Integers (blocks, 32) int8 and scales (blocks, 1) float16.
    """
    blocks = np.frombuffer(raw, "u1").reshape(-1, 34 if kind == "Q8_0" else 18)
    scales = blocks[:, :2].copy().view("<f2").astype("=f2")
    if kind == "Q8_0":
        return blocks[:, 2:].view("i1"), scales
    pairs = blocks[:, 2:]  # the low halves are the first sixteen weights
    return np.concatenate((pairs & 15, pairs >> 4), axis=1).astype("i1") - np.int8(8), scales


def _decoded(raw: bytes, start: int) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"text that is not UTF-8 at byte {start + error.start:,}") from None


class _Header:
    """A cursor over a file's first bytes. Every method raises ValueError in words for the user."""

    def __init__(self, raw: bytes, size: int, lists: frozenset[str]) -> None:
        self.raw, self.size, self.lists, self.at = raw, size, lists, 0
        self.num_texts = 0  # in lists so far

    def parse(self) -> tuple[dict[str, Any], dict[str, GgufTensor]]:
        if self.take(4) != b"GGUF":
            raise ValueError("it does not begin with GGUF")
        version = self.number("I")
        if version not in VERSIONS:
            raise ValueError(f"its version is {version}; {VERSIONS[0]} and {VERSIONS[1]} are read")
        num_tensors, num_keys = self.number("Q"), self.number("Q")
        if num_tensors > MAX_TENSORS or num_keys > MAX_KEYS:
            raise ValueError(
                f"it claims {num_tensors:,} tensors and {num_keys:,} keys; at most {MAX_TENSORS:,} and {MAX_KEYS:,}"
            )
        keys: dict[str, Any] = {}
        for _ in range(num_keys):
            name = self.new_name(keys)
            keys[name] = self.value(self.number("I"), name)
        records: dict[str, tuple[str, tuple[int, ...], int, int]] = {}
        for _ in range(num_tensors):
            name = self.new_name(records)
            records[name] = self.tensor_record(name)
        return keys, self.placed(records, keys.get("general.alignment", 32))

    def pass_over(self, count: int) -> int:
        """Where the bytes passed over began."""
        if count > len(self.raw) - self.at:
            limit = "it ends" if len(self.raw) == self.size else f"the {MAX_HEADER_BYTES:,} bytes read for it end"
            raise ValueError(f"{limit} inside its header, where {count:,} more bytes should be")
        self.at += count
        return self.at - count

    def take(self, count: int) -> bytes:
        start = self.pass_over(count)
        return self.raw[start : self.at]

    def number(self, kind: str) -> Any:
        return struct.unpack(f"<{kind}", self.take(struct.calcsize(f"<{kind}")))[0]

    def text(self, most: int = MAX_TEXT_BYTES) -> str:
        length = self.number("Q")
        if length > most:
            raise ValueError(f"a text of {length:,} bytes where at most {most:,} can be")
        return _decoded(self.take(length), self.at - length)

    def new_name(self, known: dict[str, Any]) -> str:
        name = self.text(MAX_NAME_BYTES)
        if name in known:
            raise ValueError(f"{name[:60]!r} stands there twice")
        return name

    def value(self, kind: int, name: str) -> Any:
        if kind in _NUMBERS:
            return self.number(_NUMBERS[kind])
        if kind == _STRING:
            return self.text()
        if kind != _ARRAY:
            raise ValueError(f"key {name[:60]!r} is of unknown type {kind}")
        kind, count = self.number("I"), self.number("Q")
        if kind not in _NUMBERS and kind != _STRING:
            raise ValueError(f"key {name[:60]!r} is a list of lists or of unknown things (type {kind})")
        if count > MAX_ENTRIES:
            raise ValueError(f"key {name[:60]!r} has {count:,} entries; at most {MAX_ENTRIES:,}")
        if kind == _STRING:
            return self.texts(count, wanted=name in self.lists)
        form = f"<{count}{_NUMBERS[kind]}"
        start = self.pass_over(struct.calcsize(form))
        return list(struct.unpack_from(form, self.raw, start)) if name in self.lists else Passed(count)

    def texts(self, count: int, *, wanted: bool) -> list[str] | Passed:
        """A list of texts, each with its length before it."""
        self.num_texts += count
        if self.num_texts > MAX_ENTRIES:
            raise ValueError(f"its lists have {self.num_texts:,} texts or more; at most {MAX_ENTRIES:,}")
        at, last, found = self.at, len(self.raw) - _LENGTH.size, []
        for _ in range(count):
            if at > last:
                self.pass_over(at + _LENGTH.size - self.at)  # says that the next length lies beyond the header
            start = at + _LENGTH.size
            at = start + _LENGTH.unpack_from(self.raw, at)[0]
            if wanted:
                found.append(_decoded(self.raw[start:at], start))
        self.pass_over(at - self.at)
        return found if wanted else Passed(count)

    def tensor_record(self, name: str) -> tuple[str, tuple[int, ...], int, int]:
        """Type, shape, offset, number of bytes."""
        dimensions = self.number("I")
        if not 1 <= dimensions <= MAX_DIMENSIONS:
            raise ValueError(f"tensor {name[:60]!r} has {dimensions} dimensions; 1 to {MAX_DIMENSIONS}")
        shape = struct.unpack(f"<{dimensions}Q", self.take(8 * dimensions))
        kind, offset = self.number("I"), self.number("Q")
        if kind not in _TENSOR_TYPES:
            known = ", ".join(known for known, _, _ in _TENSOR_TYPES.values())
            raise ValueError(f"tensor {name[:60]!r} is of type {kind}; read are {known}")
        word, per_block, block_bytes = _TENSOR_TYPES[kind]
        if not all(0 < n < 2**40 for n in shape) or shape[0] % per_block:
            raise ValueError(f"tensor {name[:60]!r} has an impossible shape for {word}")
        return word, shape[::-1], offset, math.prod(shape) // per_block * block_bytes

    def placed(
        self, records: dict[str, tuple[str, tuple[int, ...], int, int]], alignment: Any
    ) -> dict[str, GgufTensor]:
        """The tensors in the file, once their spans follow each other with nothing but padding between them."""
        if type(alignment) is not int or not 0 < alignment <= 2**16 or alignment & (alignment - 1):
            raise ValueError("general.alignment is not a power of two up to 65,536")
        begin = -(-self.at // alignment) * alignment
        end, tensors = begin, {}
        for name, (word, shape, offset, num_bytes) in sorted(records.items(), key=lambda item: item[1][2]):
            start = begin + offset
            if start != -(-end // alignment) * alignment:
                raise ValueError(f"the bytes of tensor {name[:60]!r} do not begin where the ones before it end")
            end = start + num_bytes
            if end > self.size:
                raise ValueError(f"the bytes of tensor {name[:60]!r} end at {end:,}, and the file at {self.size:,}")
            tensors[name] = GgufTensor(word, shape, start, num_bytes)
        if self.size - end >= alignment and records:
            raise ValueError(f"{self.size - end:,} bytes follow its last tensor")
        return tensors
