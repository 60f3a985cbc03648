"""Which device computes, in which precision: chosen once, said once.

The environment variable `TINY_TRANSFORMER_BF16` overrules what is known of the device: `hide` makes every device one
without bf16 arithmetic, `grant` makes every device one with it, emulated and slow where the hardware lacks it. It is
there for tests, so that both kinds of machine can be tried on either.
"""

from __future__ import annotations

import ctypes
import os
import platform
import sys
from dataclasses import dataclass
from functools import cache

import torch

from tiny_transformer.errors import UserError

BF16_SWITCH = "TINY_TRANSFORMER_BF16"


@dataclass(frozen=True)
class Hardware:
    """Where and how the tensors are computed.

    Attributes:
        device: the torch device.
        autocast_dtype: matrix products run in this type (weights stay fp32); None means fp32 throughout.
        note: one line for the user when the choice is not the one asked for, or worth knowing.
    """

    device: torch.device
    autocast_dtype: torch.dtype | None
    note: str | None = None

    @property
    def precision(self) -> str:
        """`fp32`, `bf16` or `fp16`."""
        return {None: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}[self.autocast_dtype]

    @property
    def update_dtype(self) -> torch.dtype:
        """Of the products that make an update (Muon's): bf16 in a run that multiplies in half precision, where the
        device is fast at it; else fp32."""
        is_half = self.autocast_dtype is not None and has_fast_bf16(self.device)
        return torch.bfloat16 if is_half else torch.float32

    def autocast(self) -> torch.autocast:
        """A context in which matrix products run in the chosen precision."""
        return torch.autocast(self.device.type, self.autocast_dtype, enabled=self.autocast_dtype is not None)

    def describe(self) -> str:
        """For the terminal and the report: `cpu (2 threads), fp32`."""
        if self.device.type == "cuda":
            return f"{torch.cuda.get_device_name(self.device)}, {self.precision}"
        if self.device.type == "mps":
            return f"Apple {platform.machine()} GPU (MPS), {self.precision}"
        return f"cpu ({torch.get_num_threads()} threads), {self.precision}"


def choose_hardware(device: str = "auto", precision: str = "auto") -> Hardware:
    """Find the device and precision for a run.

    Args:
        device: `auto`, `cpu`, `cuda` or `mps`.
        precision: `fp32`; `bf16` or `fp16` where the device multiplies it in hardware; `auto` takes bf16 on such a
            device if its products pass a check against float64, else fp32.

    Raises:
        UserError: the device asked for is not there, or `TINY_TRANSFORMER_BF16` has an unknown value.
    """
    chosen = _choose_device(device)
    if precision == "auto":
        precision = "bf16" if has_fast_bf16(chosen) and agrees_with_float64(chosen, torch.bfloat16) else "fp32"
    if precision == "fp32":
        return Hardware(chosen, None)
    if not (has_fast_bf16 if precision == "bf16" else has_fast_fp16)(chosen):
        why = f"this {chosen.type} has no {precision} arithmetic in hardware (it would be slower)"
        if precision == "bf16" and _bf16_switch() == "hide":
            why = f"{BF16_SWITCH}=hide"
        return Hardware(chosen, None, f"{why}: using fp32")
    return Hardware(chosen, torch.bfloat16 if precision == "bf16" else torch.float16)


def _choose_device(name: str) -> torch.device:
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return torch.device(next(kind for kind, there in available.items() if there))
    if not available.get(name):
        there = ", ".join(kind for kind, ok in available.items() if ok)
        raise UserError(f"there is no {name} device here", remedy=f"device=auto, or one of: {there}")
    return torch.device(name)


def has_fast_bf16(device: torch.device) -> bool:
    """Whether the device multiplies bf16 matrices in hardware (on a CPU: AVX512-BF16 or AMX instructions), or is to be
    taken for one that does, or does not: see `TINY_TRANSFORMER_BF16` above.

    Raises:
        UserError: the variable has another value than `hide` or `grant`.
    """
    switch = _bf16_switch()
    return switch == "grant" if switch else _multiplies_bf16(device)


def _bf16_switch() -> str:
    """`hide`, `grant`, or nothing: read anew each time, for tests change it."""
    value = os.environ.get(BF16_SWITCH, "")
    if value not in ("", "hide", "grant"):
        raise UserError(f"{BF16_SWITCH}={value} is neither hide nor grant", where="environment", remedy="unset it")
    return value


@cache
def _multiplies_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "mps":
        return False
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


@cache
def has_fast_fp16(device: torch.device) -> bool:
    """Whether the device multiplies fp16 matrices in hardware (on a CPU: AVX512-FP16 or AMX instructions)."""
    capabilities = torch.cpu.get_capabilities()
    return device.type in ("cuda", "mps") or bool(capabilities.get("avx512_fp16") or capabilities.get("amx_fp16"))


@cache
def agrees_with_float64(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether a matrix product in `dtype` is as near to the one in float64 as its rounding allows: a device that is
    fast and wrong would spoil a run without a word."""
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(256, 256, generator=generator, dtype=torch.float64) for _ in range(2))
    left, right = left.to(dtype).double(), right.to(dtype).double()  # the rounding of the inputs is not in question
    exact = left @ right
    product = (left.to(device, dtype) @ right.to(device, dtype)).cpu().double()
    return bool((product - exact).norm() <= torch.finfo(dtype).eps * exact.norm())


def keep_freed_memory() -> None:
    """Let the C library keep the memory that tensors hand back, for the next tensors.

    glibc takes each large block from the system and returns it when it is freed; a training step does so hundreds of
    times, and the system has to fill every page with zeros again (about a tenth of a step on a CPU). Elsewhere than on
    Linux with glibc this does nothing. The parameters are those of mallopt(3).
    """
    if sys.platform != "linux" or platform.libc_ver()[0] != "glibc":
        return
    m_trim_threshold, m_top_pad, m_mmap_max = -1, -2, -4
    libc = ctypes.CDLL(None)
    libc.mallopt(m_mmap_max, 0)
    libc.mallopt(m_trim_threshold, 2**31 - 1)
    libc.mallopt(m_top_pad, 64 * 2**20)
