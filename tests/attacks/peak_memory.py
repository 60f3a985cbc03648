"""How much memory this process has had at the most."""

from __future__ import annotations

import resource
from pathlib import Path


def peak_kib(*, reset: bool = False) -> int:
    """The most memory this process has had, or, where the system can reset that, has had since it was reset."""
    if not Path("/proc/self/clear_refs").exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    return int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0])
