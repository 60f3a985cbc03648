"""Safetensors files, written piece by piece and read behind a check.

A file is eight bytes (the header's length, little-endian), the header (JSON: a tensor's name -> dtype, shape and the
span of its bytes), then the bytes of all tensors, without gaps. Source: the format's description in its repository. The
header is checked before the library opens a file: sizes first, so that no file costs much.

The library writes to a path only and raises an error of its own for everything, a full disk included. Here the bytes
are handed out instead, the same ones that the library writes, so that `storage` can write them, hash what was meant,
and say why the system refused.
"""

from __future__ import annotations

import json
import math
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from tiny_transformer.errors import ExitCode, UserError

# In the order in which the library writes them: tensors of wide numbers first, so that each begins at a multiple of
# its width.
_NAMES = {
    torch.uint64: "U64",
    torch.int64: "I64",
    torch.float64: "F64",
    torch.float32: "F32",
    torch.uint32: "U32",
    torch.int32: "I32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.uint16: "U16",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
MAX_HEADER_BYTES = 16 * 2**20
MAX_TENSORS = 100_000  # the largest published model, unsharded, has about 92,000
MAX_DIMENSIONS = 8
_ITEM_BYTES = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 1),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 2),
    **dict.fromkeys(("U32", "I32", "F32"), 4),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 8),
}
DAMAGED = "the checkpoint is damaged or half-written; take another one, or fetch it again"


def encode(tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str] | None = None) -> Iterator[Any]:
    """The bytes of a safetensors file: its header, then each tensor's, as they lie in memory.

    Args:
        tensors: on any device, of any strides.
        metadata: notes in the header.

    Raises:
        KeyError: a dtype that the format does not have.
    """
    widths = list(_NAMES)
    ordered = sorted(tensors.items(), key=lambda item: (widths.index(item[1].dtype), item[0]))
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name, tensor in ordered:
        begin, end = end, end + math.prod(tensor.shape) * tensor.element_size()
        header[name] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little") + text
    for _, tensor in ordered:
        if tensor.numel():
            flat = tensor.detach().cpu().contiguous().reshape(-1)
            yield memoryview(flat.view(torch.uint8).numpy())


@contextmanager
def reading(path: Path) -> Generator[None]:
    """Turns whatever the library or the system says about a safetensors file into a UserError (BAD_DATA)."""
    try:
        yield
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise UserError(
            f"cannot read {path.name}: {error}", where=str(path), remedy=DAMAGED, exit_code=ExitCode.BAD_DATA
        ) from None


def open_checked(path: Path, device: str = "cpu") -> Any:
    """The library's view of a file whose header has been checked first; a context manager.

    Raises:
        UserError: what is wrong with it.
    """
    with reading(path):
        check_header(path)
        return safe_open(path, framework="pt", device=device)


def load_tensors(path: Path, device: str = "cpu") -> dict[str, torch.Tensor]:
    """All tensors of a file. Errors as in `open_checked`."""
    with open_checked(path, device) as opened, reading(path):
        return {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - it is no mapping


# --- the header of a file from elsewhere
# -------------------------------------------------------------------------------------


def check_header(path: Path) -> None:
    """Refuse a file whose header is not what the format says, or does not describe the bytes that follow it.

    Raises:
        ValueError: what is wrong, in words for the user.
        OSError: the system refuses to read it.
    """
    if not path.is_file():
        raise ValueError("not a regular file" if path.exists() else "no such file")
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(0)
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > size - 8:
            raise ValueError(f"it has {size:,} bytes, too few for its header; it was cut short or never was one")
        if length > MAX_HEADER_BYTES:
            raise ValueError(f"its header has {length:,} bytes; at most {MAX_HEADER_BYTES:,} are read")
        raw = file.read(length)
    header = _parse(raw)
    spans = [_span(name, entry) for name, entry in header.items()]
    end = 0
    for start, stop, name in sorted(spans):
        if start != end:
            raise ValueError(f"the bytes of tensor {name[:60]!r} do not begin where the ones before it end")
        end = stop
    if end != size - 8 - length:
        raise ValueError(f"its tensors take {end:,} bytes, but {size - 8 - length:,} follow the header")


def _parse(raw: bytes) -> dict[str, Any]:
    """The header's tensors; its size in objects is bounded before it is parsed, as each byte can become dozens."""
    for sign, most in ((b"{", 1), (b"[", 2), (b'":', 4)):
        if raw.count(sign) > most * (MAX_TENSORS + 100):
            raise ValueError(f"its header describes more than {MAX_TENSORS:,} tensors")
    try:
        header = json.loads(raw.decode("utf-8"), object_pairs_hook=_without_repeats)
    except UnicodeDecodeError as error:
        raise ValueError(f"its header is not UTF-8 (byte {8 + error.start})") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"its header is not JSON ({error.msg} at byte {8 + error.pos})") from None
    except RecursionError:
        raise ValueError("its header is nested too deeply") from None
    if not isinstance(header, dict):
        raise ValueError("its header is not a JSON object")
    notes = header.pop("__metadata__", {})
    if not isinstance(notes, dict) or not all(isinstance(note, str) for note in notes.values()):
        raise ValueError("its __metadata__ is not a mapping from text to text")
    return header


def _span(name: str, entry: Any) -> tuple[int, int, str]:
    """Where a tensor's bytes start and stop, once they are as many as its shape asks for."""
    whose = f"tensor {name[:60]!r}"
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"{whose} has not exactly dtype, shape and data_offsets")
    dtype, shape, span = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _ITEM_BYTES:
        raise ValueError(f"{whose} has an unknown dtype: {str(dtype)[:20]!r}")
    if not _are_sizes(shape) or len(shape) > MAX_DIMENSIONS:
        raise ValueError(f"{whose} has an impossible shape")
    if not _are_sizes(span) or len(span) != 2:
        raise ValueError(f"{whose} has data_offsets that are not two positions")
    expected = math.prod(shape) * _ITEM_BYTES[dtype]
    if span[1] - span[0] != expected:
        raise ValueError(f"{whose} takes {span[1] - span[0]:,} bytes, its shape and dtype ask for {expected:,}")
    return span[0], span[1], name


def _are_sizes(values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is int and 0 <= value < 2**62 for value in values)


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("its header has a key twice")
    return value
