"""The template language, the sampler, the parser and the proofs, on grammars small enough to write out in full."""

from __future__ import annotations

import itertools
import math
from collections import Counter

import pytest

from tiny_transformer.data.stories.analysis import ambiguities, entropy
from tiny_transformer.data.stories.parser import Parser
from tiny_transformer.data.stories.sampler import Sampler, longest
from tiny_transformer.data.stories.template import UNITS, Alternatives, Draw, Literal, Reader, Reference, Sum, shares
from tiny_transformer.data.stories.words.build import nouns, numbers, people, phrases, rows, with_lists, words

PETS = with_lists(nouns("cat, dog"), {"noises": [words("purr, miaow"), words("bark, growl")]})
LISTS = {
    "names": people("Ann, Eve", "Bob"),
    "pets": PETS,
    "fruit": nouns("apple, cherry, pear, plum"),
    "numbers": numbers("one, two, three, four, five, six", first=1),
    "few_numbers": numbers("one, two, three", first=1),
}
RULES = {
    "start": """
    {who=names} [3*saw {pet=pets.a}|2*met|waved]. [|It said {_=pet/noises}. ]
    {who.He} had {some=few_numbers} {first=fruit.many} and {more=few_numbers} {second=fruit.many-first}:
    {all=some+more}.

    <end person=who>
    """.replace("[|It said {_=pet/noises}. ]", ""),
    "end": "[#ending {person} ate {all} of them|The {first} was bad|The {second} fell[ down|]].",
}
NESTED = {
    "start": "A {pet=pets} said {noise=pet/noises}[, then {other=pet/noises-noise}|]. [2*It [ran|hid]|{noise.Cap}!]",
}


def read(rules, lists=LISTS):
    return Reader(rules, lists).read("start")


def enumerate_texts(sequence, slots=None):
    """All (text, probability) pairs of a tree, written without the sampler or the parser."""
    slots = slots or {}
    if not sequence:
        yield "", 1.0, slots
        return
    node, rest = sequence[0], sequence[1:]
    for text, p, bound in list(enumerate_node(node, slots)):
        for more, q, final in enumerate_texts(rest, bound):
            yield text + more, p * q, final


def enumerate_node(node, slots):
    if isinstance(node, Literal):
        yield node.text, 1.0, slots
    elif isinstance(node, Reference):
        yield slots[node.slot].forms[node.form], 1.0, slots
    elif isinstance(node, Sum):
        value = slots[node.left].value + node.sign * slots[node.right].value
        entry = next(e for e in LISTS["numbers"] if e.value == value)
        yield entry.forms[node.form], 1.0, slots | {node.slot: entry}
    elif isinstance(node, Alternatives):
        for option, count in zip(node.options, node.counts, strict=True):
            for text, p, bound in enumerate_texts(option, slots):
                yield text, p * count / UNITS, bound
    else:
        assert isinstance(node, Draw)
        entries = slots[node.owner].lists[node.source] if node.owner else node.entries
        left = [entry for entry in entries if entry not in [slots[name] for name in node.without]]
        for entry, count in zip(left, shares((1,) * len(left)), strict=True):
            yield entry.forms[node.form], count / UNITS, slots | {node.slot: entry}


@pytest.mark.parametrize("rules", [RULES, NESTED], ids=["sums", "lists of an entry"])
def test_enumerated_probabilities_sum_to_one_and_equal_the_scorers(rules):
    tree = read(rules)
    parser = Parser(tree)
    texts = [(text, p) for text, p, _ in enumerate_texts(tree)]
    assert math.fsum(p for _, p in texts) == pytest.approx(1.0, abs=1e-12)
    assert len({text for text, _ in texts}) == len(texts)  # no two derivations write the same text
    assert ambiguities(tree) == []
    assert len(texts) > (1000 if rules is RULES else 10)
    for text, p in texts[:: max(1, len(texts) // 500)]:
        (derivation,) = parser.derivations(text)
        assert derivation.log_probability == pytest.approx(math.log(p), abs=1e-12)


@pytest.mark.parametrize("rules", [RULES, NESTED], ids=["sums", "lists of an entry"])
def test_entropy_equals_the_enumerated_expectation(rules):
    tree = read(rules)
    assert entropy(tree) == pytest.approx(-math.fsum(p * math.log(p) for _, p, _ in enumerate_texts(tree)), rel=1e-12)


def test_sampled_frequencies_follow_the_enumerated_probabilities():
    tree = read(NESTED)
    expected = {text: p for text, p, _ in enumerate_texts(tree)}
    sampler, n = Sampler(tree), 20_000
    seen = Counter(sampler.sample(3, i)[0] for i in range(n))
    assert set(seen) <= set(expected)
    chi_square = sum((seen[text] - n * p) ** 2 / (n * p) for text, p in expected.items())
    freedom = len(expected) - 1
    assert abs(chi_square - freedom) < 4 * math.sqrt(2 * freedom)


def test_sampled_log_probability_equals_enumerated():
    tree = read(RULES)
    expected = {text: p for text, p, _ in enumerate_texts(tree)}
    sampler = Sampler(tree)
    for index in range(500):
        text, log_p = sampler.sample(0, index)
        assert log_p == pytest.approx(math.log(expected[text]), abs=1e-12)


@pytest.mark.parametrize(
    ("rule", "times"),
    [("[a|ab][bc|c]", 2), ("[|very ][very |]tall", 2), ("[{x=fruit}|{y=fruit}]", 2), ("[a[b|]|ab]c", 2)],
)
def test_ambiguity_is_reported_and_its_probabilities_are_summed(rule, times):
    tree = read({"start": rule})
    assert ambiguities(tree)
    texts = Counter()
    for text, p, _ in enumerate_texts(tree):
        texts[text] += p
    doubled = {text: p for text, p in texts.items() if len(Parser(tree).derivations(text)) == times}
    assert doubled
    for text, p in doubled.items():
        assert sum(math.exp(d.log_probability) for d in Parser(tree).derivations(text)) == pytest.approx(p, abs=1e-12)


@pytest.mark.parametrize(
    "rule",
    [
        "[a|ab]c",
        "[{x=fruit} fell|{x=fruit} broke]",
        "{x=fruit} and {y=fruit-x}: [{x} fell|{y} fell]",
        "{n=few_numbers} {m=few_numbers}[ very|] much {s=n+m}",
        "{p=pets} [{_=p/noises}s|{_=p/noises}ed]",
        "{x=fruit.a}[ and {y=fruit.a-x}|] fell",
    ],
)
def test_options_told_apart_later_are_not_reported(rule):
    assert ambiguities(read({"start": rule})) == []
    tree = read({"start": rule})
    texts = [text for text, _, _ in enumerate_texts(tree)]
    assert len(set(texts)) == len(texts)


def test_a_word_that_begins_another_is_reported_when_the_rest_can_follow():
    lists = LISTS | {"trees": phrases("oak\noak tree"), "parts": words("bark, tree bark")}
    assert ambiguities(read({"start": "{a=trees} {b=parts}"}, lists))
    assert ambiguities(read({"start": "{a=trees}, {b=parts}"}, lists)) == []


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ("{who}", "not bound on every path"),
        ("[{x=fruit}|no] {x}", "not bound on every path"),
        ("{x=fruit} {x=fruit}", "bound twice"),
        ("[{x=fruit}|no] {x=fruit}", "bound twice"),
        ("{x=fruit} {y=pets-x}", "same list"),
        ("{x=fruit} {y=fruit} {z=fruit-x-y}", "without one another"),
        ("{x=flowers}", "no word list"),
        ("{x=fruit} {x.colour}", "no form"),
        ("{x=names} {y=x/noises}", "same number"),
        ("{x=few_numbers} {y=few_numbers} {z=x-y}", "no word in the list"),
        ("<nothing>", "no rule"),
        ("<start>", "contains itself"),
        ("[a|b", "never closed"),
        ("a]b", "without a ["),
        ("100%", "cannot be written"),
        ("{x y}", "not a mark"),
    ],
)
def test_mistakes_in_a_plot_are_named(rule, message):
    with pytest.raises(ValueError, match=message.replace("[", r"\[")):
        read({"start": rule})


def test_layout_of_the_source_does_not_reach_the_text():
    tree = read({"start": "\n  One [\n  two\n  | three ] four\n  five\n\n  six [#ending\n   seven|\n eight\n  ].\n"})
    texts = {text for text, _, _ in enumerate_texts(tree)}
    assert texts == {
        f"One {a} four five\nsix {b}." for a, b in itertools.product(("two", "three "), ("seven", "eight"))
    }
    assert [node.tag for node in tree if isinstance(node, Alternatives)] == ["wording", "ending"]


@pytest.mark.parametrize("weights", [(1,), (1, 1, 1), (3, 2, 1), (1,) * 256, (1000, 1, 1), (1,) * 7])
def test_shares_are_whole_positive_and_proportional(weights):
    counts = shares(weights)
    assert sum(counts) == UNITS
    assert min(counts) >= 1
    if max(weights) < 100:
        assert all(abs(c - w * UNITS / sum(weights)) < 1 for c, w in zip(counts, weights, strict=True))


def test_rules_can_be_reused_for_another_slot():
    tree = read({"start": "{a=names} {b=names-a} <hi who=b>", "hi": "<by who=who>", "by": "{who} smiled at {a}"})
    texts = {text for text, _, _ in enumerate_texts(tree)}
    assert "Ann Bob Bob smiled at Ann" in texts


def test_forms_of_words():
    apple, leaf = nouns("apple, leaf=leaves")
    assert (apple.forms["a"], apple.forms["A"], apple.forms["many"]) == ("an apple", "An apple", "apples")
    assert leaf.forms["many"] == "leaves"
    assert [n.forms["many"] for n in nouns("berry, box, toy, brush")] == ["berries", "boxes", "toys", "brushes"]
    assert rows("- deed", "shy | hid")[0].forms == {"": "shy", "deed": "hid"}
    assert longest(read(NESTED)) == 6


def test_pieces_name_the_skill_and_the_distance_of_a_copy():
    rule = "{x=names}, {y=names-x}: {x.He} [#ending met|saw] {y}." + " so" * 70 + " {y} and {x} and {x@ordering}."
    (derivation,) = Parser(read({"start": rule})).derivations(
        "Ann, Bob: She saw Bob." + " so" * 70 + " Bob and Ann and Ann."
    )
    assert [p.tag for p in derivation.choices] == [
        *("name", "phrase", "name", "phrase", "pronoun", "phrase", "ending", "phrase", "copy", "phrase"),
        *("recall", "phrase", "recall", "phrase", "ordering", "phrase"),
    ]
