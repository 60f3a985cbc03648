"""Rows of new tokens beside adapters: what we write opens in peft with the same logits, what peft writes opens here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tiny_transformer.config.schema import LoraSection
from tiny_transformer.errors import ExitCode, UserError
from tiny_transformer.models import load_model, save_model
from tiny_transformer.models.adapter_base import Base, identity_of
from tiny_transformer.models.adapter_files import CONFIG, WEIGHTS, load_adapter, save_adapter
from tiny_transformer.models.adapters import adapt
from tiny_transformer.models.checkpoint import load_weights
from tiny_transformer.models.swaps import restore_layers
from tiny_transformer.models.token_rows import KEY, grow_vocabulary
from tiny_transformer.models.vocabulary import load_base_weights

CLOSE = {"rtol": 0, "atol": 2e-5}
FAMILIES = {"tied": "qwen3-gqa", "untied": "llama-untied-bias"}


@pytest.fixture(params=FAMILIES)
def base(request: pytest.FixtureRequest, shake: Any, all_configs: Any, tmp_path: Path) -> Path:
    model = shake(all_configs[FAMILIES[request.param]])
    assert model.config.tie_word_embeddings == (request.param == "tied")
    (tmp_path / "base").mkdir()
    save_model(model, tmp_path / "base", eos_token_id=1)
    return tmp_path / "base"


@torch.no_grad()
def learn(model: Any) -> None:
    """Move every adapter and every row that learns, ours or peft's, off its first value."""
    generator = torch.Generator().manual_seed(3)
    for name, parameter in model.named_parameters():
        if "lora_B" in name or "token_rows" in name or "trainable_tokens_delta" in name:
            parameter.normal_(0, 0.1, generator=generator)


@torch.no_grad()
def logits(model: Any, input_ids: torch.Tensor) -> torch.Tensor:
    found = model(input_ids)
    return found if torch.is_tensor(found) else found.logits


def taught(base: Path, new_ids: list[int], **settings: Any) -> tuple[Any, LoraSection]:
    """A model with adapters and rows that have learnt something."""
    lora, model = LoraSection(enabled=True, rank=3, alpha=5.0, targets="q_proj,v_proj", **settings), load_model(base)
    grow_vocabulary(model, max(new_ids) + 1)
    adapt(model, lora, seed=1, new_ids=new_ids)
    load_base_weights(model, base, lora)
    learn(model)
    return model, lora


def write(model: Any, lora: LoraSection, base: Path, directory: Path) -> Path:
    directory.mkdir()
    known = Base(base, identity_of(load_model(base)))
    save_adapter(model, directory, model.state_dict(), lora=lora, base=known, eos_token_id=1)
    return directory


def ids_for(base: Path, *, added: bool) -> list[int]:
    """Three tokens: behind the vocabulary of a base, or the last of its own."""
    size = load_model(base).config.known_vocab_size
    return [size, size + 1, size + 2] if added else [size - 3, size - 2, size - 1]


@pytest.mark.parametrize("quantize", ["none", "int8"])
@pytest.mark.parametrize("added", [True, False])
def test_new_rows_begin_as_the_mean_and_nothing_else_changes(base: Path, added: bool, quantize: str) -> None:
    new_ids, lora = ids_for(base, added=added), LoraSection(enabled=True, quantize=quantize)
    plain, model = load_model(base), load_model(base)
    grow_vocabulary(model, max(new_ids) + 1)
    told = adapt(model, lora, seed=1, new_ids=new_ids)
    load_base_weights(model, base, lora)
    learning = {name: p for name, p in model.named_parameters() if p.requires_grad}
    rows = {name for name in learning if name.endswith(".token_rows")}
    tables = {"model.embed_tokens"} | (set() if plain.config.tie_word_embeddings else {"lm_head"})
    assert rows == {f"{name}.token_rows" for name in tables}
    assert "and the rows of 3 new tokens: " in told
    assert f"{sum(p.numel() for p in learning.values()):,} weights are trained" in told
    for name in tables:
        table = plain.get_submodule(name).weight
        mean = table[: new_ids[0]].double().mean(dim=0).float()
        assert torch.equal(learning[f"{name}.token_rows"], mean.expand(3, -1))
        assert torch.equal(model.get_submodule(name).base.weight[: len(table)], table)
    ids = torch.arange(new_ids[0])[None, :24]
    if quantize == "none":
        assert torch.equal(logits(model, ids)[..., : new_ids[0]], logits(plain, ids)[..., : new_ids[0]])


@pytest.mark.parametrize("added", [True, False])
def test_peft_opens_ours_with_the_same_logits_and_merged_equals_unmerged(
    base: Path, added: bool, tmp_path: Path
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    new_ids = ids_for(base, added=added)
    model, lora = taught(base, new_ids)
    directory = write(model, lora, base, tmp_path / "adapter")
    input_ids = torch.tensor([[3, new_ids[0], 5, new_ids[2], new_ids[1], 2]])
    expected, size = logits(model, input_ids), model.config.known_vocab_size
    theirs = AutoModelForCausalLM.from_pretrained(base)
    if added:  # as peft's own AutoPeftModelForCausalLM does, by the tokenizer beside the adapters
        theirs.resize_token_embeddings(size)
    assert torch.allclose(logits(PeftModel.from_pretrained(theirs, directory), input_ids), expected, **CLOSE)
    beside, whole, loaded = load_model(base), load_model(directory), taught(base, new_ids)[0]
    load_adapter(beside, directory)
    with torch.no_grad():
        loaded.get_submodule("model.embed_tokens").token_rows.zero_()
    load_weights(loaded, directory)
    for again in (beside, whole, loaded):
        assert again.config == model.config
        assert torch.allclose(logits(again, input_ids), expected, rtol=0, atol=1e-6)
    restore_layers(beside)
    assert torch.allclose(logits(beside, input_ids), expected, **CLOSE)
    (tmp_path / "merged").mkdir()
    save_model(beside, tmp_path / "merged", eos_token_id=1)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert torch.allclose(logits(merged, input_ids), expected, **CLOSE)
    (tmp_path / "swapped").mkdir()
    save_model(model, tmp_path / "swapped", eos_token_id=1)
    assert torch.equal(logits(load_model(tmp_path / "swapped"), input_ids), expected)


@pytest.mark.parametrize("resized", [True, False])
def test_what_peft_saves_opens_here_with_the_same_logits(base: Path, resized: bool, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    theirs = AutoModelForCausalLM.from_pretrained(base)
    new_ids, size = ids_for(base, added=resized), theirs.config.vocab_size
    if resized:
        theirs.resize_token_embeddings(size + 5)  # two more than are taught: peft writes the tables besides
    tied = load_model(base).config.tie_word_embeddings
    rows = new_ids if tied else {"embed_tokens": new_ids, "lm_head": new_ids[1:]}
    config = LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM", trainable_token_indices=rows)
    theirs = get_peft_model(theirs, config).eval()
    learn(theirs)
    theirs.save_pretrained(tmp_path / "theirs")
    input_ids, ours = torch.tensor([[3, new_ids[0], 5, new_ids[2], new_ids[1], 2]]), load_model(base)
    load_adapter(ours, tmp_path / "theirs")
    assert ours.config.vocab_size == size + (5 if resized else 0)
    assert torch.allclose(logits(ours, input_ids), logits(theirs, input_ids), **CLOSE)
    if resized:
        tensors = load_file(tmp_path / "theirs" / WEIGHTS)
        next(t for name, t in tensors.items() if name.endswith("base_layer.weight"))[0, 0] += 1
        save_file(tensors, tmp_path / "theirs" / WEIGHTS)
        with pytest.raises(UserError, match="for another model: the words that it knows are others"):
            load_adapter(load_model(base), tmp_path / "theirs")


def test_rows_that_are_not_computed_here_are_refused_by_name(base: Path, tmp_path: Path) -> None:
    new_ids = ids_for(base, added=True)
    model, lora = taught(base, new_ids)
    directory, is_tied = write(model, lora, base, tmp_path / "adapter"), model.config.tie_word_embeddings
    good = json.loads((directory / CONFIG).read_text(encoding="utf-8"))
    assert good[KEY] == {"embed_tokens": new_ids} | ({} if is_tied else {"lm_head": new_ids})
    odd = [[], "abc", [1, 1], [True], [-1], [2**24], {"q_proj": new_ids}, {"embed_tokens": 3}, list(range(5000))]
    odd += [{"embed_tokens": new_ids, "lm_head": new_ids[:2]}] if is_tied else []
    for value in odd:
        (directory / CONFIG).write_text(json.dumps({**good, KEY: value}), encoding="utf-8")
        with pytest.raises(UserError, match=rf"{KEY} = .* is not computed here") as refused:
            load_adapter(load_model(base), directory)
        assert refused.value.exit_code is ExitCode.BAD_DATA
    far = [new_ids[0], new_ids[1], 2**23]  # no memory is taken for the rows between
    for value, says in (
        (None, r"it has no place for (lm_head|model\.embed_tokens)\.token_rows"),
        (far, "for another model: it has .* tokens, and they train"),
        ({"embed_tokens": new_ids[:2], "lm_head": new_ids[:2]}, "of shape"),
    ):
        (directory / CONFIG).write_text(json.dumps({**good, KEY: value}), encoding="utf-8")
        with pytest.raises(UserError, match=says):
            load_adapter(load_model(base), directory)
    with pytest.raises(UserError, match="new control tokens have rows of their own in lm_head") as refused:
        adapt(load_model(base), LoraSection(enabled=True, targets="lm_head"), seed=1, new_ids=new_ids)
    assert refused.value.where == "lora.targets"
