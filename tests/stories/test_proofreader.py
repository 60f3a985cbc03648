"""Reading what a model wrote: the corpus's own stories without a mistake, each planted fault where it was planted."""

from __future__ import annotations

import itertools

import pytest

from tiny_transformer.data import stories
from tiny_transformer.data.stories.proofreader import CHECKS, Proof, Proofreader

# A story of the plot `newcomer`: Clover the fox, three rumours told by Hilda, Agatha and Mr. Finch, and Nell.
STORY = stories.story(1, 3).text


@pytest.fixture(scope="module")
def reader() -> Proofreader:
    return Proofreader(stories.tree())


def wrong(proof: Proof, text: str) -> list[tuple[str, str]]:
    return [(check.kind, text[check.start : check.end]) for check in proof.checks if not check.is_right]


def lonely(proof: Proof, text: str) -> list[str]:
    """The sentences that are none of the language, or do not go on from the one before."""
    return [text[s.start : s.end] for s in proof.sentences if not (s.is_told and s.goes_on)]


def test_stories_of_the_grammar_are_read_without_a_mistake(reader: Proofreader) -> None:
    kinds = set()
    for story in itertools.islice(stories.documents(1), 40):
        proof = reader.read(story.text)
        assert wrong(proof, story.text) == [] and lonely(proof, story.text) == []
        assert proof.has_ending
        kinds |= {check.kind for check in proof.checks}
        between = [story.text[a.end : b.start] for a, b in itertools.pairwise(proof.sentences)]
        assert set(between) <= {" ", "\n"}  # the sentences are all of it
    assert kinds == set(CHECKS)


def test_what_is_checked_is_what_the_grammar_tells_again(reader: Proofreader) -> None:
    """Each pronoun, sum and thing in order that the exact parser finds is checked, at the same place."""
    for told in itertools.islice(stories.documents(3), 20):
        checks = reader.read(told.text).checks
        for tag, kind in (("pronoun", "pronouns"), ("ordering", "lists"), ("arithmetic", "sums")):
            places = [piece.start for piece in told.choices if piece.tag == tag]
            assert places == [check.start for check in checks if check.kind == kind]


@pytest.mark.parametrize(
    ("kind", "before", "after"),
    [
        ("hero", "Clover grabbed the nearest", "Biscuit grabbed the nearest"),
        ("hero", "said Clover in a deep", "said Hilda in a deep"),
        ("others", 'too hot." Nell poured', 'too hot." Olga poured'),
        ("others", "Agatha is the first to ask", "Mr. Oak is the first to ask"),
        ("pronouns", "So she cooked", "So he cooked"),
        ("pronouns", "ask when she is", "ask when he is"),
        ("things", "buttoned up the pink apron", "buttoned up the red apron"),
        ("things", "buttoned up the pink apron", "buttoned up the pink hat"),
        ("things", "all over the harbour", "all over the valley"),
        ("lists", '"And that you dig graves at night?"', '"And that you breathe fire?"'),
        (
            "lists",
            '"Those are my rakes. I like a tidy garden,"',
            '"The frogs were here before me. They are very quiet,"',
        ),
    ],
)
def test_one_wrong_word_is_found_and_nothing_else(reader: Proofreader, kind: str, before: str, after: str) -> None:
    assert STORY.count(before) == 1
    text = STORY.replace(before, after)
    proof = reader.read(text)
    ((found, _),) = wrong(proof, text)
    assert found == kind
    assert lonely(proof, text) == [] and proof.has_ending
    assert len(proof.checks) == len(reader.read(STORY).checks)


def test_a_sum_is_what_it_should_be_whatever_was_said_before(reader: Proofreader) -> None:
    text = next(s.text for s in stories.documents(1) if "take away" in s.text)
    assert "take away" in text and wrong(reader.read(text), text) == []
    start = text.index("there were") if "there were" in text else text.index("Now there")
    sums = [c for c in reader.read(text).checks if c.kind == "sums"]
    first = next(c for c in sums if c.start >= start)
    other = "twelve" if text[first.start : first.end] != "twelve" else "eleven"
    changed = text[: first.start] + other + text[first.end :]
    assert wrong(reader.read(changed), changed) == [("sums", other)]  # what follows is still counted from the right one


def test_a_sentence_of_no_language_ends_the_thread_and_not_the_reading(reader: Proofreader) -> None:
    text = STORY.replace("Clover grabbed the nearest pillow.", "Clover the grabbed pillow is.")
    proof = reader.read(text)
    broken = [text[s.start : s.end] for s in proof.sentences if not s.is_told]
    assert broken == ["Clover the grabbed pillow is."]
    assert lonely(proof, text)[1:] == ["But it is hard to be new."]  # told, from no sentence before it
    assert wrong(proof, text) == [] and proof.has_ending


def test_a_sentence_left_out_breaks_the_thread_once(reader: Proofreader) -> None:
    text = STORY.replace(" But it is hard to be new.", "")
    assert lonely(reader.read(text), text) == ["So she cooked potato salad, buttoned up the pink apron, and went."]
    assert reader.read(text).has_ending


def test_an_ending_must_follow(reader: Proofreader) -> None:
    last = STORY.rindex("\n")
    assert not reader.read(STORY[:last]).has_ending  # it only stops
    other = STORY[:last] + "\nIt flew away at once."
    assert not reader.read(other).has_ending  # of another plot
    half = STORY[: STORY.index("So she cooked")]
    assert not reader.read(half).has_ending
    assert reader.read(half + "The next day Clover was skipping stones again, as if nothing had happened.").sentences


def test_a_hero_who_was_never_introduced_is_who_is_named_first(reader: Proofreader) -> None:
    text = STORY[STORY.index("Clover grabbed") :]
    assert wrong(reader.read(text), text) == []
    later = text.replace("The next day Clover", "The next day Biscuit")
    assert wrong(reader.read(later), later) == [("hero", "Biscuit")]


@pytest.mark.parametrize(
    "text", ["", " ", "x", ".", "...", "\n\n", "Once", "\x00 \ufffd.", "a. b. c.", STORY[:100], STORY[7:]]
)
def test_any_text_can_be_read(reader: Proofreader, text: str) -> None:
    proof = reader.read(text)
    assert not proof.has_ending or text == STORY[7:]
    assert [s.start < s.end for s in proof.sentences] == [True] * len(proof.sentences)
