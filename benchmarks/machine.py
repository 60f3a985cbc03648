"""On what a benchmark ran, and where its figures are kept."""

from __future__ import annotations

import json
import os
import platform
import re
from collections.abc import Iterable
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

CORES = os.cpu_count() or 1


def machine(packages: Iterable[str], device: str | None = None) -> dict[str, Any]:
    """Date, device, load and the versions of `packages`; `device` is the CPU's name unless given."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": device or _cpu(),
        "cores": CORES,
        "load": _load(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in packages},
    }


def keep(name: str, results: dict[str, Any]) -> Path:
    """Write results to results/NAME-DATE-DEVICE.json, with the load by now; `results["machine"]` is `machine()`."""
    about = results["machine"]
    about["load_at_the_end"] = _load()
    device = re.sub(r"\(\w+\)|[^\w-]+", " ", about["device"]).split()
    path = Path(__file__).parent / "results" / f"{name}-{about['date'][:10]}-{'-'.join(device[:3])}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(results, indent=1) + "\n")
    return path


def _load() -> list[float]:
    return [round(value, 2) for value in os.getloadavg()]


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
