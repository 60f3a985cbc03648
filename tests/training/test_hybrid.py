"""Training of a model with experts and an MTP head: its loss, its log, its optimizer groups, its resumption."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from run_helpers import TINY, fingerprint, log_without_clock, run_tiny

from tiny_transformer.config.schema import TrainingConfig
from tiny_transformer.config.shapes import Qwen3NextConfig
from tiny_transformer.data.batches import IGNORE_INDEX, TokenBatch
from tiny_transformer.hardware import Hardware
from tiny_transformer.models import build_model
from tiny_transformer.models.qwen3_next import model as architecture
from tiny_transformer.training.gradient import compute_gradient
from tiny_transformer.training.losses import language_modelling_loss
from tiny_transformer.training.optimizers import Optimizers

SHAPE = {
    "model_type": "qwen3_next",
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "full_attention_interval": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "intermediate_size": 48,
    "linear_num_key_heads": 1,
    "linear_num_value_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "num_experts": 4,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
    "num_nextn_predict_layers": 1,
    "max_position_embeddings": 64,
}


def hybrid(**changes: object) -> torch.nn.Module:
    return build_model(Qwen3NextConfig(vocab_size=257, **{**SHAPE, **changes}), seed=0)


def packed_batch() -> TokenBatch:
    """Two rows of two texts each, the last tokens without a target."""
    ids = torch.randint(0, 257, (2, 12), generator=torch.Generator().manual_seed(0))
    doc_ids = torch.tensor([[0] * 5 + [1] * 7, [0] * 8 + [1] * 3 + [-1]])
    positions = torch.tensor([[*range(5), *range(7)], [*range(8), *range(3), 0]])
    labels = torch.where(doc_ids == doc_ids.roll(-1, 1), ids.roll(-1, 1), IGNORE_INDEX)
    labels[:, -1] = IGNORE_INDEX
    return TokenBatch(ids, labels, int((labels != IGNORE_INDEX).sum()), torch.arange(2), doc_ids, positions)


def test_the_loss_is_next_tokens_second_tokens_and_balance() -> None:
    model, batch = hybrid(mtp_loss_coef=0.3, router_aux_loss_coef=0.02), packed_batch()
    loss_sum, figures = language_modelling_loss(model, batch)
    hidden, auxiliary, _ = model.backbone(batch.input_ids, batch.positions, batch.doc_ids)
    drafted, its, _ = model.draft(
        hidden=hidden[:, :-1],
        next_ids=batch.input_ids[:, 1:],
        positions=batch.positions[:, :-1],
        doc_ids=batch.doc_ids[:, :-1],
    )
    one, two = (model.lm_head(x).log_softmax(-1) for x in (hidden, drafted))
    first = second = 0.0
    for row in range(2):
        for t in range(11):
            same_next = batch.doc_ids[row, t] == batch.doc_ids[row, t + 1] >= 0
            if same_next:
                first -= one[row, t, batch.input_ids[row, t + 1]].item()
            if same_next and t < 10 and batch.doc_ids[row, t + 2] == batch.doc_ids[row, t]:
                second -= two[row, t, batch.input_ids[row, t + 2]].item()
    expected = first + 0.3 * second + (auxiliary + its).item() * batch.num_targets
    assert loss_sum.item() == pytest.approx(expected, rel=1e-5)
    assert figures["next_token_loss"] == pytest.approx(first, rel=1e-5)
    assert figures["second_token_loss"] == pytest.approx(second, rel=1e-5)
    assert figures["auxiliary_loss"] == pytest.approx((auxiliary + its).item() * batch.num_targets, rel=1e-5)
    assert 0.02 * 2 * 0.99 < auxiliary.item() < 0.02 * 4  # k when balanced, E when not at all


def test_every_parameter_learns_from_the_loss_and_gets_a_state() -> None:
    model, config = hybrid(num_experts=16), TrainingConfig(optimizer="muon")
    ids = torch.zeros(1, 6, dtype=torch.long)  # so few tokens that some experts have none

    batch = TokenBatch(ids, ids, 6, torch.arange(1))
    compute_gradient(model, [batch], 0, config, Hardware(torch.device("cpu"), None), language_modelling_loss)
    idle = [name for name, p in model.named_parameters() if p.grad.abs().max() == 0]
    assert idle and all(".experts." in name or "mtp.layers.0" in name or "self_attn" in name for name in idle)
    optimizers = Optimizers(model, config)
    optimizers.step(1.0)
    assert {name.rpartition("/")[0] for name in optimizers.state()} == {name for name, _ in model.named_parameters()}


def test_muon_takes_the_matrices_that_are_neither_routers_nor_gates() -> None:
    model = hybrid()
    optimizers = Optimizers(model, TrainingConfig(optimizer="muon"))
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizers.step(1.0)
    muon = {name.rpartition("/")[0] for name in optimizers.state() if name.endswith("/momentum_buffer")}
    for name, parameter in model.named_parameters():
        kind = name.split(".")[-2]
        is_block_matrix = parameter.ndim == 2 and ".layers." in name
        assert (name in muon) == (is_block_matrix and kind not in ("gate", "shared_expert_gate", "in_proj_ba")), name
    assert {"model.layers.0.mlp.experts.3.down_proj.weight", "model.layers.0.linear_attn.in_proj_qkvz.weight"} <= muon
    assert not {"model.layers.0.linear_attn.conv1d.weight", "model.layers.0.linear_attn.A_log"} & muon


def test_a_hybrid_run_logs_its_experts_and_resumes_bit_for_bit(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(TINY, "model", SHAPE)
    run_tiny(tiny_data, tmp_path / "whole")
    run_tiny(tiny_data, tmp_path / "parts")
    shutil.rmtree((tmp_path / "parts" / "last").resolve())  # as if it had been killed after step 10, its best
    assert [path.name for path in (tmp_path / "parts").glob("step-*")] == ["step-00000010"]
    run_tiny(tiny_data, tmp_path / "parts", resume=True)
    assert fingerprint(tmp_path / "whole") == fingerprint(tmp_path / "parts")
    log = log_without_clock(tmp_path / "whole")
    assert json.dumps(log) == json.dumps(log_without_clock(tmp_path / "parts"))
    for line in log:
        assert 0 <= line["idlest_expert_load"] <= 1 <= line["busiest_expert_load"] <= 4
        parts = line["next_token_loss"] + 0.1 * line["second_token_loss"] + line["auxiliary_loss"]
        assert line["loss"] == pytest.approx(parts, rel=1e-5)


def test_the_load_of_the_busiest_and_the_idlest_expert_is_counted_from_what_the_routers_chose(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, batch, chosen = hybrid(), packed_batch(), []
    route = architecture.route

    def listening(*arguments):
        routing = route(*arguments)
        chosen.append(routing.chosen)
        return routing

    monkeypatch.setattr(architecture, "route", listening)
    _, figures = language_modelling_loss(model, batch)
    is_token = batch.doc_ids.flatten() >= 0
    shares = []
    for layer in chosen[:2]:  # the third is the MTP head's
        counts = [sum(e in row for row in layer[is_token].tolist()) for e in range(4)]
        shares += [count / sum(counts) for count in counts]
    assert len(set(shares)) > 2
    assert figures["busiest_expert_load"] / batch.num_targets == pytest.approx(4 * max(shares))  # 1: as an equal share
    assert figures["idlest_expert_load"] / batch.num_targets == pytest.approx(4 * min(shares))


def test_a_hybrid_learns_one_batch_by_heart() -> None:
    model, batch = hybrid(num_experts=4), packed_batch()
    optimizers = Optimizers(model, TrainingConfig(learning_rate=1e-2))
    for _ in range(60):
        loss_sum, figures = language_modelling_loss(model, batch)
        (loss_sum / batch.num_targets).backward()
        optimizers.step(1.0)
    assert (
        figures["next_token_loss"] / batch.num_targets < 0.05 and figures["second_token_loss"] / batch.num_targets < 0.2
    )


def test_compiling_takes_the_backbone_and_leaves_evaluation_plain(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    modes = []

    def fake_compile(function):
        def called(*arguments):
            modes.append(torch.is_grad_enabled())
            return function(*arguments)

        return called

    run_tiny(tiny_data, tmp_path / "plain")
    monkeypatch.setattr(torch, "compile", fake_compile)
    run_tiny(tiny_data, tmp_path / "compiled", compile=True)
    assert modes == [True] * 12  # the twelve steps, no evaluation
    assert fingerprint(tmp_path / "plain") == fingerprint(tmp_path / "compiled")
