"""The loss of rewards and its gradient are TRL's on the same tensors; advantages are TRL's too."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from run_helpers import TINY

from tiny_transformer.config.load import load_run_config
from tiny_transformer.models import build_model, save_model
from tiny_transformer.training.policy import PolicyBatch, PolicySettings, advantages_of, policy_loss, written_log_probs

PROMPTS = [[5, 9, 2], [5, 9, 2], [7, 3], [7, 3]]
ANSWERS = [[4, 8, 1, 6], [2, 2], [9], [3, 11, 12]]
TEMPERATURE, LONGEST = 0.7, 6


def batch_of(old: torch.Tensor, reference: torch.Tensor | None, counts_tokens: bool) -> PolicyBatch:
    """The four answers as one batch of ours."""
    rows = [prompt + answer for prompt, answer in zip(PROMPTS, ANSWERS, strict=True)]
    width = max(map(len, rows))
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    places = torch.arange(width)
    begins, ends = (torch.tensor(sizes)[:, None] for sizes in ([len(p) for p in PROMPTS], [len(r) for r in rows]))
    is_written = (places >= begins) & (places < ends)
    advantages = torch.tensor([1.5, -0.5, 0.0, -2.0])
    return PolicyBatch(ids, is_written, old, reference, advantages, torch.arange(4), {}, (4, 10), counts_tokens)


def theirs(rows: list[list[Any]], *, before: bool) -> torch.Tensor:
    """Rows padded as TRL pads them: prompts on the left, answers on the right."""
    width = max(map(len, rows))
    return torch.tensor([[0] * (width - len(row)) + row if before else row + [0] * (width - len(row)) for row in rows])


def unflat(values: torch.Tensor) -> torch.Tensor:
    return theirs([part.tolist() for part in values.split([len(answer) for answer in ANSWERS])], before=False)


@pytest.mark.slow
@pytest.mark.parametrize("kl_weight", [0.0, 0.3])
@pytest.mark.parametrize("loss_type", ["dapo", "grpo", "dr_grpo"])
def test_loss_and_gradient_are_those_of_trl(
    tmp_path: Path, loss_type: Literal["dapo", "grpo", "dr_grpo"], kl_weight: float
) -> None:
    """In float64, with ratios on both sides of both limits."""
    from datasets import Dataset
    from tokenizers import Tokenizer, models
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast
    from trl import GRPOConfig, GRPOTrainer

    model = build_model(load_run_config(TINY | {"model": TINY["model"] | {"vocab_size": 32}}).model, seed=3)
    save_model(model, tmp_path, dict(model.state_dict()))
    their_model = AutoModelForCausalLM.from_pretrained(tmp_path)
    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(32)}, unk_token="w0"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="w0", eos_token="w1")
    config = GRPOConfig(
        output_dir=str(tmp_path / "t"), report_to=[], use_cpu=True, bf16=False, per_device_train_batch_size=4,
        num_generations=2, loss_type=loss_type, beta=kl_weight, epsilon=0.2, epsilon_high=0.3,
        temperature=TEMPERATURE, max_completion_length=LONGEST,
    )  # fmt: skip
    data = Dataset.from_list([{"prompt": "w1"}] * 4)
    trainer = GRPOTrainer(
        model=their_model, reward_funcs=lambda completions, **_: [0.0] * len(completions), args=config,
        train_dataset=data, processing_class=tokenizer,
    )  # fmt: skip
    model.double().eval()
    their_model.double().train()
    trainer.current_gradient_accumulation_steps = 1

    first = batch_of(torch.zeros(10), None, True)
    with torch.no_grad():
        now = written_log_probs(model, first.input_ids, first.is_written, TEMPERATURE)
    generator = torch.Generator().manual_seed(0)
    old = now + 0.5 * torch.randn(10, generator=generator, dtype=torch.float64)
    reference = now + 0.5 * torch.randn(10, generator=generator, dtype=torch.float64)
    batch = batch_of(old, reference if kl_weight else None, loss_type == "dapo")
    settings = PolicySettings(loss_type, 0.2, 0.3, kl_weight, TEMPERATURE, LONGEST)
    loss_sum, figures = policy_loss(model, batch, settings)
    loss = loss_sum / batch.num_targets
    loss.backward()

    inputs = {
        "prompt_ids": theirs(PROMPTS, before=True),
        "prompt_mask": theirs([[1] * len(p) for p in PROMPTS], before=True),
        "completion_ids": theirs(ANSWERS, before=False),
        "completion_mask": theirs([[1] * len(a) for a in ANSWERS], before=False),
        "advantages": batch.advantages.double(),
        "old_per_token_logps": unflat(old).double(),
        "ref_per_token_logps": unflat(reference).double(),
        "num_items_in_batch": torch.tensor(10),
    }
    their_loss = trainer._compute_loss(their_model, inputs)
    their_loss.backward()
    assert loss.item() == pytest.approx(their_loss.item(), abs=1e-6, rel=1e-6)
    assert figures["clipped"] > 0
    gradients = dict(model.named_parameters())
    for name, parameter in their_model.named_parameters():
        assert parameter.grad is not None and gradients[name].grad is not None
        assert torch.allclose(parameter.grad, gradients[name].grad, atol=1e-6, rtol=1e-6), name


def test_advantages_are_centred_and_scaled_as_asked() -> None:
    rewards = torch.tensor([[1.0, 0.0, 0.0, 1.0], [0.1, 0.1, 0.1, 0.1], [2.0, 0.0, 1.0, 5.0]])
    centred = torch.tensor([[0.5, -0.5, -0.5, 0.5], [0.0] * 4, [0.0, -2.0, -1.0, 3.0]])
    assert torch.equal(advantages_of(rewards, "none"), centred)
    spread = rewards.std(dim=1, keepdim=True)
    assert torch.allclose(advantages_of(rewards, "group"), centred / (spread + 1e-4))
    assert torch.allclose(advantages_of(rewards, "batch"), centred / (rewards.std() + 1e-4))
    assert torch.equal(advantages_of(torch.full((1, 7), 0.1), "group"), torch.zeros(1, 7))


def test_figures_are_means_whatever_the_loss_is_divided_by() -> None:
    model = build_model(load_run_config(TINY | {"model": TINY["model"] | {"vocab_size": 32}}).model, seed=3)
    found = []
    for loss_type in ("dapo", "grpo"):
        batch = batch_of(torch.zeros(10), torch.zeros(10), loss_type == "dapo")
        batch = PolicyBatch(**{**batch.__dict__, "facts": {"reward": torch.tensor([1.0, 0.0, 0.0, 1.0])}})
        settings = PolicySettings(loss_type, 0.2, 0.2, 0.1, 1.0, LONGEST)
        _, sums = policy_loss(model, batch, settings)
        found.append({name: value / batch.num_targets for name, value in sums.items()})
    assert found[0] == pytest.approx(found[1]) and found[0]["reward"] == pytest.approx(0.5)
