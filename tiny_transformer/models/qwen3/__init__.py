"""Qwen3: `model.py` holds the whole architecture."""

from tiny_transformer.models.qwen3.model import Qwen3ForCausalLM as Model

__all__ = ["Model"]
