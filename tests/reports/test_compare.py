"""Several runs on one page."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import made_up_run as made
import pytest
from test_report import Page
from typer.testing import CliRunner

from tiny_transformer.cli import app, run
from tiny_transformer.errors import ExitCode, UserError
from tiny_transformer.reports.charts import Chart
from tiny_transformer.reports.comparable import entries_of, same_text, unique_names
from tiny_transformer.reports.compare import (
    MAX_RUNS,
    differences,
    overlay,
    write_comparison,
)
from tiny_transformer.reports.run_reader import read_run


@pytest.fixture
def two_runs(tmp_path: Path) -> list[Path]:
    """The second has another rate, a key that the first lacks, and logs less often."""
    training = made.CONFIG["training"] | {"learning_rate": 0.003, "dropout": 0.1}
    first = made.make_run(tmp_path, "first")
    second = made.make_run(tmp_path, "second", config=made.CONFIG | {"training": training, "out_dir": "elsewhere"})
    rows = [made.log_row(step, evaluated=step == 1000) for step in range(50, 1001, 50)]
    made.write_log(second, [row | {"loss": row["loss"] + 1, "val_bits_per_byte": 0.9} for row in rows])
    return [first, second]


def test_only_settings_that_differ_are_listed(two_runs: list[Path]) -> None:
    found = differences([read_run(path) for path in two_runs])
    assert found == {"training.learning_rate": ["0.0012", "0.003"], "training.dropout": ["–", "0.1"]}


def chart_of(paths: list[Path]) -> Chart:
    chart = overlay(entries_of([read_run(path) for path in paths]))
    assert chart is not None
    return chart


def test_curves_stand_over_steps_tokens_and_time(two_runs: list[Path]) -> None:
    chart = chart_of(two_runs)
    first, first_val, second, second_val = chart.figure["series"]
    assert [one["name"] for one in (first, first_val, second)] == ["first", "first, validation", "second"]
    assert [one["group"] for one in chart.figure["series"]] == [0, 0, 1, 1]
    assert first["xs"]["step"] == list(range(10, 2001, 10))
    assert second["xs"]["tokens"] == [4096 * step for step in range(50, 1001, 50)]
    assert second["xs"]["time"] == pytest.approx([0.288 * step for step in range(50, 1001, 50)])
    assert (second_val["xs"]["step"], second_val["dots"]) == ([1000], True)
    assert second_val["y"] == [pytest.approx(made.log_row(1000, evaluated=True)["val_loss"], rel=1e-5)]
    assert [level["y"] for level in chart.figure["levels"]] == [1.5]


def test_a_run_that_exploded_does_not_flatten_the_others(two_runs: list[Path]) -> None:
    rows = [{"step": step, "loss": 8.0 if step < 10 else 500.0} for step in range(1, 100)]
    made.write_log(two_runs[1], rows)
    low, high = chart_of(two_runs).figure["view"]
    assert low < 1.5
    assert high == pytest.approx(1.25 * 8.5, rel=0.01)


def test_the_page_has_final_figures_side_by_side(two_runs: list[Path], tmp_path: Path) -> None:
    page = Page(write_comparison(two_runs, tmp_path / "both.html"))
    for words in (
        "Best on held-out text: first, with 1.620 nats per token.",
        "text stories stories tokenizer bpe-2048 bpe-2048 state finished finished",
        "steps 2,000 1,000",
        "tokens seen 8.19 million 4.1 million",
        "best validation loss 1.620",
        "peak memory 902.0 MB 901.0 MB",
        "training.learning_rate 0.0012 0.003 training.dropout – 0.1",
    ):
        assert words in page.text
    assert page.attributes("data-axis") == ["step", "tokens", "time"]
    assert (tmp_path / "both.html").stat().st_size < 200_000


def test_runs_with_different_tokenizers_are_compared_by_byte(tmp_path: Path) -> None:
    paths = [
        made.make_run(tmp_path, "a"),
        made.make_run(tmp_path, "b", tokenizer={"name": "byte", "fingerprint": "other"}),
    ]
    for path, nats, bits in ((paths[0], 1.6, 0.8), (paths[1], 0.9, 0.85)):
        made.write_log(path, [made.log_row(9, evaluated=True) | {"val_loss": nats, "val_bits_per_byte": bits}])
    page = Page(write_comparison(paths, tmp_path / "c.html"))
    assert "Best on held-out text: a, with 0.800 bits per byte." in page.text
    assert "compare bits per byte, not nats per token" in page.text
    assert page.figures["loss"]["unit"] == "bits per byte"
    assert [(one["name"], one["y"]) for one in page.figures["loss"]["series"]] == [
        ("a, validation", [0.8]),
        ("b, validation", [0.85]),
    ]
    assert [level["y"] for level in page.figures["loss"]["levels"]] == [made.FLOOR["bits_per_byte"]]


def test_runs_on_different_texts_are_never_ranked(tmp_path: Path) -> None:
    def data(source: str, text: str) -> dict[str, Any]:
        return {"source": source, "val_tokens": 9, "val_documents": 7, "val_text": text}

    paths = [
        made.make_run(tmp_path, "a", data=data("stories", "11")),
        made.make_run(tmp_path, "b", data=data("my.txt", "22"), floor=None),
        made.make_run(tmp_path, "c", data=data("my.txt", "22"), floor=None, val_loss=1.5),
        made.make_run(tmp_path, "d", data=data("my.txt", "33"), floor=None),  # of the same name, edited since
    ]
    page = Page(write_comparison(paths, tmp_path / "all.html"))
    assert "Trained on different texts: no ranking." in page.text
    assert "On my.txt: best on held-out text: c, with 1.500 nats per token." in page.text
    assert "compare losses of the same text only" in page.text
    assert list(page.figures) == ["loss-1"]
    assert {one["group"] for one in page.figures["loss-1"]["series"]} == {1, 2}
    assert page.figures["loss-1"]["levels"] == []
    page = Page(write_comparison(paths[:2], tmp_path / "two.html"))
    assert "Trained on different texts: no ranking." in page.text
    assert "Best" not in page.text
    assert page.figures == {}
    assert "No two of these runs share a text" in page.text and "nothing to draw yet" not in page.text


def unsaved(run: Path) -> Path:
    """The run as it is before its first checkpoint."""
    for path in (*run.glob("step-*"), run / "last", run / "best"):
        path.unlink() if path.is_symlink() else shutil.rmtree(path)
    return run


def test_a_run_without_a_checkpoint_is_compared_where_its_settings_say_that_the_text_is_the_same(
    tmp_path: Path,
) -> None:
    data = {"source": "stories", "val_tokens": 9, "val_documents": 7, "val_text": "11"}
    other = made.CONFIG | {"data": made.CONFIG["data"] | {"source": "my.txt"}}
    longer = made.CONFIG | {"data": made.CONFIG["data"] | {"seq_len": 512}}
    saved = made.make_run(tmp_path, "saved", data=data)
    same, apart = (unsaved(made.make_run(tmp_path, n, config=c)) for n, c in (("same", longer), ("apart", other)))
    for path, nats in ((saved, 1.6), (same, 1.7)):
        made.write_log(path, [made.log_row(step, evaluated=True) | {"val_loss": nats} for step in (5, 9)])
    page = Page(write_comparison([same, saved], tmp_path / "two.html"))
    assert "Best on held-out text: saved, with 1.600 nats per token." in page.text
    assert "different texts" not in page.text and "do not share a tokenizer" not in page.text
    assert {one["group"] for one in page.figures["loss"]["series"]} == {0, 1}
    page = Page(write_comparison([same, saved, apart], tmp_path / "three.html"))
    assert "Without a checkpoint, so it is not known which text judged them: apart." in page.text
    assert "On stories: best on held-out text: saved, with 1.600 nats per token." in page.text
    assert "different texts" not in page.text and "do not share a tokenizer" not in page.text


def test_runs_of_which_nothing_can_be_read_are_not_taken_for_runs_on_one_text(tmp_path: Path) -> None:
    runs = [unsaved(made.make_run(tmp_path, name, config={})) for name in ("a", "b")]
    assert len(same_text(entries_of([read_run(path) for path in runs]))) == 2


def test_runs_from_before_texts_were_hashed_are_known_by_name_and_documents(tmp_path: Path) -> None:
    new = made.make_run(tmp_path, "new", data={"source": "stories", "val_documents": 130, "val_text": "11"})
    old = made.make_run(tmp_path, "old")
    other = made.make_run(tmp_path, "other", data={"source": "stories", "val_documents": 131})
    assert len(same_text(entries_of([read_run(p) for p in (new, old)]))) == 1
    assert len(same_text(entries_of([read_run(p) for p in (new, old, other)]))) == 2


def test_runs_that_were_never_evaluated_are_counted_and_parts_of_a_text_are_told(tmp_path: Path) -> None:
    config = made.CONFIG | {"training": made.CONFIG["training"] | {"eval_tokens": 4096}}
    paths = [made.make_run(tmp_path, "a"), made.make_run(tmp_path, "b", config=config, val_loss=None)]
    made.write_log(paths[1], [{"step": 1, "loss": 2.0}])
    text = Page(write_comparison(paths, tmp_path / "c.html")).text
    assert "a, with 1.620 nats per token (1 of them was never evaluated)." in text
    assert "parts of the text of different length (training.eval_tokens)" in text


@pytest.mark.parametrize(
    ("first", "second", "why"),
    [
        ({"eval_tokens": 4096}, {}, "different length"),
        ({"eval_tokens": 4096}, {"eval_tokens": 9000}, "different length"),
        ({"packing": "documents"}, {"packing": "concat"}, "packed differently"),
        ({"packing": "concat"}, {}, None),  # the default
        ({"eval_tokens": 32_768}, {}, None),  # all of it
        ({"eval_tokens": 4096}, {"eval_tokens": 4000}, None),  # the same whole batches
        ({"eval_tokens": 4096}, {"eval_tokens": 4096}, None),
    ],
)
def test_only_runs_that_were_measured_alike_are_ranked(
    tmp_path: Path, first: dict[str, Any], second: dict[str, Any], why: str | None
) -> None:
    paths = []
    for name, more, nats in (("a", first, 1.6), ("b", second, 1.7)):
        config = made.CONFIG | {
            "data": made.CONFIG["data"] | {key: more[key] for key in more if key == "packing"},
            "training": made.CONFIG["training"]
            | {"micro_batch_size": 8}
            | {key: more[key] for key in more if key == "eval_tokens"},
        }
        paths.append(made.make_run(tmp_path, name, config=config))
        made.write_log(paths[-1], [made.log_row(step, evaluated=True) | {"val_loss": nats} for step in (5, 9)])
    text = Page(write_comparison(paths, tmp_path / "c.html")).text
    assert ("Best on held-out text: a, with 1.600 nats per token." in text) == (why is None)
    assert ("No ranking." in text) == (why is not None)
    assert text.count(why or "measured") == (2 if why else 0)  # beside the ranking and above the figures


def test_names_stay_apart_and_hostile_texts_stay_texts(tmp_path: Path) -> None:
    bad = '</script><img src="http://x/">'
    runs = [
        made.make_run(tmp_path / "x", "a<b>", config={"model": {bad: bad}, "training": [bad]}),
        made.make_run(tmp_path / "y", "a<b>", config={"model": {bad: 2}}, status=bad, tokenizer={"fingerprint": bad}),
    ]
    made.write_log(runs[1], [{"step": 1, "loss": bad, "seconds": bad, "update_ratios": {bad: bad}}])
    assert unique_names([read_run(path) for path in runs]) == ["a<b>", "a<b> (2)"]
    page = Page(write_comparison(runs, tmp_path / "c.html"))
    assert not any(tag in ("img", "b") for tag, _ in page.tags)
    assert sum(tag == "script" for tag, _ in page.tags) == 2
    assert "a<b> (2)" in page.text


def test_too_many_runs_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="9 runs are too many") as caught:
        write_comparison([tmp_path] * (MAX_RUNS + 1), tmp_path / "c.html")
    assert "name 8 at most" in str(caught.value)


def test_the_command_says_where_it_wrote(two_runs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = [os.path.relpath(path, tmp_path) for path in two_runs]
    for arguments, written in (
        (names, "compare.html"),
        ([*names, "--out", "both.html"], "both.html"),
        ([names[0]], f"{names[0]}/report.html"),
        ([names[0], "--out", "one.html"], "one.html"),
    ):
        result = CliRunner().invoke(app, ["report", *arguments])
        assert result.exit_code == 0, result.output
        assert result.output.strip() == written
        assert Path(written).read_text(encoding="utf-8").startswith("<!DOCTYPE html>")


def test_what_cannot_be_written_or_reported_is_answered_with_what_can(
    two_runs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pages").mkdir()
    for words, what, remedy in (
        ("report first --out pages", "pages is a directory", "name a file, such as pages/report.html"),
        ("compare first second --out pages", "pages is a directory", "name a file, such as pages/report.html"),
        ("report first/last", "this is not a run directory", "its run is first"),
        ("runs first/last", "no run in first/last", "tiny-transformer runs"),
        ("runs pages", "no run in pages", "tiny-transformer runs"),
    ):
        assert run(words.split()) == ExitCode.USAGE
        told = capsys.readouterr().err
        assert f"error: {what}\n" in told
        assert f"  try: {remedy}" in told
    assert run(["report", "first", "second"]) == ExitCode.OK
    assert capsys.readouterr().out == "compare.html\n"
    assert run(["report", "first", "second/../first"]) == ExitCode.OK
    assert capsys.readouterr().out == "first/report.html\n"


@pytest.mark.slow
def test_browser_draws_the_overlay(two_runs: list[Path], tmp_path: Path) -> None:
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("needs chromium")
    path = write_comparison(two_runs, tmp_path / "both.html")
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
    options += ["--disable-sync", "--disable-component-update", f"--user-data-dir={tmp_path / 'profile'}"]
    options += ["--virtual-time-budget=4000", "--enable-logging=stderr", "--dump-dom", path.as_uri()]
    done = subprocess.run([chromium, *options], capture_output=True, text=True, check=True)
    assert "CONSOLE" not in done.stderr, done.stderr
    place = done.stdout.partition('id="loss"')[2].partition("</figure>")[0]
    assert place.count("<circle") == 11
    assert 'class="run-1"' in place
    assert 'data-axis="step" aria-pressed="true"' in done.stdout


def test_json_of_the_overlay_is_valid(two_runs: list[Path]) -> None:
    chart = chart_of(two_runs)
    assert json.loads(json.dumps(chart.figure, allow_nan=False)) == chart.figure
