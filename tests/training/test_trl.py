"""DPO and ORPO beside TRL's own trainers: the same batch, the same weights, the same losses and gradients."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tiny_transformer.config.shapes import Qwen3Config
from tiny_transformer.data.preferences import PairBatch, answer_rows
from tiny_transformer.models import build_model, load_model, save_model
from tiny_transformer.tokenizers import make_tokenizer
from tiny_transformer.tokenizers.chat import Encoded
from tiny_transformer.training.preferences import dpo_loss, orpo_loss

pytestmark = pytest.mark.slow
trl = pytest.importorskip("trl")

SHAPE: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "vocab_size": 257,
}
SIZES = ((5, 7, 4), (3, 2, 9), (8, 6, 6))  # tokens of question, chosen and rejected answer of each pair


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with its tokenizer."""
    path, tokenizer = tmp_path_factory.mktemp("trl") / "model", make_tokenizer("byte")
    path.mkdir()
    save_model(build_model(Qwen3Config(**SHAPE), seed=3), path, eos_token_id=tokenizer.end_id)
    tokenizer.save(path, max_length=64)
    return path


def batch_of(sizes: tuple[tuple[int, int, int], ...]) -> PairBatch:
    """Random pairs, with made-up log-probabilities of a reference."""
    generator = torch.Generator().manual_seed(5)

    def row(question: int, answer: int) -> Encoded:
        ids = torch.randint(1, 256, (question + answer,), generator=generator).tolist()
        return Encoded(ids, [False] * question + [True] * answer)

    pairs = [(row(q, c), row(q, r)) for q, c, r in sizes]
    reference = -10 * torch.rand(2 * len(sizes), generator=generator)
    weight = len(sizes) / sum(q + c - 1 for q, c, _ in sizes)
    rows = answer_rows([*(chosen for chosen, _ in pairs), *(rejected for _, rejected in pairs)])
    return PairBatch(rows, reference, weight, torch.arange(len(sizes)))


def compare(ours: Any, our_loss: torch.Tensor, theirs: Any, their_loss: torch.Tensor) -> None:
    """Losses and every gradient, to a millionth."""
    assert our_loss.item() == pytest.approx(their_loss.item(), abs=1e-6)
    our_loss.backward()
    their_loss.backward()
    gradients = {name: parameter.grad for name, parameter in theirs.named_parameters() if parameter.grad is not None}
    assert len(gradients) > 20
    for name, parameter in ours.named_parameters():
        assert torch.allclose(parameter.grad, gradients[name], rtol=1e-5, atol=1e-6), name


@pytest.mark.parametrize("beta", [0.1, 0.7])
def test_dpo_is_that_of_trl(beta: float, there: Path, tmp_path: Path) -> None:
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer

    batch, ours = batch_of(SIZES), build_model(Qwen3Config(**SHAPE), seed=3)
    theirs = AutoModelForCausalLM.from_pretrained(there, attn_implementation="eager")
    trainer = trl.DPOTrainer(
        model=theirs,
        ref_model=AutoModelForCausalLM.from_pretrained(there),
        args=trl.DPOConfig(output_dir=str(tmp_path), beta=beta, use_cpu=True, report_to=[], bf16=False),
        train_dataset=Dataset.from_list([{"prompt": "a", "chosen": "b", "rejected": "c"}] * 2),
        processing_class=AutoTokenizer.from_pretrained(there),
    )
    trainer.precompute_ref_logps = True  # the batch brings its own
    trainer.model.train()
    assert batch.reference is not None
    chosen, rejected = batch.reference.chunk(2)
    inputs = {
        "input_ids": batch.rows.ids,
        "attention_mask": batch.rows.is_text.long(),
        "completion_mask": batch.rows.is_answer.long(),
        "ref_chosen_logps": chosen,
        "ref_rejected_logps": rejected,
    }
    our_sum, figures = dpo_loss(ours, batch, beta)
    compare(ours, our_sum / 3, theirs, trainer._compute_loss(trainer.model, inputs, False))
    logged = trainer._metrics["train"]
    assert figures["margin"] / 3 == pytest.approx(logged["rewards/margins"][-1], rel=1e-5, abs=1e-6)
    assert figures["accuracy"] / 3 == pytest.approx(logged["rewards/accuracies"][-1])


def test_trl_goes_on_from_a_directory_of_ours_and_what_it_saves_opens_here(there: Path, tmp_path: Path) -> None:
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer

    trainer = trl.DPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(there),
        ref_model=AutoModelForCausalLM.from_pretrained(there),
        args=trl.DPOConfig(
            output_dir=str(tmp_path), max_steps=2, learning_rate=1e-3, use_cpu=True, report_to=[], bf16=False
        ),
        train_dataset=Dataset.from_list([{"prompt": "a", "chosen": "b", "rejected": "c"}] * 16),
        processing_class=AutoTokenizer.from_pretrained(there),
    )
    trainer.train()
    assert trainer.state.log_history[-1]["step"] == 2
    trainer.save_model(str(tmp_path / "saved"))
    ids = torch.arange(20)[None]
    with torch.no_grad():
        found, expected = load_model(tmp_path / "saved")(ids), trainer.model.eval()(ids).logits
        assert torch.allclose(found, expected, atol=1e-5)
        assert not torch.allclose(found, load_model(there)(ids), atol=1e-3)


@pytest.mark.parametrize("beta", [0.1, 0.7])
def test_orpo_is_that_of_trl(beta: float, there: Path) -> None:
    """Its loss asks its trainer for very little, so that no trainer is made; their batch pads each side by itself."""
    from transformers import AutoModelForCausalLM
    from trl.experimental.orpo import ORPOTrainer

    batch, ours = batch_of(SIZES), build_model(Qwen3Config(**SHAPE), seed=3)
    theirs = AutoModelForCausalLM.from_pretrained(there, attn_implementation="eager")
    trainer: Any = object.__new__(ORPOTrainer)
    accelerator = SimpleNamespace(device=torch.device("cpu"), gather_for_metrics=lambda figures: figures)
    trainer.__dict__ |= {"beta": beta, "is_encoder_decoder": False, "aux_loss_enabled": False, "padding_value": 0}
    trainer.__dict__ |= {"accelerator": accelerator, "_peft_has_been_casted_to_bf16": False}
    inputs = {}
    for name, part in (("chosen", slice(None, 3)), ("rejected", slice(3, None))):
        ids, is_text, is_answer = (t[part] for t in (batch.rows.ids, batch.rows.is_text, batch.rows.is_answer))
        inputs |= {f"{name}_input_ids": ids, f"{name}_attention_mask": is_text.long()}
        inputs[f"{name}_labels"] = torch.where(is_answer, ids, -100)
    their_loss, logged = trainer.get_batch_loss_metrics(theirs, inputs)
    our_sum, figures = orpo_loss(ours, batch, beta)
    compare(ours, our_sum / 3, theirs, their_loss)
    assert figures["cross_entropy"] / 3 == pytest.approx(logged["nll_loss"], abs=1e-6)
    assert figures["margin"] / 3 == pytest.approx(logged["log_odds_chosen"], rel=1e-5, abs=1e-6)
