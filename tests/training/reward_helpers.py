"""A tiny run that learns from rewards, for tests: questions, a config."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tuning_helpers import tuning_tree


def write_questions(path: Path, count: int = 40) -> Path:
    """Questions, and beside them the verifier `even.py`, which likes half of all characters."""
    rows = [{"question": f"hen {n}", "answer": "ab"[n % 2]} for n in range(count)]
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    even = "def share(prompt, text):\n    return sum(ord(letter) % 2 for letter in text) / max(1, len(text))\n"
    (path.parent / "even.py").write_text(even, encoding="utf-8")
    return path


def reward_tree(base: Path, source: Path, out_dir: Path, **changes: Any) -> dict[str, Any]:
    """The config of the run; `training` and other sections are added to it."""
    grpo = {
        "verifier": f"{source.parent}/even.py:share",
        "group_size": 4,
        "max_new_tokens": 5,
        **changes.pop("grpo", {}),
    }
    training = {"micro_batch_size": 8, "learning_rate": 1e-3, **changes.pop("training", {})}
    tree = tuning_tree(base, source, out_dir, training=training, stage="align", grpo=grpo, **changes)
    tree["data"].pop("seq_len")
    return tree | {"align": {"method": "grpo", **changes.get("align", {})}}
