"""OLMo 2."""

from tiny_transformer.models.olmo2.model import Olmo2ForCausalLM as Model

__all__ = ["Model"]
