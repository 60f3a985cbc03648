"""The shapes of models: a file for each architecture, and the one list of them all.

Field names and meanings are Hugging Face's, and `config.json` is what `to_hf` writes: rotary base, data type and layer
pattern in the forms of transformers 5 and of 4.57, as each ignores the other's keys without a word and only both
together mean the same to both. `config.hf` reads such files. What other rooms need to know of a family they ask its
shape (`decoder.DecoderConfig`). docs/ADD_A_MODEL.md shows how a family is added.
"""

from __future__ import annotations

from typing import Annotated, get_args

from pydantic import Field

from tiny_transformer.config.shapes.decoder import DecoderConfig
from tiny_transformer.config.shapes.llama import LlamaConfig
from tiny_transformer.config.shapes.olmo2 import Olmo2Config
from tiny_transformer.config.shapes.qwen3 import Qwen3Config
from tiny_transformer.config.shapes.qwen3_next import Qwen3NextConfig

# The list. Everything else that names all architectures is made from it.
Shape = LlamaConfig | Qwen3Config | Qwen3NextConfig | Olmo2Config

ModelConfig = Annotated[Shape, Field(discriminator="model_type")]
"""Any model's shape; `model_type` tells which."""

SHAPES: dict[str, type[DecoderConfig]] = {shape.model_fields["model_type"].default: shape for shape in get_args(Shape)}
"""`model_type` of our configs -> the class."""

HF_SHAPES: dict[str, type[DecoderConfig]] = {name: shape for shape in SHAPES.values() for name in shape.hf_forms}
"""`model_type` of Hugging Face's `config.json` -> the class that reads it."""

__all__ = [
    "HF_SHAPES",
    "SHAPES",
    "DecoderConfig",
    "LlamaConfig",
    "ModelConfig",
    "Olmo2Config",
    "Qwen3Config",
    "Qwen3NextConfig",
]
