"""Directories that are not, or no longer, a model: each is refused with what, where and what to do."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tiny_transformer.errors import ExitCode, UserError
from tiny_transformer.models import build_model, load_config, load_model, load_weights, save_model


@pytest.fixture
def saved(shake, all_configs, tmp_path) -> Path:
    """A tied Qwen3 directory."""
    save_model(shake(all_configs["qwen3-gqa"]), tmp_path, eos_token_id=[2, 3], bos_token_id=1)
    return tmp_path


def change_tensors(directory: Path, **changes: torch.Tensor | None) -> None:
    tensors = load_file(directory / "model.safetensors")
    for name, tensor in changes.items():
        if tensor is None:
            del tensors[name]
        else:
            tensors[name] = tensor
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})


def refusal(directory: Path, words: list[str], code: ExitCode = ExitCode.BAD_DATA) -> None:
    with pytest.raises(UserError) as caught:
        load_model(directory)
    assert caught.value.exit_code == code
    for word in [*words, str(directory)]:
        assert word in str(caught.value), str(caught.value)
    assert len(caught.value.lines()) <= 3 and caught.value.remedy


def shard(directory: Path) -> dict[str, str]:
    """Split model.safetensors into two shards and return the index's weight_map."""
    tensors = load_file(directory / "model.safetensors")
    (directory / "model.safetensors").unlink()
    names, weight_map = sorted(tensors), {}
    for number, part in enumerate((names[:5], names[5:]), start=1):
        file_name = f"model-0000{number}-of-00002.safetensors"
        save_file({name: tensors[name] for name in part}, directory / file_name, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file_name)
    write_index(directory, weight_map)
    return weight_map


def write_index(directory: Path, weight_map: object) -> None:
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))


def test_files_and_metadata(saved):
    assert {p.name for p in saved.iterdir()} == {"config.json", "generation_config.json", "model.safetensors"}
    generation = {"bos_token_id": 1, "eos_token_id": [2, 3], "pad_token_id": 2}
    assert json.loads((saved / "generation_config.json").read_text()) == generation
    assert "lm_head.weight" not in load_file(saved / "model.safetensors")
    header_size = int.from_bytes((saved / "model.safetensors").read_bytes()[:8], "little")
    header = json.loads((saved / "model.safetensors").read_bytes()[8 : 8 + header_size])
    assert header["__metadata__"] == {"format": "pt"}
    modes = {p.stat().st_mode for p in saved.iterdir()}
    assert len(modes) == 1


def test_a_directory_that_does_not_exist(tmp_path):
    refusal(tmp_path / "no", ["is not a directory"], ExitCode.USAGE)


def test_a_directory_without_config_points_to_the_newest_checkpoint(saved, tmp_path):
    refusal(saved / "empty", ["is not a directory"], ExitCode.USAGE)
    run = tmp_path / "run"
    (run / "last").mkdir(parents=True)
    refusal(run, ["no config.json", str(run / "last")], ExitCode.USAGE)


def test_a_directory_without_weights(saved):
    (saved / "model.safetensors").unlink()
    refusal(saved, ["no model.safetensors", "half-written"])


@pytest.mark.parametrize("length", [0, 1, 8, 100, 3000, -1])
def test_truncated_weights(saved, length):
    data = (saved / "model.safetensors").read_bytes()
    (saved / "model.safetensors").write_bytes(data[:length])
    refusal(saved, ["cannot read model.safetensors"])


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"model_type": "llama", "model_type": "qwen3"}', "\udcff", "[" * 100_000]
)
def test_a_damaged_config_json(saved, text):
    (saved / "config.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    refusal(saved, ["cannot read config.json"])


def test_a_missing_tensor(saved):
    change_tensors(saved, **{"model.norm.weight": None, "model.layers.1.mlp.up_proj.weight": None})
    refusal(saved, ["missing tensors: model.layers.1.mlp.up_proj.weight, model.norm.weight"])


def test_a_surplus_tensor(saved):
    change_tensors(saved, **{"model.layers.0.self_attn.q_proj.bias": torch.zeros(32)})
    # either file may be the wrong one
    refusal(saved, ["qwen3 does not have: model.layers.0.self_attn.q_proj.bias", "do not belong together"])


def test_a_misshaped_tensor_is_refused_before_memory_is_taken(saved):
    change_tensors(saved, **{"model.norm.weight": torch.zeros(31)})
    refusal(saved, ["model.norm.weight", "[31]", "[32]"])
    config = json.loads((saved / "config.json").read_text())
    config.update(vocab_size=2**24, hidden_size=2**17, head_dim=2**14)  # 8 TiB of embedding, if it were allocated
    (saved / "config.json").write_text(json.dumps(config))
    refusal(saved, ["model.embed_tokens.weight", "[61, 32]", "[16777216, 131072]"])


def test_a_tensor_of_integers(saved):
    change_tensors(saved, **{"model.norm.weight": torch.zeros(32, dtype=torch.int64)})
    refusal(saved, ["model.norm.weight", "I64"])


def test_a_tied_checkpoint_may_carry_its_head_if_it_is_equal(saved):
    embedding = load_file(saved / "model.safetensors")["model.embed_tokens.weight"]
    change_tensors(saved, **{"lm_head.weight": embedding.clone()})
    model = load_model(saved)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    change_tensors(saved, **{"lm_head.weight": embedding + 1e-6})
    refusal(saved, ["lm_head.weight differs"])
    change_tensors(saved, **{"lm_head.weight": embedding[1:].clone()})
    refusal(saved, ["lm_head.weight", "[60, 32]"])


def test_an_untied_checkpoint_needs_its_head(shake, all_configs, tmp_path):
    save_model(shake(all_configs["qwen3-untied"]), tmp_path)
    change_tensors(tmp_path, **{"lm_head.weight": None})
    refusal(tmp_path, ["missing tensors: lm_head.weight"])


def test_mixed_dtypes_load_as_the_widest(saved):
    change_tensors(saved, **{"model.norm.weight": torch.ones(32, dtype=torch.bfloat16)})
    assert load_model(saved).model.norm.weight.dtype == torch.float32
    half = {name: t.to(torch.float16) for name, t in load_file(saved / "model.safetensors").items()}
    change_tensors(saved, **{**half, "model.norm.weight": torch.ones(32, dtype=torch.bfloat16)})
    assert load_model(saved).model.norm.weight.dtype == torch.float32
    assert load_model(saved, dtype=torch.bfloat16).model.norm.weight.dtype == torch.bfloat16


def test_shards(saved):
    whole = load_model(saved).state_dict()
    weight_map = shard(saved)
    parts = load_model(saved).state_dict()
    assert all(torch.equal(parts[name], tensor) for name, tensor in whole.items())
    write_index(saved, {**weight_map, "model.norm.weight": "model-00001-of-00002.safetensors"})
    refusal(saved, ["differ from model.safetensors.index.json: model.norm.weight"])
    write_index(saved, {name: file for name, file in weight_map.items() if name != "model.norm.weight"})
    refusal(saved, ["differ from model.safetensors.index.json: model.norm.weight"])
    write_index(saved, weight_map)
    (saved / "model-00002-of-00002.safetensors").unlink()
    refusal(saved, ["cannot read model-00002-of-00002.safetensors"])


@pytest.mark.parametrize(
    "file_name", ["../x.safetensors", "/tmp/x.safetensors", "a/x.safetensors", "x.bin", "..", "", 3, None, "."]
)
def test_a_shard_outside_the_directory_is_never_opened(saved, file_name):
    weight_map = shard(saved)
    write_index(saved, {**weight_map, "model.norm.weight": file_name})
    refusal(saved, [repr(file_name), "not a plain .safetensors file name"])


@pytest.mark.parametrize("weight_map", [None, [], {}, "x"])
def test_an_index_without_a_map(saved, weight_map):
    shard(saved)
    write_index(saved, weight_map)
    refusal(saved, ["weight_map"])


def test_load_weights_overwrites_in_place(saved, all_configs):
    model = build_model(all_configs["qwen3-gqa"], seed=3)
    parameter = model.model.norm.weight
    load_weights(model, saved)
    assert model.model.norm.weight is parameter
    assert torch.equal(parameter, load_model(saved).model.norm.weight)
    with pytest.raises(UserError, match="missing tensors"):
        load_weights(build_model(all_configs["qwen3-head-dim"], seed=3), saved)


def test_load_config_alone(saved, all_configs):
    assert load_config(saved) == all_configs["qwen3-gqa"]


def test_the_seed_and_nothing_else_decides_the_weights(config):
    torch.manual_seed(1)
    state = torch.random.get_rng_state()
    first = build_model(config, seed=7)
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.manual_seed(2)
    second = build_model(config, seed=7, dropout=0.3)
    other = build_model(config, seed=8)
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, second.state_dict()[name]), name
        assert torch.equal(tensor, other.state_dict()[name]) == (tensor.ndim == 1 and "A_log" not in name), name
    half = build_model(config, seed=7, dtype=torch.bfloat16)
    assert all(torch.equal(half.state_dict()[n], t.bfloat16()) for n, t in first.state_dict().items())


def test_initial_weights_have_the_stated_distribution(config):
    config = config.model_copy(update={"initializer_range": 0.05, "vocab_size": 2000})
    for name, parameter in build_model(config, seed=0).named_parameters():
        zero_centred = config.model_type == "qwen3_next" and "norm" in name and "linear_attn" not in name
        if name.endswith(".bias") or zero_centred:
            assert parameter.abs().max() == 0, name
        elif name.endswith("A_log"):
            assert 0.01 <= parameter.exp().min() < parameter.exp().max() <= 16.01, name
        elif parameter.ndim == 1:
            assert parameter.min() == parameter.max() == 1, name
        else:
            four_sigma = 4 / parameter.numel() ** 0.5
            assert parameter.std().item() == pytest.approx(0.05, rel=four_sigma / 2**0.5), name
            assert abs(parameter.mean().item()) < 0.05 * four_sigma, name


def test_zero_residual_makes_each_block_the_identity(config):
    model = build_model(config, seed=0, zero_residual=True).eval()
    last = ("o_proj.weight", "down_proj.weight", "out_proj.weight")
    if config.model_type == "olmo2":  # a norm follows the last matrix
        last = ("post_attention_layernorm.weight", "post_feedforward_layernorm.weight")
    zero = {n for n, p in model.named_parameters() if n.endswith(".weight") and "norm" not in n and p.abs().max() == 0}
    zero |= {n for n, p in model.named_parameters() if n.endswith("layernorm.weight") and p.abs().max() == 0}
    if config.model_type == "qwen3_next":  # zero-centred scales are zero at the start
        zero = {n for n in zero if "norm" not in n}
    assert zero == {n for n, _ in model.named_parameters() if n.endswith(last)}
    ids = torch.arange(9)[None]
    with torch.no_grad():
        assert torch.equal(model.backbone(ids)[0], model.model.norm(model.model.embed_tokens(ids)))
