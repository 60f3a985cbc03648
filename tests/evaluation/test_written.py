"""What is right in what a model writes: all of the corpus's own stories, and each planted fault in its figure."""

from __future__ import annotations

import itertools

import pytest
from small_corpus import SHAPE

from tiny_transformer.data import stories
from tiny_transformer.evaluation.written import FIGURES, Figure, Text, in_words, read_stories, write_stories
from tiny_transformer.models import build_model
from tiny_transformer.tokenizers import make_tokenizer

TOLD = [Text(story.text, True) for story in itertools.islice(stories.documents(1), 12)]
NEWCOMER = 3  # TOLD[3]: Clover the fox goes to see who is new


@pytest.fixture(scope="module")
def figures() -> list[Figure]:
    return read_stories(TOLD)


def test_the_corpus_itself_has_100_percent_in_every_figure(figures: list[Figure]) -> None:
    assert [figure.name for figure in figures] == list(FIGURES)
    for figure in figures:
        assert figure.right == figure.places > 3 and figure.share == 1.0
        assert figure.right_stories == figure.stories
    by_name = {figure.name: figure for figure in figures}
    assert by_name["endings"].places == by_name["whole"].places == by_name["hero"].stories == 12
    assert by_name["sentences"].places == by_name["thread"].places + 12


@pytest.mark.parametrize(
    ("name", "before", "after"),
    [
        ("sentences", "Clover grabbed the nearest pillow.", "Clover the grabbed pillow is."),
        ("thread", " But it is hard to be new.", ""),
        ("hero", "Clover grabbed the nearest", "Biscuit grabbed the nearest"),
        ("others", 'too hot." Nell poured', 'too hot." Olga poured'),
        ("pronouns", "So she cooked", "So he cooked"),
        ("things", "buttoned up the pink apron", "buttoned up the red apron"),
        ("lists", '"And that you dig graves at night?"', '"And that you breathe fire?"'),
        ("endings", "\nNow, when Nell is away, Agatha is the first to ask when she is coming back.", ""),
        ("whole", "Agatha the sleepy owl", "Agatha the slumbering owl"),
    ],
)
def test_a_planted_fault_lowers_its_figure_by_one_and_no_other(
    figures: list[Figure], name: str, before: str, after: str
) -> None:
    text = TOLD[NEWCOMER].text
    assert text.count(before) == 1
    texts = [*TOLD[:NEWCOMER], Text(text.replace(before, after), True), *TOLD[NEWCOMER + 1 :]]
    lowered = {"sentences"} if name == "whole" else {name}  # a word that no story has
    for was, now in zip(figures, read_stories(texts), strict=True):
        expected = 1 if was.name in lowered | {"whole"} else 0
        assert (now.places - now.right, now.stories - now.right_stories) == (expected, expected), now.name


def test_a_wrong_sum_lowers_sums_alone(figures: list[Figure]) -> None:
    place, sums = next((i, c) for i, t in enumerate(TOLD) for c in stories.proofread(t.text).checks if c.kind == "sums")
    text = TOLD[place].text
    assert text[sums.start : sums.end].lower() != "nineteen"
    changed = text[: sums.start] + ("nineteen" if text[sums.start].islower() else "Nineteen") + text[sums.end :]
    after = read_stories([*TOLD[:place], Text(changed, True), *TOLD[place + 1 :]])
    lowered = {now.name for was, now in zip(figures, after, strict=True) if now.right < was.right}
    assert lowered == {"sums", "whole"}


def test_of_a_story_that_was_cut_off_the_rest_is_not_asked_for() -> None:
    text = TOLD[NEWCOMER].text
    cut = text[: text.index("buttoned up")]
    counted = {f.name: (f.right, f.places) for f in read_stories([Text(cut, False)])}
    assert counted["endings"] == counted["whole"] == (0, 0)
    assert counted["sentences"][0] == counted["sentences"][1] > 5
    ended = {f.name: (f.right, f.places) for f in read_stories([Text(cut, True)])}
    assert ended["endings"] == ended["whole"] == (0, 1)
    assert ended["sentences"] == (counted["sentences"][0], counted["sentences"][1] + 1)


def test_a_model_that_knows_nothing_is_told_so_and_writes_the_same_twice() -> None:
    tokenizer = make_tokenizer("byte")
    model = build_model(SHAPE.model_copy(update={"vocab_size": 257, "max_position_embeddings": 48}), seed=0).eval()
    texts = write_stories(model, tokenizer, 3)
    assert texts == write_stories(model, tokenizer, 3) != write_stories(model, tokenizer, 3, seed=1)
    firsts = [stories.story(1_000_003, i).text.split()[0] for i in range(3)]
    assert [text.text[: len(first)] for text, first in zip(texts, firsts, strict=True)] == firsts
    shares = {f.name: f.share for f in read_stories([Text("Xq zx. Qx zq. Zq. Xx. Xy. Yy.", True)])}
    assert shares["sentences"] == 0.0 and shares["hero"] is None


def test_knowledge_in_words() -> None:
    def made(**shares: float) -> list[Figure]:
        return [Figure(name, round(100 * share), 100, 0, 10) for name, share in shares.items()]

    assert in_words(made(sentences=0.98, hero=0.1)) == "It knows the sentences; not yet who is who."
    assert (
        in_words(made(sentences=0.9, pronouns=0.95, hero=1.0)) == "It knows the sentences, he from she and who is who."
    )
    assert in_words(made(sentences=0.2, hero=0.0)) == "It does not know yet: the sentences and who is who."
    assert in_words([Figure("hero", 0, 0, 0, 0)]) == "It writes too little to tell what it knows."
    assert (
        in_words([*made(sentences=1.0), Figure("sums", 1, 4, 1, 1)]) == "It knows the sentences."
    )  # four tell nothing
