"""Small checkpoints that people really use, in their published shape and form: fewer layers and narrower, with random
weights, but with each feature that tells them apart, `config.json` in the words of transformers 4, and their tokenizer.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from published_forms import write_tokenizer

SMALL = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "vocab_size": 704}
# name -> tokenizer, class, arguments
SHAPES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "Qwen3-0.6B": (
        "qwen3",
        "Qwen3Config",
        {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32, "tie_word_embeddings": True}
        | {"max_position_embeddings": 40960, "rope_theta": 1e6, "sliding_window": None, "max_window_layers": 28},
    ),
    "Qwen2.5-0.5B": (
        "qwen2.5",
        "Qwen2Config",
        {"num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": True, "rope_theta": 1e6}
        | {"max_position_embeddings": 32768, "sliding_window": 32768, "max_window_layers": 21},
    ),
    "SmolLM2-135M": (
        "smollm2",
        "LlamaConfig",
        {"num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": True, "rope_theta": 100000.0}
        | {"max_position_embeddings": 8192, "rms_norm_eps": 1e-5},
    ),
    "TinyLlama-1.1B": (
        "tinyllama",
        "LlamaConfig",
        {"num_attention_heads": 8, "num_key_value_heads": 1, "max_position_embeddings": 2048, "rms_norm_eps": 1e-5},
    ),
    "Llama-3.2-1B": (
        "llama3",
        "LlamaConfig",
        {"num_attention_heads": 4, "num_key_value_heads": 1, "tie_word_embeddings": True, "head_dim": 16}
        | {"max_position_embeddings": 131072, "rope_theta": 500000.0, "rms_norm_eps": 1e-5}
        # Of the released 8,192 tokens the first twenty would show nothing.
        | {"rope_scaling": {"factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0, "rope_type": "llama3"}},
    ),
    "OLMo-2-1B": (
        "olmo2",
        "Olmo2Config",
        {"num_attention_heads": 4, "num_key_value_heads": 4, "max_position_embeddings": 4096, "rope_theta": 500000.0},
    ),
}
SAMPLING = {
    "Qwen3-0.6B": {"do_sample": True, "temperature": 0.6, "top_k": 20, "top_p": 0.95},
    "Qwen2.5-0.5B": {"do_sample": True, "temperature": 0.7, "top_k": 20, "top_p": 0.8, "repetition_penalty": 1.1},
    "Llama-3.2-1B": {"do_sample": True, "temperature": 0.6, "top_p": 0.9},
}
ORIGINAL_LENGTH = 64


def publish(name: str, directory: Path, transformers: Any) -> Any:
    """Write one of `SHAPES` as its repository has it; transformers' model of it, in float32."""
    tokenizer, class_name, arguments = SHAPES[name]
    write_tokenizer(tokenizer, directory)
    if scaling := arguments.get("rope_scaling"):
        arguments = {**arguments, "rope_scaling": {**scaling, "original_max_position_embeddings": ORIGINAL_LENGTH}}
    torch.manual_seed(0)
    config = getattr(transformers, class_name)(**SMALL, **arguments)
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    added = {token["content"]: token["id"] for token in _read(directory / "tokenizer.json")["added_tokens"]}
    told = _read(directory / "tokenizer_config.json")
    end = added[told["eos_token"]]
    ends = [end, added["<|endoftext|>"]] if name.startswith("Qwen") else end
    model.save_pretrained(directory)
    ids = {"bos_token_id": added.get(told["bos_token"]), "eos_token_id": ends}
    generation = {**ids, **SAMPLING.get(name, {}), "transformers_version": "4.51.0"}
    if told.get("pad_token"):
        generation["pad_token_id"] = added[told["pad_token"]]
    hf = _read(directory / "config.json")
    rope = hf.pop("rope_parameters")
    hf |= {"rope_theta": rope.pop("rope_theta"), "torch_dtype": hf.pop("dtype"), "transformers_version": "4.51.0"}
    hf["rope_scaling"] = None if rope["rope_type"] == "default" else rope
    hf |= {"bos_token_id": ids["bos_token_id"], "eos_token_id": end}
    hf.pop("layer_types", None)
    (directory / "config.json").write_text(json.dumps(hf, indent=2))
    (directory / "generation_config.json").write_text(json.dumps(generation, indent=2))
    return transformers.AutoModelForCausalLM.from_pretrained(directory).eval()


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))
