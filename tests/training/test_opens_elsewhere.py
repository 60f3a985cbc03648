"""What training saves is a Hugging Face model directory: transformers opens it and writes the same greedy text."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from run_helpers import run_tiny

from tiny_transformer.generation.sampling import SamplingConfig
from tiny_transformer.generation.text import complete
from tiny_transformer.models import load_model
from tiny_transformer.tokenizers import load_tokenizer

PROMPT = "Once upon a time"


def test_transformers_writes_the_same_greedy_text(tiny_data: Path, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    run_tiny(tiny_data, tmp_path / "r")
    checkpoint = tmp_path / "r/last"
    ours = complete(
        load_model(checkpoint), load_tokenizer(checkpoint), [PROMPT], SamplingConfig(temperature=0, max_new_tokens=30)
    )[0]
    tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint)
    model = transformers.AutoModelForCausalLM.from_pretrained(checkpoint)
    inputs = tokenizer(PROMPT, return_tensors="pt")
    with torch.inference_mode():
        output = model.generate(**inputs, max_new_tokens=30, do_sample=False, pad_token_id=tokenizer.eos_token_id)
    new_ids = output[0, inputs["input_ids"].shape[1] :]
    assert tokenizer.decode(new_ids, skip_special_tokens=True) == ours
    assert len(ours) > 5
