"""Safetensors files, written piece by piece and read behind a check.

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
from tiny_transformer.models.safetensors_header import check_header

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
