"""Each filter of ours, and their order, beside the processors of transformers."""

from __future__ import annotations

import itertools

import pytest
import torch

from tiny_transformer.generation.sampling import SamplingConfig, shape_logits

OPTIONS = {
    "repetition_penalty": (1.0, 0.8, 1.7),
    "temperature": (1.0, 0.6, 1.8),
    "top_k": (None, 3, 12),
    "top_p": (None, 0.5, 0.92),
    "min_p": (None, 0.05, 0.4),
}
PROMPT = [[3, 5, 7, 7], [1, 2, 3, 4], [39, 0, 39, 0]]


@pytest.fixture(scope="module")
def transformers():
    return pytest.importorskip("transformers")


def theirs(transformers, **options) -> list:
    """The processors, in the order of transformers, which the last test asks it for."""
    classes = {
        "repetition_penalty": transformers.RepetitionPenaltyLogitsProcessor,
        "temperature": transformers.TemperatureLogitsWarper,
        "top_k": transformers.TopKLogitsWarper,
        "top_p": transformers.TopPLogitsWarper,
        "min_p": transformers.MinPLogitsWarper,
    }
    return [classes[name](options[name]) for name in classes if options.get(name)]


@pytest.mark.parametrize("combination", list(itertools.product(*OPTIONS.values()))[::4])
def test_the_distribution_is_that_of_transformers(transformers, combination):
    """All logits differ: with ties transformers keeps as many tokens as it sorts first, ours all that tie."""
    options = dict(zip(OPTIONS, combination, strict=True))
    logits = torch.randn(3, 40, generator=torch.Generator().manual_seed(3)) * 3
    expected = logits.clone()
    for process in theirs(transformers, **options):
        expected = process(torch.tensor(PROMPT), expected)
    seen = torch.zeros(3, 40, dtype=torch.bool).scatter_(1, torch.tensor(PROMPT), True)
    ours = shape_logits(logits, SamplingConfig(**options), seen)
    assert torch.equal(ours.isfinite(), expected.isfinite())
    torch.testing.assert_close(ours.softmax(-1), expected.softmax(-1), rtol=1e-5, atol=1e-7)


def test_the_order_is_seen_in_what_is_left():
    """Guards the test above: with top-p before top-k, or the temperature last, other tokens stay."""
    logits = torch.randn(3, 40, generator=torch.Generator().manual_seed(3)) * 3
    settings = SamplingConfig(temperature=1.8, top_k=3, top_p=0.5)
    right = shape_logits(logits, settings).isfinite()
    top_p_first = shape_logits(logits, SamplingConfig(temperature=1.8, top_p=0.5)).isfinite()
    cold_top_p = shape_logits(logits, SamplingConfig(temperature=1, top_k=3, top_p=0.5)).isfinite()
    assert not torch.equal(right, top_p_first)
    assert not torch.equal(right, cold_top_p)


@pytest.mark.slow
def test_transformers_itself_puts_them_in_this_order(transformers):
    options = {"repetition_penalty": 1.2, "temperature": 0.7, "top_k": 5, "top_p": 0.9, "min_p": 0.1}
    shape = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=40, **shape))
    config = transformers.GenerationConfig(do_sample=True, **options)
    given = model._get_logits_processor(config, input_ids_seq_length=4, encoder_input_ids=None)
    assert [type(process) for process in given] == [type(process) for process in theirs(transformers, **options)]
