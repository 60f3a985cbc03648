"""Qwen3-Next."""

from tiny_transformer.models.qwen3_next.model import Qwen3NextForCausalLM as Model

__all__ = ["Model"]
