"""The classic decoder: `model.py` holds the whole architecture."""

from tiny_transformer.models.llama.model import LlamaForCausalLM as Model

__all__ = ["Model"]
