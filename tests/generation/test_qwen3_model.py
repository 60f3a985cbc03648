"""The example of an older project works as printed."""

from __future__ import annotations

import pytest
import torch

from tiny_transformer import Qwen3Model
from tiny_transformer.costs.accounting import count_parameters
from tiny_transformer.errors import UserError
from tiny_transformer.generation.rows import generate_without_cache
from tiny_transformer.generation.sampling import SamplingConfig
from tiny_transformer.tokenizers import make_tokenizer

QWEN3_CONFIG = {
    "vocab_size": 151646,
    "d_model": 640,
    "n_heads": 4,
    "n_kv_groups": 1,
    "n_layers": 18,
    "d_ff": 2048,
    "max_seq_len": 32768,
    "dtype": torch.bfloat16,
}
SMALL = {**QWEN3_CONFIG, "vocab_size": 258, "d_model": 32, "n_layers": 2, "d_ff": 48, "max_seq_len": 64}


@pytest.mark.slow
def test_the_config_as_printed_is_the_model_of_283_million_parameters():
    with torch.device("meta"):
        model = Qwen3Model(**QWEN3_CONFIG)
    assert sum(p.numel() for p in model.parameters()) == count_parameters(model.config)[0].total() == 283_347_200
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}


def test_the_example_as_printed():
    tokenizer = make_tokenizer("byte")
    torch.manual_seed(0)
    model = Qwen3Model(**SMALL)
    model.load_state_dict(Qwen3Model(**SMALL).state_dict())
    prompt = "Once upon a time there was a pumpkin."
    context = torch.tensor(tokenizer.encode(prompt, add_special_tokens=False)).unsqueeze(0)
    generated = model.generate(context, max_new_tokens=20, temperature=0.8)
    assert generated.shape == (1, context.shape[1] + 20)
    assert tokenizer.decode(generated.squeeze().tolist()).startswith(prompt)
    new = generate_without_cache(model, context.tolist(), SamplingConfig(max_new_tokens=20))
    assert generated[0, context.shape[1] :].tolist() == new[0]
    ids = model.generate(tokenizer.encode(prompt), max_new_tokens=10, temperature=0.8, top_k=50)
    assert ids[: context.shape[1]] == context[0].tolist() and len(ids) == context.shape[1] + 10


def test_a_row_that_ends_is_filled_up():
    torch.manual_seed(0)
    model = Qwen3Model(**{**SMALL, "dtype": "float64"}).train()
    rows = torch.tensor([[1, 2], [3, 4]])
    free = model.generate(rows, max_new_tokens=8, temperature=0)
    end = next(t for t in free[0, 2:].tolist() if t not in free[1])
    ended = model.generate(rows, max_new_tokens=8, temperature=0, eos_token_id=end)
    cut = free[0].tolist().index(end)
    assert ended[0].tolist() == free[0, :cut].tolist() + [end] * (10 - cut)
    assert torch.equal(ended[1], free[1]) and model.training


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"vocab_size": None}, "vocab_size is not set"),
        ({"d_modle": 3}, "d_modle"),
        ({"dtype": torch.int8}, "dtype = torch.int8"),
        ({"dtype": "bfloat61"}, "dtype = bfloat61"),
    ],
)
def test_another_shape_is_refused(change, what):
    with pytest.raises(UserError, match=what):
        Qwen3Model(**{**SMALL, **change})


def test_a_llama_is_refused_with_what_makes_a_qwen3():
    config = {key: value for key, value in SMALL.items() if key != "n_kv_groups"}
    with pytest.raises(UserError, match="the shape of a llama") as refused:
        Qwen3Model(**config)
    assert "n_kv_groups" in (refused.value.remedy or "")


def test_an_option_that_would_be_passed_over_is_refused():
    model = Qwen3Model(**SMALL)
    for name in ("speculative", "num_draft_tokens", "top"):
        with pytest.raises(UserError, match=f"there is no option {name}"):
            model.generate([1, 2], **{name: "ngram"})


def test_what_is_no_tokens_is_refused():
    with pytest.raises(UserError, match="token ids is needed"):
        Qwen3Model(**SMALL).generate("Once")
