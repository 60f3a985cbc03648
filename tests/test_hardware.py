"""What hardware.py promises about memory."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

TENSORS_COME_AND_GO = """
import resource, sys, torch
from tiny_transformer.hardware import keep_freed_memory
if sys.argv[1] == "kept":
    keep_freed_memory()
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
torch.ones(10_000_000)
before = faults()
for _ in range(20):
    torch.ones(10_000_000)  # 40 MB: about 10,000 pages of 4 KiB
print(faults() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc hands blocks back one by one")
def test_freed_memory_is_kept_for_the_next_tensor():
    faults = {
        how: int(
            subprocess.run(
                [sys.executable, "-c", TENSORS_COME_AND_GO, how], capture_output=True, text=True, check=True
            ).stdout
        )
        for how in ("returned", "kept")
    }
    if faults["returned"] < 20 * 1000:
        pytest.skip("this system's pages are huge: there is little to save")
    assert faults["kept"] < 0.6 * faults["returned"]
