"""Models with swapped layers go out as ordinary ones, and come in as they are."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tiny_transformer.config.shapes import Qwen3Config
from tiny_transformer.interop.gguf.exporting import export_gguf
from tiny_transformer.interop.gguf.importing import import_gguf
from tiny_transformer.interop.hf import import_hf
from tiny_transformer.models import build_model, load_model, save_model
from tiny_transformer.models.swaps import add_lora, quantize_layers
from tiny_transformer.tokenizers import make_tokenizer

SHAPE = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}


@pytest.fixture
def swapped(tmp_path: Path) -> Path:
    tokenizer = make_tokenizer("byte")
    model = build_model(Qwen3Config(vocab_size=tokenizer.vocab_size, initializer_range=0.2, **SHAPE), seed=0)
    quantize_layers(model, "int8")
    add_lora(model, ["q_proj"], rank=2, alpha=4)
    (tmp_path / "swapped").mkdir()
    save_model(model, tmp_path / "swapped", eos_token_id=tokenizer.end_id, bos_token_id=3)
    tokenizer.save(tmp_path / "swapped")
    return tmp_path / "swapped"


def logits(directory: Path) -> torch.Tensor:
    with torch.no_grad():
        return load_model(directory)(torch.arange(20)[None])


def test_a_gguf_file_holds_ordinary_weights(swapped, tmp_path):
    pytest.importorskip("gguf")
    export_gguf(swapped, tmp_path / "x.gguf", kind="f32")
    import_gguf(tmp_path / "x.gguf", tmp_path / "back")
    torch.testing.assert_close(logits(tmp_path / "back"), logits(swapped), rtol=0, atol=2e-5)
    assert "model.layers.0.self_attn.q_proj.weight" in load_file(tmp_path / "back" / "model.safetensors")


def test_an_import_keeps_swapped_layers_and_token_ids(swapped, tmp_path):
    import_hf(swapped, tmp_path / "ours")
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "ours" / name).read_bytes() == (swapped / name).read_bytes()
    assert json.loads((tmp_path / "ours" / "config.json").read_text())["base_config"]["bos_token_id"] == 3
    assert torch.equal(logits(tmp_path / "ours"), logits(swapped))
