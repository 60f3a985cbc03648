"""`compare`: intervals hold what they promise, seeds are no difference, and unlike models are not ranked."""

from __future__ import annotations

import gc
import json
import math
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from small_corpus import seed_runs

from tiny_transformer.cli import run
from tiny_transformer.errors import ExitCode, UserError
from tiny_transformer.evaluation.comparison import Comparison, Measured
from tiny_transformer.evaluation.measuring import MeasuringOptions, _Costs, measure, same_parts
from tiny_transformer.evaluation.paired import (
    ASSUMED_SPREAD,
    Difference,
    Interval,
    SeedSpread,
    measured_spread,
    ratio_interval,
)
from tiny_transformer.evaluation.studentized_range import studentized_range


def documents(generator: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Sizes of documents, some ten times as long as others, and a difference of two models on each with mean zero: it
    grows with the document, is skewed, and is larger for some documents than for others."""
    sizes = np.exp(generator.normal(5.5, 0.8, count)).round() + 1
    noise = np.sqrt(sizes) * generator.normal(0, 0.6, count) + 0.02 * sizes * (generator.exponential(1, count) - 1)
    return sizes, noise


@pytest.mark.slow
@pytest.mark.parametrize("count", [30, 200])
def test_intervals_hold_the_truth_in_95_of_100_cases(count: int) -> None:
    generator, truth, trials = np.random.default_rng(1), 0.01, 1000
    held = 0
    for trial in range(trials):
        sizes, noise = documents(generator, count)
        found = ratio_interval(truth * sizes + noise, sizes, seed=trial)
        held += found.low <= truth <= found.high
    assert 0.93 <= held / trials <= 0.97


def model(
    name: str, nats: np.ndarray, *, settings: str = "", text: str = "t", run: str = "", seed: int = 0
) -> Measured:
    return Measured(name, name, run or name, "stories", text, settings, 1, 1, 1.0, nats, seed=seed)


@pytest.mark.slow
@pytest.mark.parametrize("is_assumed", [True, False])
def test_two_seeds_of_one_config_are_no_difference_in_95_of_100_cases(is_assumed: bool) -> None:
    """Each seed has a level of its own, as far apart as the spread says; that is more than the documents' noise."""
    generator, trials, spread = np.random.default_rng(2), 400, ASSUMED_SPREAD.share
    verdicts = []
    for _ in range(trials):
        sizes, noise = documents(generator, 200)
        level = 2.0 * (1 + spread * generator.normal(size=3))
        nats = [own * sizes + part for own, part in zip(level, (noise, 0 * noise, 0.3 * noise), strict=True)]
        models = tuple(model(f"m{i}", one, settings="" if is_assumed else "same", seed=i) for i, one in enumerate(nats))
        found = Comparison(models[: 2 if is_assumed else 3], sizes, "data", ())
        verdicts.append(found.difference(models[0], models[1]).verdict)
    assert verdicts.count("no difference") / trials >= 0.95


@pytest.mark.parametrize(
    ("count", "degrees", "published"),
    [(2, 1, 17.97), (3, 2, 8.331), (3, 9, 3.949), (10, 9, 5.739), (10, 1, 49.07), (2, None, 2.772), (10, None, 4.474)],
)
def test_the_studentized_range_is_that_of_published_tables(count: int, degrees: int | None, published: float) -> None:
    assert studentized_range(count, degrees) == pytest.approx(published, rel=2e-4)


@pytest.mark.parametrize("count", [2, 3, 10])
def test_seeds_of_one_config_are_not_ranked_however_many_there_are(count: int) -> None:
    """The best of ten is the luckiest of ten: in 95 of 100 cases no other is called worse. The spread that is assumed
    was estimated with some degrees of freedom, so the true one is as far from it as these leave open."""
    generator, trials, sizes = np.random.default_rng(5), 2000, np.full(20, 100.0)
    degrees, ranked = ASSUMED_SPREAD.degrees or 0, 0
    for _ in range(trials):
        spread = ASSUMED_SPREAD.share / math.sqrt(generator.chisquare(degrees) / degrees)
        levels = sorted(2.0 * (1 + spread * generator.normal(size=count)))
        models = tuple(model(f"m{i}", level * sizes) for i, level in enumerate(levels))
        ranked += not Comparison(models, sizes, "data", ()).outcome()[0].startswith("No difference")
    rate, error = ranked / trials, math.sqrt(0.05 * 0.95 / trials)
    assert abs(rate - 0.05) < 3 * error


def test_of_many_models_the_documents_must_say_more() -> None:
    """Half the interval is 0.01 here; among ten it is 1.61 times as wide."""
    interval = Interval(0.015, 0.005, 0.025)
    assert Difference(interval).verdict == "worse" and Difference(interval, num_models=10).verdict == "no difference"
    assert Difference(Interval(0.017, 0.007, 0.027), num_models=10).verdict == "worse"


def test_a_difference_beyond_documents_and_seeds_is_found() -> None:
    sizes, noise = documents(np.random.default_rng(3), 200)
    good, bad = model("good", 2 * sizes + noise), model("bad", 2.2 * sizes)
    found = Comparison((good, bad), sizes, "data", ())
    assert found.difference(bad, good).verdict == "worse" and found.difference(good, bad).verdict == "better"
    assert found.outcome() == ["Best on these documents: good. Worse: bad."]


def test_verdicts_of_single_differences() -> None:
    assert Difference(Interval(0.01, 0.005, 0.015)).verdict == "worse"
    assert Difference(Interval(-0.01, -0.015, -0.005)).verdict == "better"
    assert Difference(Interval(0.01, -0.001, 0.02)).verdict == "no difference"
    assert Difference(Interval(0.01, 0.005, 0.015), seed_margin=0.01).verdict == "no difference"
    assert Difference(Interval(0.0, 0.0, 0.0)).verdict == "no difference"
    assert Difference(Interval(0.5, math.nan, math.nan)).verdict == "not known"


def test_the_spread_of_seeds_is_measured_where_seeds_are_compared() -> None:
    """Two of one config say little, so their margin is wide; checkpoints of one run share their seed."""
    assert measured_spread([[1.0], [2.0]]) is None
    found = measured_spread([[1.0, 1.02], [2.0, 2.0]])
    assert found is not None and found.degrees == 2 and found.share == pytest.approx(0.01 / 1.01)
    assert SeedSpread(0.01, 1).margin(2.0) == pytest.approx(12.706 * math.sqrt(2) * 0.02, rel=1e-4)
    sizes = np.full(50, 100.0)
    one, other = model("a", 2 * sizes, run="r"), model("b", 2.01 * sizes, run="r")
    assert Comparison((one, other), sizes, "data", ()).difference(other, one).verdict == "worse"


def test_a_copy_of_a_run_says_nothing_about_seeds() -> None:
    sizes = np.full(50, 100.0)
    given = [(2.0, 1), (2.0, 1), (2.02, 2), (2.04, 3)]  # the second is the first in another directory
    models = tuple(
        model(f"m{i}", level * sizes, settings="same", run=f"r{i}", seed=seed) for i, (level, seed) in enumerate(given)
    )
    expected = measured_spread([[2.0, 2.02, 2.04]])
    found = Comparison(models, sizes, "data", ()).seed_spread
    assert expected is not None and found.degrees == 2 and found.share == pytest.approx(expected.share)
    assert Comparison(models[:2], sizes, "data", ()).seed_spread is ASSUMED_SPREAD


def test_unlike_models_are_not_ranked() -> None:
    sizes = np.full(50, 100.0)
    one, unknown, other = model("a", sizes), model("b", sizes, text=""), model("c", sizes, text="u")
    told = {name: Comparison((one, two), sizes, "data", ()).outcome() for name, two in (("b", unknown), ("c", other))}
    assert "not known what b learnt from" in told["b"][0]
    assert "different texts (a from stories; c from another selection of stories)" in told["c"][0]
    few = Comparison((model("a", sizes[:5]), model("b", sizes[:5])), sizes[:5], "data", ())
    assert "5 documents are too few" in few.outcome()[0] and few.as_json()["pairs"][0]["verdict"] is None


def test_where_a_first_token_is_not_predicted_nobody_is_asked_for_it() -> None:
    """Two cuttings of `abcdef`: the first place where a token ends in both is after `abc`."""
    ends = [np.array([1, 2, 3, 6]), np.array([3, 6])]
    blind = _Costs([np.array([np.nan, 2.0, 4.0, 8.0])], lambda i: ends[0], False)
    seeing = _Costs([np.array([1.0, 3.0])], lambda i: ends[1], True)
    totals, sizes = same_parts(["abcdef"], [blind, seeing])
    assert [total.tolist() for total in totals] == [[8.0], [3.0]] and sizes.tolist() == [3]
    totals, sizes = same_parts(["abcdef"], [seeing])
    assert totals[0].tolist() == [4.0] and sizes.tolist() == [6]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return seed_runs(tmp_path_factory.mktemp("seeds"))


@pytest.mark.slow
def test_bits_per_byte_are_what_the_model_pays_by_hand(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from tiny_transformer.models.open import open_checkpoint

    monkeypatch.chdir(runs)
    options = MeasuringOptions(num_documents=3, max_new_tokens=2, device="cpu")
    found = measure([Path("runs/s1"), Path("runs/s2")], options, print)
    opened = open_checkpoint("runs/s1", device="cpu", dtype=torch.float64)
    text = open_texts()[0]
    ids = [opened.tokenizer.end_id, *opened.tokenizer.encode(text)]
    assert len(ids) < 64
    logits = opened.model(torch.tensor([ids]))[0].log_softmax(-1)
    paid = -sum(logits[i, ids[i + 1]].item() for i in range(len(ids) - 1))
    own = next(one for one in found.models if one.name == "s1")
    assert own.nats[0] == pytest.approx(paid, rel=1e-5) and found.sizes[0] == len(text.encode())


def open_texts() -> list[str]:
    from tiny_transformer.evaluation.measuring import _documents

    return _documents(Path("data"), 3)


@pytest.mark.slow
def test_one_model_is_in_memory_at_a_time(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tiny_transformer.models import open as opening

    monkeypatch.chdir(runs)
    read: list[weakref.ref] = []
    load = opening.load_model

    def counted(*given: Any, **options: Any) -> Any:
        gc.collect()
        assert [model for one in read if (model := one()) is not None] == []
        model = load(*given, **options)
        read.append(weakref.ref(model))
        return model

    monkeypatch.setattr(opening, "load_model", counted)
    measure([Path("runs/s1"), Path("runs/s2")], MeasuringOptions(num_documents=3, max_new_tokens=2), print)
    assert len(read) >= 4


@pytest.mark.slow
def test_the_command_measures_two_seeds_and_writes_a_page(
    runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(runs)
    words = ["compare", "s1", "s2", "--max_new_tokens", "3", "--device", "cpu", "--prompt", "<b>One"]
    assert run([*words, "--json"]) == ExitCode.OK
    told = json.loads(capsys.readouterr().out)
    assert [pair["verdict"] for pair in told["pairs"]] == ["no difference"] and told["why_not_ranked"] is None
    assert told["num_documents"] >= 20 and told["seed_spread"]["from"].endswith("differ in their seed alone")
    assert run([*words, "--out", "page.html"]) == ExitCode.OK
    shown = capsys.readouterr().out
    assert "No difference between" in shown and "page.html" in shown
    assert max(len(line) for line in shown.splitlines()[:4]) <= 80
    page = (runs / "page.html").read_text(encoding="utf-8")
    assert page.count('<svg class="interval"') == 3 and "&lt;b&gt;One" in page and "<b>One" not in page
    assert 'id="loss"' in page  # the curves of both runs


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "what"),
    [
        ("s1", "only one checkpoint"),
        ("s1 runs/s1/last", "only one checkpoint"),
        ("s1 s2 --documents 0", "Invalid value for '--documents'"),
        ("s1 s2 --seed_spread 3", "--seed_spread 3.0 is not possible"),
        ("s1 s2 --tokenizer char", "tokenizer"),
        ("s1 s2 --cases cases.yaml --out x.html", "--out is not for --cases"),
        ("s1 s2 --out data", "data is a directory"),
        ("", "what is compared?"),
    ],
)
def test_what_cannot_be_compared_is_refused(
    words: str, what: str, runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(runs)
    assert run(["compare", *words.split()]) == ExitCode.USAGE
    assert what in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_without_a_checkpoint_is_drawn_and_not_measured(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(runs)
    (tmp_path / "new").mkdir()
    (tmp_path / "new/config.yaml").write_text(yaml.safe_dump({"data": {"source": "stories"}}))
    (tmp_path / "new/log.jsonl").write_text('{"step": 1, "loss": 3.0}\n')
    assert run(["compare", "s1", "s2", str(tmp_path / "new"), "--max_new_tokens", "2", "--device", "cpu"]) == 0
    assert "no whole checkpoint" in capsys.readouterr().err
    assert '<span class="key run-2"></span>new' in (runs / "compare.html").read_text(encoding="utf-8")


@pytest.mark.slow
def test_a_wrong_number_of_documents_is_refused(runs: Path) -> None:
    with pytest.raises(UserError, match="is not possible"):
        measure([runs / "runs/s1"], MeasuringOptions(num_documents=0), print)
