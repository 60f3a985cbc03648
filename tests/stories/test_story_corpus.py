"""The corpus itself: the same everywhere, scored exactly, unambiguous, varied, and quick."""

from __future__ import annotations

import hashlib
import itertools
import math
import random
import re
import statistics
import subprocess
import sys

import numpy as np
import pytest
import tiny_corpus

from tiny_transformer.data import stories
from tiny_transformer.data.stories.analysis import ambiguities
from tiny_transformer.data.stories.sampler import available
from tiny_transformer.data.stories.template import UNITS, Alternatives, Draw, Literal, Sum, shares

# Changes whenever any story changes. Renew it together with an intended change of the grammar.
FIRST_200 = "a850be5d119c22a46201d0c0628be603b1b5a809218eab442f38cf3c955b35f0"
FREE = {"phrase", "copy", "recall", "pronoun", "arithmetic", "ordering"}  # nothing is chosen


@pytest.fixture(scope="module")
def sample() -> list[stories.Story]:
    return list(itertools.islice(stories.documents(1), 2000))


def test_first_stories_have_not_changed():
    text = "\n\n".join(s.text for s in itertools.islice(stories.documents(0), 200))
    assert hashlib.sha256(text.encode("ascii")).hexdigest() == FIRST_200


def test_the_tiny_corpus_is_told_again() -> None:
    """Red: `python tests/tiny_corpus.py`."""
    assert tiny_corpus.PATH.read_bytes() == tiny_corpus.tiny_corpus().encode("utf-8")


def test_a_story_depends_on_seed_and_index_only():
    assert list(itertools.islice(stories.documents(5, 7), 3)) == [stories.story(5, i) for i in (7, 8, 9)]
    assert stories.story(5, 7) != stories.story(6, 7) != stories.story(6, 8)
    random.seed(0)
    np.random.seed(0)
    before = random.getstate(), np.random.get_state()[1].tobytes()
    stories.story(1, 1)
    assert before == (random.getstate(), np.random.get_state()[1].tobytes())


def test_no_two_options_of_any_choice_can_write_the_same_text():
    assert ambiguities(stories.tree()) == []


def test_reading_a_story_gives_back_its_one_derivation(sample):
    for story in sample[:400]:
        (derivation,) = stories._parser().derivations(story.text)
        assert derivation.log_probability == pytest.approx(story.log_probability, abs=1e-9)
        assert stories.log_probability(story.text) == derivation.log_probability


def random_walk(sequence, slots, rng, pieces):
    """Writes one derivation at random, without the sampler: (text, cost of the choice or None) for each piece."""
    for node in sequence:
        if isinstance(node, Alternatives):
            (chosen,) = rng.choices(range(len(node.options)), node.counts)
            pieces.append(("", -math.log(node.counts[chosen] / UNITS)))
            random_walk(node.options[chosen], slots, rng, pieces)
        elif isinstance(node, Draw):
            entries = available(node, slots.__getitem__)
            counts = shares((1,) * len(entries))
            (chosen,) = rng.choices(range(len(entries)), counts)
            slots[node.slot] = entries[chosen]
            pieces.append((entries[chosen].forms[node.form], -math.log(counts[chosen] / UNITS)))
        elif isinstance(node, Sum):
            value = slots[node.left].value + node.sign * slots[node.right].value
            slots[node.slot] = next(entry for entry in node.numbers if entry.value == value)
            pieces.append((slots[node.slot].forms[node.form], None))
        else:
            pieces.append((node.text if isinstance(node, Literal) else slots[node.slot].forms[node.form], None))


def test_reading_what_a_derivation_writes_gives_back_its_choices():
    rng = random.Random(6)
    for _ in range(150):
        pieces: list[tuple[str, float | None]] = []
        random_walk(stories.tree(), {}, rng, pieces)
        places = itertools.accumulate((len(text) for text, _ in pieces), initial=0)
        written = [(start, cost) for start, (_, cost) in zip(places, pieces, strict=False) if cost is not None]
        (derivation,) = stories._parser().derivations("".join(text for text, _ in pieces))
        read = [(piece.start, piece.cost) for piece in derivation.choices if piece.cost > 0]
        assert [place for place, _ in read] == [place for place, _ in written]
        assert [cost for _, cost in read] == pytest.approx([cost for _, cost in written])
        assert derivation.log_probability == pytest.approx(-math.fsum(cost for _, cost in written), abs=1e-9)


@pytest.mark.slow
def test_reading_five_thousand_stories_gives_back_their_one_derivation():
    for story in itertools.islice(stories.documents(2), 5000):
        (derivation,) = stories._parser().derivations(story.text)
        assert derivation.log_probability == pytest.approx(story.log_probability, abs=1e-9)


def test_pieces_cover_the_story_and_their_costs_sum_to_its_log_probability(sample):
    seen = set()
    for story in sample[:300]:
        pieces = story.choices
        assert [p.start for p in pieces] == [0, *(p.end for p in pieces[:-1])]
        assert pieces[-1].end == len(story.text)
        assert math.fsum(p.cost for p in pieces) == pytest.approx(-story.log_probability, abs=1e-9)
        assert all((p.cost == 0) == (p.tag in FREE) or p.start == p.end for p in pieces)
        seen |= {p.tag for p in pieces}
    assert seen == set(stories.SKILLS)


def test_mean_cost_of_ten_thousand_stories_equals_the_entropy():
    costs = [-s.log_probability for s in itertools.islice(stories.documents(3), 10_000)]
    error = statistics.stdev(costs) / math.sqrt(len(costs))
    assert abs(statistics.fmean(costs) - stories.entropy()) < 3 * error
    assert error < 0.005 * stories.entropy()


def test_text_with_one_character_changed_fails_at_that_character(sample):
    rng = random.Random(0)
    for story in sample[:60]:
        place = rng.randrange(len(story.text))
        text = story.text[:place] + "~" + story.text[place + 1 :]
        assert stories.score(text) == (-math.inf, place)


@pytest.mark.parametrize(
    ("change", "place"),
    [
        (lambda t: "", lambda t: 0),
        (lambda t: "once" + t[4:], lambda t: 0),
        (lambda t: t[:-1], lambda t: len(t) - 1),
        (lambda t: t[: len(t) // 2], lambda t: len(t) // 2),
        (lambda t: t + " ", lambda t: len(t)),
        (lambda t: t + "\n" + t, lambda t: len(t)),
    ],
    ids=["empty", "small letter", "no full stop", "half", "space after", "twice"],
)
def test_text_outside_the_language_scores_minus_infinity_with_the_place(change, place):
    text = stories.story(0, 0).text
    assert stories.score(change(text)) == (-math.inf, place(text))


def test_another_name_later_in_the_story_fails_where_it_differs():
    for index in range(5):
        text = stories.story(0, index).text
        hero = re.search(r"(?:named|called) (\w+)", text)[1]
        other = "Zed" if hero[0] != "Z" else "Ann"
        last = text.rindex(hero)
        assert stories.score(text[:last] + other + text[last + len(hero) :]) == (-math.inf, last)


def test_no_story_comes_twice_among_twenty_thousand():
    digests = {hashlib.sha256(s.text.encode()).digest() for s in itertools.islice(stories.documents(4), 20_000)}
    assert len(digests) == 20_000


def test_lengths_and_vocabulary_are_those_of_childrens_stories(sample):
    lengths = [len(story.text.split()) for story in sample]
    assert min(lengths) >= 80
    assert statistics.quantiles(lengths, n=100)[-1] <= 300
    assert max(lengths) <= 330
    vocabulary = {word for story in sample for word in re.findall(r"[a-z']+", story.text.lower())}
    assert 1000 <= len(vocabulary) <= 2300


def test_text_is_clean(sample):
    for story in sample:
        text = story.text
        assert text.isascii() and text == text.strip()
        assert not re.search(
            r"  | \n|\n |\n\n|[.,!?;:]{2}| [.,!?;:]|[{}<>|#\[\]_%]|\b[Aa] [aeiouAEIO]\w|\b[Aa]n [^aeiouhAEIOU]", text
        )
        assert not re.search(r"\b(\w+) \1\b", text.replace("had had", "")), re.search(r"\b(\w+) \1\b", text)
        for paragraph in text.split("\n"):
            assert paragraph.count('"') % 2 == 0
            assert re.search(r'[.!?]"?$', paragraph), paragraph
            assert re.match(r'["A-Z]', paragraph), paragraph
            assert not re.search(r"[.!?] [a-z]", re.sub(r'"[^"]*"', "Q", paragraph)), paragraph


def test_openings_vary_and_once_upon_a_time_is_frequent(sample):
    begins = sum(story.text.startswith("Once upon a time") for story in sample) / len(sample)
    assert 0.3 < begins < 0.7
    assert len({tuple(story.text.split()[:3]) for story in sample}) >= 6


@pytest.mark.clock
def test_import_is_quick_and_needs_neither_torch_nor_numpy():
    code = (
        "import sys, time; t = time.process_time(); import tiny_transformer.data.stories as s; "
        "print(time.process_time() - t, 'torch' in sys.modules, 'numpy' in sys.modules)"
    )
    runs = [
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
        for _ in range(3)
    ]
    assert min(float(run[0]) for run in runs) < 0.1
    assert runs[0][1:] == ["False", "False"]


def test_grammar_version_names_the_rules_and_the_words():
    assert re.fullmatch(r"[0-9a-f]{16}", stories.GRAMMAR_VERSION)
