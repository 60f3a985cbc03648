"""The header of a safetensors file, checked before the library opens it: sizes first, so that no file costs much.

A file is eight bytes (the header's length, little-endian), the header (JSON: a tensor's name -> dtype, shape and the
span of its bytes), then the bytes of all tensors, without gaps. Source: the format's description in its repository.
No torch.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

MAX_HEADER_BYTES = 16 * 2**20
MAX_TENSORS = 100_000  # the largest published model, unsharded, has about 92,000
MAX_DIMENSIONS = 8
_ITEM_BYTES = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 1),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 2),
    **dict.fromkeys(("U32", "I32", "F32"), 4),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 8),
}


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
