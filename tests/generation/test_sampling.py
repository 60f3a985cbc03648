"""The drawn distribution is exactly the one the options describe, and every impossible option is refused."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from tiny_transformer.errors import UserError
from tiny_transformer.generation.sampling import (
    NOT_A_TOKEN,
    SamplingConfig,
    draw,
    keep_min_p,
    keep_top_k,
    keep_top_p,
    next_ids,
    penalize_repetition,
    row_keys,
    shape_logits,
    uniform,
)

LOGITS = [1.2, -0.4, 2.0, 0.3, -1.5]
SEEN = [False, True, True, False, False]
NUM_DRAWS = 20_000
# Chi-square that a true distribution exceeds once in 10,000 times, by degrees of freedom.
CRITICAL = {1: 15.14, 2: 18.42, 3: 21.11, 4: 23.51}

FILTERS = {
    "plain": SamplingConfig(temperature=1),
    "cold": SamplingConfig(temperature=0.5),
    "hot": SamplingConfig(temperature=2),
    "top_k": SamplingConfig(temperature=1, top_k=3),
    "top_p": SamplingConfig(temperature=1, top_p=0.8),
    "min_p": SamplingConfig(temperature=1, min_p=0.2),
    "repetition": SamplingConfig(temperature=1, repetition_penalty=1.7),
    "encouraged": SamplingConfig(temperature=1, repetition_penalty=0.8),
    "repetition_top_k_top_p": SamplingConfig(temperature=0.7, repetition_penalty=1.3, top_k=4, top_p=0.97),
    "hot_repetition_min_p": SamplingConfig(temperature=1.5, repetition_penalty=2.0, min_p=0.3),
    "all": SamplingConfig(temperature=1.8, top_k=4, top_p=0.93, min_p=0.15, repetition_penalty=1.3),
}


def exact_distribution(settings: SamplingConfig) -> list[float]:
    """The probabilities by plain arithmetic in float64, step by step in the documented order."""
    values = list(LOGITS)
    for i, seen in enumerate(SEEN):
        if seen:
            penalty = settings.repetition_penalty
            values[i] = values[i] / penalty if values[i] > 0 else values[i] * penalty
    weights = [math.exp(v / settings.temperature) for v in values]
    order = sorted(range(5), key=lambda i: -weights[i])
    if settings.top_k:
        for i in order[settings.top_k :]:
            weights[i] = 0.0
    if settings.top_p:
        reached, total = 0.0, sum(weights)
        for i in order:
            if reached >= settings.top_p:
                weights[i] = 0.0
            reached += weights[i] / total
    if settings.min_p:
        weights = [w if w >= settings.min_p * max(weights) else 0.0 for w in weights]
    return [w / sum(weights) for w in weights]


@pytest.mark.parametrize("name", FILTERS)
def test_shaped_logits_have_the_exact_distribution(name):
    shaped = shape_logits(torch.tensor([LOGITS]), FILTERS[name], torch.tensor([SEEN]))
    expected = torch.tensor([exact_distribution(FILTERS[name])], dtype=torch.float32)
    torch.testing.assert_close(shaped.softmax(-1), expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", FILTERS)
def test_draws_follow_the_exact_distribution(name):
    rows, seen = torch.tensor([LOGITS]).expand(NUM_DRAWS, -1), torch.tensor([SEEN]).expand(NUM_DRAWS, -1)
    keys = row_keys(7, [[1]] * NUM_DRAWS)
    counts = torch.bincount(next_ids(rows, FILTERS[name], keys=keys, position=3, seen=seen), minlength=5).tolist()
    expected = [p * NUM_DRAWS for p in exact_distribution(FILTERS[name])]
    possible = [i for i in range(5) if expected[i]]
    assert sum(counts[i] for i in possible) == NUM_DRAWS
    chi_square = sum((counts[i] - expected[i]) ** 2 / expected[i] for i in possible)
    assert chi_square < CRITICAL[len(possible) - 1]


OFF = {"top_k": None, "top_p": None, "min_p": None, "repetition_penalty": 1.0, "temperature": 1.0}


@pytest.mark.parametrize("name", [name for name in FILTERS if name not in ("plain", "all")])
def test_every_option_of_the_table_matters_in_its_row(name):
    """Guards the two tests above: no option could be left out unseen. (With all filters the narrowest wins.)"""
    settings = FILTERS[name]
    for option, off in OFF.items():
        if getattr(settings, option) != off:
            assert exact_distribution(replace(settings, **{option: off})) != exact_distribution(settings)


def test_repetition_penalty_divides_positive_and_multiplies_negative_logits():
    logits = torch.tensor([[2.0, -2.0, 2.0, -2.0, 0.0]])
    seen = torch.tensor([[True, True, False, False, True]])
    assert penalize_repetition(logits, seen, 4.0).tolist() == [[0.5, -8.0, 2.0, -2.0, 0.0]]


def test_top_k_and_top_p_keep_what_ties_with_the_last_token_kept():
    logits = torch.tensor([[0.0, 1.0, 1.0, 1.0, 2.0]])
    assert keep_top_k(logits, 2).isfinite().tolist() == [[False, True, True, True, True]]
    assert keep_top_k(logits, 9).isfinite().all()
    assert keep_top_p(logits, 0.5).isfinite().tolist() == [[False, True, True, True, True]]


@pytest.mark.parametrize("p", [0.05, 0.5, 0.9, 0.99, 0.99999])
@pytest.mark.parametrize("scale", [0.0, 0.01, 1.0, 8.0])
def test_top_p_over_a_large_vocabulary_equals_sorting_all_of_it(p, scale):
    """Flat rows need far more candidates than are looked at first, steep ones few; both stand in one batch."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 3000, generator=generator) * torch.tensor([[scale], [3.0], [20.0], [0.1]])
    kept = keep_top_p(logits, p).isfinite()
    for row, row_kept in zip(logits.double(), kept, strict=True):
        probabilities = row.softmax(-1)
        assert probabilities[row > row[row_kept].min()].sum().item() < p + 1e-6  # without its last one it falls short
        assert probabilities[row_kept].sum().item() >= p - 1e-6
        assert not (row[~row_kept] >= row[row_kept].min()).any()


def test_top_p_stops_at_the_token_that_reaches_it():
    logits = torch.tensor([[0.5, 0.25, 0.125, 0.125]]).log()
    assert keep_top_p(logits, 0.5).isfinite().sum() == 1
    assert keep_top_p(logits, 0.51).isfinite().sum() == 2
    assert keep_top_p(logits, 1e-6).isfinite().sum() == 1


def test_min_p_compares_with_the_likeliest_token():
    logits = torch.tensor([[0.5, 0.25, 0.125, 0.125]]).log()
    assert keep_min_p(logits, 0.4).isfinite().tolist() == [[True, True, False, False]]
    assert keep_min_p(logits, 1.0).isfinite().tolist() == [[True, False, False, False]]


def test_a_draw_is_the_inverse_of_the_cumulative_distribution():
    logits = torch.tensor([[0.25, 0.0, 0.5, 0.25]]).log().expand(6, -1)
    uniforms = torch.tensor([0.0, 0.2499999, 0.25, 0.7499999, 0.75, 1 - 2**-24])
    assert draw(logits, uniforms).tolist() == [0, 0, 2, 2, 3, 3]


def test_impossible_tokens_are_never_drawn_at_the_ends_of_the_range():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(512, 1000, generator=generator)
    logits[:, :300], logits[:, 700:] = -math.inf, -math.inf
    for number in (0.0, 2**-24, 0.5, 1 - 2**-24):
        ids = draw(logits, torch.full((512,), number))
        assert ids.min() >= 300
        assert ids.max() < 700


def test_a_sum_with_rounding_errors_never_draws_an_impossible_token(monkeypatch):
    """As a sum made in parallel may: 0.5 is reached by token 0, and a little more by the impossible token 1."""
    sums = torch.tensor([[0.5, 0.5 + 2**-20, 0.5 + 2**-20, 1.0]])
    monkeypatch.setattr(torch.Tensor, "cumsum", lambda *_: sums)
    logits = torch.tensor([[0.5, 0.0, 0.0, 0.5]]).log()
    assert draw(logits, torch.tensor([0.5 + 2**-21])).item() in (0, 3)


@pytest.mark.parametrize("temperature", [0.001, 100])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e37])
def test_extreme_temperatures_and_logits_stay_finite(temperature, scale):
    logits = torch.tensor([[1.0, -1.0, 0.5]]) * scale
    settings = SamplingConfig(temperature=temperature, top_k=2, top_p=0.9, min_p=0.01)
    probabilities = shape_logits(logits, settings).softmax(-1)
    assert probabilities.sum().item() == pytest.approx(1, abs=1e-6)
    assert 0 <= next_ids(logits, settings, keys=[1], position=0).item() < 3


@pytest.mark.parametrize("temperature", [0, 1])
def test_logits_that_are_no_numbers_give_no_token(temperature):
    rows = torch.tensor([[0.0, math.nan], [-math.inf, -math.inf], [0.0, math.inf], [0.0, 1.0]])
    ids = next_ids(rows, SamplingConfig(temperature=temperature), keys=[1, 2, 3, 4], position=0).tolist()
    assert ids[:3] == [NOT_A_TOKEN] * 3
    assert ids[3] in (0, 1)


def test_bfloat16_logits_are_shaped_in_float32():
    logits = torch.tensor([LOGITS])
    settings = SamplingConfig(temperature=0.7, top_p=0.9)
    expected = shape_logits(logits.bfloat16().float(), settings)
    assert torch.equal(shape_logits(logits.bfloat16(), settings), expected)


def test_uniform_numbers_are_even_and_independent_of_their_neighbours():
    numbers = torch.tensor([[uniform(key, position) for position in range(100)] for key in row_keys(0, [[5]] * 100)])
    assert numbers.min() >= 0
    assert numbers.max() < 1
    counts = torch.histc(numbers, bins=10, min=0, max=1)
    assert ((counts - 1000) ** 2 / 1000).sum() < 33.7  # chi-square, 9 degrees of freedom, once in 10,000
    for shifted, plain in ((numbers[1:], numbers[:-1]), (numbers[:, 1:], numbers[:, :-1])):
        assert torch.corrcoef(torch.stack((shifted.flatten(), plain.flatten())))[0, 1].abs() < 0.04


def test_row_keys_depend_on_seed_prompt_and_copy_alone():
    together = row_keys(3, [[1, 2], [4], [1, 2]])
    assert together[0] == row_keys(3, [(1, 2)])[0]
    assert together[1] == row_keys(3, [[4]])[0]
    assert together[2] == row_keys(3, [[1, 2], [1, 2]])[1]
    assert len({*together, row_keys(4, [[1, 2]])[0]}) == 4


REFUSED = [
    ("temperature", -0.1),
    ("temperature", 0.0001),
    ("temperature", 101),
    ("temperature", math.nan),
    ("temperature", math.inf),
    ("temperature", "0.8"),
    ("temperature", None),
    ("temperature", False),
    ("top_k", -1),
    ("top_k", 2.5),
    ("top_k", True),
    ("top_p", 0.0),
    ("top_p", 1.01),
    ("top_p", math.nan),
    ("min_p", -0.01),
    ("min_p", 1.5),
    ("repetition_penalty", 0),
    ("repetition_penalty", -1.0),
    ("repetition_penalty", 1000),
    ("repetition_penalty", None),
    ("max_new_tokens", 0),
    ("max_new_tokens", -5),
    ("max_new_tokens", 10**8),
    ("max_new_tokens", 12.0),
    ("seed", -1),
    ("seed", 2**63),
    ("seed", 0.5),
    ("stop", ("",)),
    ("stop", ("ok", 3)),
    ("stop", ("x" * 1001,)),
    ("stop", ("x",) * 65),
    ("stop", 7),
]


@pytest.mark.parametrize(("option", "value"), REFUSED)
def test_an_impossible_option_is_refused_with_its_name_and_range(option, value):
    with pytest.raises(UserError) as refusal:
        SamplingConfig(**{option: value})
    lines = refusal.value.lines()
    assert len(lines) <= 3
    assert option in lines[0]
    assert lines[-1].startswith(f"  try: {option}: ")
    assert max(map(len, lines)) < 200


def test_the_ends_of_every_range_are_allowed():
    SamplingConfig(temperature=0, top_k=0, top_p=1, min_p=0, repetition_penalty=0.01, max_new_tokens=1, seed=0)
    SamplingConfig(temperature=100, top_k=None, top_p=1e-6, min_p=1, repetition_penalty=100, max_new_tokens=10**7)
    assert SamplingConfig(stop="one").stop == ("one",)
    assert SamplingConfig(stop=["a", "b"]).stop == ("a", "b")


def test_options_that_are_off_change_nothing():
    logits = torch.tensor([LOGITS])
    off = SamplingConfig(temperature=1, top_k=0, top_p=1.0, min_p=0.0)
    assert torch.equal(shape_logits(logits, off), shape_logits(logits, SamplingConfig(temperature=1)))
