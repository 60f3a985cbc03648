"""Facts inside the stories hold, checked by small readers that know English word order but not the grammar."""

from __future__ import annotations

import itertools
import re
from collections import Counter

import pytest

from tiny_transformer.data import stories

NUMBERS = """one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen
eighteen nineteen twenty""".split()
VALUE = {word: value for value, word in enumerate(NUMBERS, 1)}
NUMBER = "(" + "|".join(NUMBERS) + ")"
HERO = re.compile(r"(girl|boy|[a-z]+) (?:named|called) ([A-Z][a-z]+)")


@pytest.fixture(scope="module")
def texts() -> list[str]:
    return [story.text for story in itertools.islice(stories.documents(21), 3000)]


def test_sums_told_in_words_are_right(texts):
    rules = {
        "plus": (rf"{NUMBER} and {NUMBER} make {NUMBER}", lambda a, b, c: a + b == c),
        "minus": (rf"{NUMBER} take away {NUMBER} is {NUMBER}", lambda a, b, c: a - b == c),
        "steps": (rf"{NUMBER} steps to the gate, {NUMBER} steps to the corner: {NUMBER}", lambda a, b, c: a + b == c),
        "pots": (rf"{NUMBER} big pots and {NUMBER} small pots of soup. that made {NUMBER}", lambda a, b, c: a + b == c),
        "stones": (rf"away {NUMBER} stones, and the day after that {NUMBER}, which makes {NUMBER}", lambda a, b, c: a + b == c),
        "coins": (rf"out came {NUMBER} coins. that was {NUMBER} too few, because .* cost {NUMBER}", lambda a, b, c: a + b == c),
        "cakes": (rf"baked {NUMBER} .* ate {NUMBER}. now there were {NUMBER} left", lambda a, b, c: a - b == c),
        "king": (rf"a king with {NUMBER} .* gave her {NUMBER}, .* that left {NUMBER}", lambda a, b, c: a - b == c),
        "walk": (rf"packed {NUMBER} .* and gave (?:him|her) {NUMBER} [a-z ]+. that left {NUMBER}", lambda a, b, c: a - b == c),
    }  # fmt: skip
    seen = Counter()
    for text in texts:
        for name, (pattern, holds) in rules.items():
            for numbers in re.findall(pattern.replace(".*", "(?:.|\n)*?"), text.lower()):
                assert holds(*(VALUE[word] for word in numbers)), (name, numbers, text)
                seen[name] += 1
    assert set(seen) == set(rules), seen


def test_the_hero_keeps_the_name_and_the_pronoun(texts):
    for text in texts:
        kind, name = HERO.search(text).groups()
        beginning, rest = text.split("\n", 1)
        assert name in rest, text
        words = set(re.findall(r"\b(she|he|her|his|him)\b", beginning.lower()))
        assert words <= {"she", "her"} or words <= {"he", "his", "him"}, beginning
        if kind in ("girl", "boy"):
            assert words <= ({"she", "her"} if kind == "girl" else {"he", "his", "him"}), beginning


def test_everybody_who_speaks_has_been_introduced(texts):
    for text in texts:
        for match in re.finditer(r"\b(?:said|asked|whispered|cried) ([A-Z][a-z]+)(?=[ .,])", text):
            before = text[: match.start()]
            name = match[1]
            assert name in before or re.match(r" (?:the [a-z-]+ [a-z]+|[A-Z][a-z]+)", text[match.end() :]), (name, text)


def test_parcels_are_listed_again_in_the_same_order(texts):
    count = 0
    for text in texts:
        told = re.search(
            r'"Then listen\. (An? .*?) for (\w+) the .*?, (an? .*?) for (\w+) the .*?, and (an? .*?) for (\w+) the',
            text,
        )
        if told is None:
            continue
        things = [re.sub(r"^an? ", "", told[i].lower()) for i in (1, 3, 5)]
        names = [told[i] for i in (2, 4, 6)]
        assert len(set(things)) == len(set(names)) == 3
        sung = re.search(r'"([A-Z][a-z ]+) for (\w+), ([a-z ]+) for (\w+), ([a-z ]+) for (\w+)!"', text)
        assert [sung[i].lower() for i in (1, 3, 5)] == things
        assert [sung[i] for i in (2, 4, 6)] == names
        count += 1
    assert count > 50


def test_places_are_searched_in_the_order_they_were_visited(texts):
    count = 0
    for text in texts:
        told = re.search(r'"First I was (.*?), then (.*?), and after that (.*?)\."', text)
        if told is None:
            continue
        rest = text[told.end() :].lower()
        places = [rest.index(spot) for spot in told.groups()]
        assert places == sorted(places) and len(set(told.groups())) == 3
        count += 1
    assert count > 50


def test_the_chain_of_friends_pulls_in_order_of_arrival(texts):
    count = 0
    for text in texts:
        chain = re.search(r"(\w+) pulled (\w+), (\w+) pulled (\w+), (\w+) pulled (\w+), and (\w+) pulled the", text)
        if chain is None:
            continue
        assert chain[2] == chain[3] and chain[4] == chain[5] and chain[6] == chain[7]
        arrivals = re.findall(r"(?:So s?he called|Then came) (\w+) the", text)
        assert arrivals == [chain[4], chain[2], chain[1]]
        assert HERO.search(text)[2] == chain[6]
        count += 1
    assert count > 50


def test_the_hero_wears_the_same_thing_throughout(texts):
    garments = {entry.forms[""] for entry in stories.LISTS["clothes"]}
    colours = {entry.forms[""] for entry in stories.LISTS["colours"]}
    pattern = re.compile(rf"\b({'|'.join(colours)}) ({'|'.join(garments)})\b")
    for text in texts:
        beginning, rest = text.split("\n", 1)
        worn = pattern.search(beginning).groups()
        for other in pattern.findall(rest):
            # The one exception: a new one, of another colour, knitted for a hero who gave the first away.
            assert other == worn or (
                other[1] == worn[1] and re.search(r"(sewed|knitted|found) (him|her) an? ", rest)
            ), text


def test_every_rumour_has_its_reason(texts):
    count = 0
    reason = {entry.forms["you"]: entry.forms["why"] for entry in stories.LISTS["rumours"]}
    for text in texts:
        for question, answer in re.findall(r'And that you (.*?)\?"\n"(.*?)\." ', text):
            assert reason[question] == answer
            count += 1
    assert count > 50
