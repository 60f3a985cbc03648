"""Adds a family to a copy of the package, as docs/ADD_A_MODEL.md says and no further: three files and a line.

The model is Qwen3's under another name. Its shape answers none of the questions about other programs, costs or sizes.
"""

from __future__ import annotations

import shutil
from pathlib import Path

SHAPE = '''"""The shape of a toy."""

from typing import Any, ClassVar, Literal

from tiny_transformer.config.shapes.decoder import HF_DEFAULTS, HF_RMS, DecoderConfig, HfForm

SIZES = {"vocab_size": 300, "intermediate_size": 64, "max_position_embeddings": 64}


class ToyConfig(DecoderConfig):
    """A toy."""

    hf_forms: ClassVar = {"toy": HfForm({**HF_DEFAULTS, **HF_RMS, **SIZES, "attention_bias": False})}

    model_type: Literal["toy"] = "toy"
    """Which architecture; decides which other keys exist."""

    def to_hf(self, *, dtype: str = "float32", **token_ids: int | list[int] | None) -> dict[str, Any]:
        return {"model_type": "toy", "architectures": ["ToyForCausalLM"], **self.shared_hf(dtype, token_ids)}
'''
INIT = '''"""A toy."""

from tiny_transformer.models.toy.model import ToyForCausalLM as Model

__all__ = ["Model"]
'''


def add_toy_family(repository: Path, root: Path) -> None:
    """Copy the package to `root` and add the family `toy` there."""
    package = root / "tiny_transformer"
    shutil.copytree(repository / "tiny_transformer", package, ignore=shutil.ignore_patterns("__pycache__"))
    model = (package / "models/qwen3/model.py").read_text(encoding="utf-8").replace("Qwen3", "Toy")
    windows = '[config.sliding_window if t == "sliding_attention" else None for t in config.layer_types]'
    assert windows in model
    (package / "models/toy").mkdir()
    (package / "models/toy/model.py").write_text(model.replace(windows, "[None] * config.num_hidden_layers"))
    (package / "models/toy/__init__.py").write_text(INIT)
    (package / "config/shapes/toy.py").write_text(SHAPE)
    shapes = package / "config/shapes/__init__.py"
    text = shapes.read_text(encoding="utf-8")
    old, line = (
        "from tiny_transformer.config.shapes.qwen3 import",
        "from tiny_transformer.config.shapes.toy import ToyConfig",
    )
    assert text.count(old) == 1 and text.count("\nShape = ") == 1
    text = text.replace(old, f"{line}\n{old}").replace("\nShape = ", "\nShape = ToyConfig | ")
    shapes.write_text(text, encoding="utf-8")
