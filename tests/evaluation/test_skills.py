"""What is charged to which skill and which part of the story, and what a window of the model sees."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from small_corpus import PLAIN, SHAPE, reading
from torch import nn

from tiny_transformer.data import stories
from tiny_transformer.data.stories import Choice
from tiny_transformer.errors import UserError
from tiny_transformer.evaluation.skills import charge, report
from tiny_transformer.evaluation.stories import (
    FRESH_SEED,
    TokenCosts,
    ToldStory,
    fresh_stories,
    story_costs,
    token_ends,
)
from tiny_transformer.models import build_model
from tiny_transformer.tokenizers import Tokenizer, make_tokenizer


@pytest.fixture(scope="module")
def bpe() -> Tokenizer:
    return make_tokenizer("bpe", texts=[s.text for s in itertools.islice(stories.documents(5), 100)], vocab_size=600)


@pytest.fixture(scope="module")
def model() -> nn.Module:
    """A random model over bytes whose next token is far from obvious."""
    return build_model(SHAPE.model_copy(update={"vocab_size": 257, "initializer_range": 0.3}), seed=3).eval()


def costs_of(nats: list[float], pieces: list[str], stop: float = 0.0) -> TokenCosts:
    return TokenCosts(np.array([*nats, stop]), np.cumsum([len(piece) for piece in pieces]))


# --- charges
# -------------------------------------------------------------------------------------------------------------


def test_a_token_over_several_pieces_is_shared_by_characters_without_its_blank() -> None:
    choices = (Choice(0, 3, "phrase", 0.0), Choice(3, 6, "name", 1.0), Choice(6, 11, "phrase", 0.0))
    story = ToldStory("So Mia ran.", choices)
    charges = charge(story, costs_of([0.5, 1.6, 4.0], ["So", " Mia", " ran."], stop=0.25))
    assert [(c.tag, round(c.paid, 9)) for c in charges] == [
        ("phrase", 0.5),
        ("name", 1.6),
        ("phrase", 4.0),
        ("stop", 0.25),
    ]
    crossing = charge(story, costs_of([6.0, 4.0], ["So Mi", "a ran."]))
    assert [round(c.paid, 9) for c in crossing] == [3.0, 3.0 + 0.8, 3.2, 0.0]  # 2 of 4 letters; 1 of 5
    blank = charge(story, costs_of([1.0, 2.0, 3.0, 4.0], ["So", " ", "Mia", " ran."]))
    assert [round(c.paid, 9) for c in blank] == [3.0, 3.0, 4.0, 0.0]  # a token that is nothing but a blank


def test_choices_that_show_in_one_piece_share_what_is_lost_there() -> None:
    choices = (Choice(0, 0, "plot", 1.0), Choice(0, 0, "wording", 0.5), Choice(0, 3, "copy", 0.0))
    story = ToldStory("Mia ran.", (*choices, Choice(3, 8, "phrase", 0.0)))
    charges = charge(story, costs_of([3.0, 0.0], ["Mia", " ran."]))[:3]
    assert [(c.tag, c.exact) for c in charges] == [("plot", 1.0), ("wording", 0.5), ("copy", 0.0)]
    assert [c.paid for c in charges] == [1.5, 1.0, 0.5]


def test_a_choice_to_say_nothing_at_the_end_shows_in_the_end_token() -> None:
    story = ToldStory("Ran.", (Choice(0, 4, "phrase", 0.0), Choice(4, 4, "ending", 0.7)))
    charges = charge(story, costs_of([0.0], ["Ran."], stop=0.9))
    assert [(c.tag, round(c.paid, 9)) for c in charges] == [("phrase", 0.0), ("ending", 0.8), ("stop", 0.1)]


def test_half_a_character_counts_with_the_token_that_finishes_it() -> None:
    story = ToldStory("ab", (Choice(0, 1, "name", 0.0), Choice(1, 2, "phrase", 0.0)))
    charges = charge(story, TokenCosts(np.array([1.0, 2.0, 4.0, 0.0]), np.array([1, 1, 2])))
    assert [c.paid for c in charges] == [1.0, 6.0, 0.0]


def test_a_token_that_is_never_predicted_is_taken_at_its_exact_cost() -> None:
    story = ToldStory("Once upon", (Choice(0, 9, "opening", 0.7),))
    assert charge(story, costs_of([math.nan, 0.2], ["Once", " upon"]))[0].paid == pytest.approx(0.7)
    assert charge(story, costs_of([math.nan, 0.9], ["Once", " upon"]))[0].paid == pytest.approx(0.9)


@pytest.mark.parametrize("kind", ["byte", "bpe"])
def test_charges_of_real_stories_sum_to_what_the_model_pays(bpe: Tokenizer, kind: str) -> None:
    tokenizer = bpe if kind == "bpe" else make_tokenizer("byte")
    rng = np.random.default_rng(0)
    for told in fresh_stories(20):
        ids = tokenizer.encode(told.text)
        nats = rng.exponential(size=len(ids) + 1)
        charges = charge(told, TokenCosts(nats, token_ends(tokenizer, ids, told.text)))
        assert math.fsum(c.paid for c in charges) == pytest.approx(nats.sum(), rel=1e-12)
        exact = -stories.log_probability(told.text)
        assert math.fsum(c.exact for c in charges) == pytest.approx(exact, rel=1e-12)


def test_a_skill_that_is_missing_is_named_and_placed() -> None:
    """Exact costs everywhere, but two nats more for each thing told once more in its order."""
    charged = []
    for told in PLAIN.told(seed=3, count=200):
        nats = np.zeros(len(told.text) + 1)
        for piece in told.choices:
            extra = 2.0 if piece.tag == "ordering" else 0.0
            place = piece.start if piece.start < len(told.text) else -1
            nats[place] += piece.cost + extra
        charged.append(charge(told, TokenCosts(nats, np.arange(1, len(told.text) + 1))))
    result = report(charged)
    worst = result.skills[0]
    times = np.array([sum(c.tag == "ordering" for c in charges) for charges in charged])
    assert worst.name == "ordering"
    assert worst.lost == pytest.approx(2.0 * times.mean())
    assert worst.standard_error == pytest.approx(2.0 * times.std(ddof=1) / math.sqrt(200))
    assert worst.pieces == pytest.approx(times.mean())
    assert worst.share == pytest.approx(1.0)
    assert all(abs(row.lost) < 1e-9 for row in result.skills[1:])
    assert sum(row.lost for row in result.parts) == pytest.approx(worst.lost)
    assert sum(row.exact for row in result.parts) == pytest.approx(sum(row.exact for row in result.skills))
    assert sum(part.lost for part in result.parts[4:9]) == pytest.approx(worst.lost)  # after the first sentence


def test_a_piece_over_several_parts_is_shared_by_length() -> None:
    story = ToldStory("abcdefghijklmnopqrst", (Choice(0, 15, "name", 3.0), Choice(15, 20, "phrase", 0.0)))
    charges = charge(story, TokenCosts(np.array([0.3] * 15 + [0.2] * 5 + [0.5]), np.arange(1, 21)))
    parts = report([charges, charges]).parts
    assert [round(part.exact, 9) for part in parts] == [0.4] * 7 + [0.2, 0.0, 0.0]
    assert [round(part.lost, 9) for part in parts] == [0.2] * 7 + [0.3, 0.4, 0.9]
    assert parts[0].name == "0-10 %" and parts[9].name == "90-100 %"
    assert parts[0].standard_error == pytest.approx(0, abs=1e-12)


# --- what the model sees
# ------------------------------------------------------------------------------------------------------


@torch.inference_mode()
def alone(model: nn.Module, seen: list[int], target: int) -> float:
    """Minus the log-probability of one token after exactly these."""
    return -model(torch.tensor([seen]))[0, -1].log_softmax(-1)[target].item()


def test_each_token_is_scored_once_after_what_its_window_shows(model: nn.Module) -> None:
    texts = ["Ann had a fig and a plum, and that is all there is to say.", "Bob.", "Eve ran off with the pear."]
    where = reading(seq_len=16)
    for text, costs in zip(texts, story_costs(model, texts, where), strict=True):
        ids = [*where.tokenizer.encode(text), where.tokenizer.end_id]
        tokens = [where.tokenizer.end_id, *ids]
        assert costs.ends.tolist() == list(range(1, len(text) + 1))
        for place, target in enumerate(ids):
            # windows of 16 inputs start at 0, 8, 16, ...; the first that holds a target scores it
            start = 0 if place < 16 else 8 * ((place - 8) // 8)
            assert costs.nats[place] == pytest.approx(alone(model, tokens[start : place + 1], target), abs=1e-4)


def test_a_model_of_packed_documents_starts_with_the_first_token_and_is_not_charged_for_it(model: nn.Module) -> None:
    where = reading(predicts_first=False)
    (costs,) = story_costs(model, ["Eve ran."], where)
    ids = [*where.tokenizer.encode("Eve ran."), where.tokenizer.end_id]
    assert math.isnan(costs.nats[0])
    for place in range(1, len(ids)):
        assert costs.nats[place] == pytest.approx(alone(model, ids[:place], ids[place]), abs=1e-4)


def test_costs_do_not_depend_on_what_else_is_in_the_batch(model: nn.Module) -> None:
    texts = [told.text for told in PLAIN.told(seed=1, count=30)]
    together = story_costs(model, texts, reading())
    for text, costs in list(zip(texts, together, strict=True))[::7]:
        (single,) = story_costs(model, [text], reading())
        np.testing.assert_allclose(costs.nats, single.nats, atol=1e-4)


def test_fresh_stories_are_not_those_that_data_is_made_of() -> None:
    assert FRESH_SEED != 0
    told = fresh_stories(3)
    assert [t.text for t in told] == [stories.story(FRESH_SEED, i).text for i in range(3)]
    assert len({t.text for t in told} & {stories.story(0, i).text for i in range(50)}) == 0


def test_token_borders_in_characters(bpe: Tokenizer) -> None:
    text = stories.story(1, 1).text
    ids = bpe.encode(text)
    ends = token_ends(bpe, ids, text).tolist()
    assert ends[-1] == len(text)
    assert [text[start:end] for start, end in itertools.pairwise([0, *ends])] == [bpe.decode([i]) for i in ids]


def test_a_tokenizer_that_changes_the_text_is_refused(bpe: Tokenizer) -> None:
    with pytest.raises(UserError, match="character for character"):
        token_ends(bpe, bpe.encode("once upon a time"), "Once upon a time")
