"""Documents packed into rows give the loss of each token that the documents give one by one, with either model."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from tiny_transformer.config.shapes import LlamaConfig, Qwen3Config
from tiny_transformer.data.batches import IGNORE_INDEX, evaluation_batches
from tiny_transformer.data.token_file import TokenFile
from tiny_transformer.models import build_model

SHAPE = {
    "vocab_size": 50,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}


@pytest.mark.parametrize("config", [LlamaConfig(**SHAPE), Qwen3Config(**SHAPE)], ids=["llama", "qwen3"])
def test_packed_and_separate_documents_give_the_same_losses(tmp_path, config):
    rng = np.random.default_rng(0)
    lengths = [*rng.integers(2, 33, size=30).tolist(), 33]
    tokens = rng.integers(50, size=sum(lengths)).astype("<u2")
    starts = np.cumsum([0, *lengths[:-1]])
    (tmp_path / "val.bin").write_bytes(tokens.tobytes())
    (tmp_path / "val.docs").write_bytes(starts.astype("<u8").tobytes())
    torch.manual_seed(0)
    model = build_model(config, seed=0).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # away from initial values, at which attention is nearly uniform
            parameter.add_(0.2 * torch.randn_like(parameter))

    def losses(labels: torch.Tensor, **batch: torch.Tensor | None) -> torch.Tensor:
        with torch.no_grad():
            logits = model(**batch)
        return F.cross_entropy(logits.transpose(1, 2), labels, ignore_index=IGNORE_INDEX, reduction="none")

    packed = []
    file = TokenFile(tmp_path / "val.bin", dtype="uint16", vocab_size=50)
    for batch in evaluation_batches(file, seq_len=32, batch_size=4, packing="documents"):
        values = losses(batch.labels, input_ids=batch.input_ids, positions=batch.positions, doc_ids=batch.doc_ids)
        packed += values[batch.labels != IGNORE_INDEX].tolist()
    separate = []
    for start, length in zip(starts, lengths, strict=True):
        ids = torch.from_numpy(tokens[start : start + length].astype(np.int64))[None]
        separate += losses(ids[:, 1:], input_ids=ids[:, :-1]).flatten().tolist()
    assert len(packed) == sum(lengths) - len(lengths)
    np.testing.assert_allclose(sorted(packed), sorted(separate), rtol=0, atol=1e-5)
    assert np.std(separate) > 0.5
