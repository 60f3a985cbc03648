"""The run report: what stands in it, that it asks the network for nothing, and that damaged runs still give a page."""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import made_up_run as made
import numpy as np
import pytest

from tiny_transformer.errors import ExitCode, UserError
from tiny_transformer.reports import report
from tiny_transformer.reports.charts import Chart
from tiny_transformer.reports.page import chart_section
from tiny_transformer.reports.report import write_report


class Page(HTMLParser):
    """A report taken apart: its readable text, its elements, and the figure behind each chart."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.styles: list[str] = []
        self.words: list[str] = []
        self.feed(self.source)
        self.text = " ".join(" ".join(self.words).split())
        ids = [
            attributes["id"] for tag, attributes in self.tags if (attributes.get("class") or "").startswith("chart ")
        ]
        data = [
            script
            for script, (_, attributes) in zip(self.scripts, (t for t in self.tags if t[0] == "script"), strict=True)
            if attributes.get("type") == "application/json"
        ]
        self.figures: dict[str | None, Any] = {key: json.loads(text) for key, text in zip(ids, data, strict=True)}

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, data: str) -> None:
        inside = self.tags[-1][0] if self.tags else ""
        if inside == "script" and self.cdata_elem == "script":
            self.scripts[-1] += data
        elif inside == "style" and self.cdata_elem == "style":
            self.styles.append(data)
        else:
            self.words.append(data)

    def attributes(self, name: str) -> list[str]:
        return [value for _, attributes in self.tags if (value := attributes.get(name)) is not None]


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Page:
    """The report of a finished run in which nothing is wrong."""
    return Page(write_report(made.make_run(tmp_path_factory.mktemp("runs"), "demo")))


def page_of(run_dir: Path) -> Page:
    path = write_report(run_dir)
    assert path == run_dir / "report.html"
    return Page(path)


def test_outcome_is_one_plain_sentence(demo: Page) -> None:
    assert (
        "Finished after 2,000 steps and 9.6 minutes. On held-out text the loss is 1.620 nats per token (0.736 bits per "
        "byte), 0.120 above the best loss possible." in demo.text
    )


def test_key_figures_stand_beside_the_floor_and_the_gap(demo: Page) -> None:
    assert "validation loss 1.620 0.736 best loss possible 1.500 0.690 gap +0.120 +0.046" in demo.text
    for figure in ("steps 2,000", "tokens seen 8.19 million", "training time 9.6 minutes", "parameters 3.46 million"):
        assert figure in demo.text


def test_settings_environment_samples_and_files_are_in_the_page(demo: Page) -> None:
    for words in (
        "model model_type qwen3 hidden_size 192 num_hidden_layers 6 rope_scaling null",
        "learning_rate 0.0012 sample_prompts Once upon a time, Mia and Tom",
        "out_dir runs/demo",
        "torch 2.13.0 python 3.11.2 device cpu threads 2 precision fp32 saved 2026-11-21 10:30:00+00:00",
        "source stories train_tokens 1,638,400 val_tokens 32,768 val_documents 130 unigram_nats 5.4 "
        "tokenizer name bpe-2048",
        "command tiny-transformer train --config configs/demo.yaml",
        "step 2,000, temperature 0.8, top k 40",
        "checkpoints step-00001000 , step-00002000",
    ):
        assert words in demo.text
    prompt = '<span class="prompt">Once upon a time</span>, there was a little fox named Pip.\n\nPip liked'
    assert prompt in demo.source


def test_loss_chart_holds_the_logged_values_and_the_floor(demo: Page) -> None:
    raw, smooth, val = demo.figures["loss"]["series"]
    steps = raw["xs"]["step"]
    assert steps == list(range(10, 2001, 10))
    assert raw["xs"]["tokens"] == [4096 * step for step in steps]
    assert raw["xs"]["time"] == [pytest.approx(0.288 * step, rel=1e-5) for step in steps]
    assert raw["y"] == [pytest.approx(made.log_row(s, evaluated=False)["loss"], rel=1e-5) for s in steps]
    assert (smooth["xs"], len(smooth["y"])) == (None, 200)
    assert val["xs"]["step"] == list(range(200, 2001, 200))
    assert val["y"] == [pytest.approx(made.log_row(s, evaluated=True)["val_loss"], rel=1e-5) for s in val["xs"]["step"]]
    assert demo.figures["loss"]["levels"] == [{"name": "best loss possible", "role": "floor", "y": 1.5}]


def test_what_a_chart_shows_stands_beside_it_in_words_and_numbers(demo: Page) -> None:
    (words,) = (label for label in demo.attributes("aria-label") if label.startswith("Loss:"))
    assert "training, each logged step from 8.539 at step 10 to 1.485 at step 2,000" in words
    assert "best loss possible 1.500" in words
    assert "numbers step training, each logged step training, smoothed validation 10 8.539 8.539 –" in demo.text
    assert "2,000 1.485 1.596 1.620" in demo.text
    assert re.search(r"numbers part step 20 step 1,\d+ step 2,000 embed_tokens 0.002 0.002 0.002", demo.text)


@pytest.mark.parametrize(
    ("chart", "key"),
    [("learning-rate", "learning_rate"), ("tokens-per-second", "tokens_per_second"), ("grad-norm",) * 2],
)
def test_other_charts_hold_the_logged_values(demo: Page, chart: str, key: str) -> None:
    key = key.replace("-", "_")
    curve = demo.figures[chart]["series"][0]
    steps = curve["xs"]["step"]
    assert curve["y"] == [pytest.approx(made.log_row(s, evaluated=False)[key], rel=1e-5) for s in steps]


def test_the_page_begins_with_a_diagnosis(demo: Page, tmp_path: Path) -> None:
    assert "above the best loss possible. Diagnosis Nothing unusual in the training: no check of loss" in demo.text
    run = made.make_run(tmp_path, "few", data={"val_tokens": 100})
    words = "The validation split is tiny: 100 tokens make the validation loss sure to about 10.0%"
    assert f"Diagnosis {words}" in page_of(run).text


def test_the_bar_shows_where_the_time_went(demo: Page) -> None:
    # of 0.288 s a step, 0.286 are named
    for words in (
        "forward and backward 69.4% 6.7 minutes",
        "optimizer 17.4% 100 seconds",
        "reading data 0.3% 2.00 seconds",
        "evaluation 6.9% 40 seconds",
        "everything else 0.7% 4.00 seconds",
    ):
        assert words in demo.text.replace("1.7 minutes", "100 seconds")
    widths = [float(style[6:-1]) for style in demo.attributes("style") if style.startswith("width:")]
    assert sum(widths) == pytest.approx(100, abs=0.05)
    assert widths[0] == pytest.approx(100 * 0.2 / 0.288, abs=0.01)


def test_the_same_prompt_is_shown_through_time(demo: Page) -> None:
    through = demo.text.partition("The same prompt through time")[2].partition("Settings")[0]
    assert "Mia and Tom step 20 the the the step 600 went to the sea. step 2,000 found a small blue shell." in through
    assert "found a small blue shell" not in demo.text.partition("The same prompt through time")[0]


def test_heat_map_holds_the_logged_ratios(demo: Page) -> None:
    heat = demo.figures["update-ratios"]
    assert heat["parts"] == ["embed_tokens", *(f"layer {i}" for i in range(6)), "norm"]
    assert [row[0] for row in heat["z"]] == [pytest.approx(math.log10(2e-3 * (1 + i)), abs=5.1e-3) for i in range(8)]
    heat = demo.figures["part-grad-norms"]
    assert [row[-1] for row in heat["z"]] == [pytest.approx(math.log10(0.1 + 0.05 * i), abs=5.1e-3) for i in range(8)]


def test_a_memory_that_stays_is_a_figure_and_no_chart(demo: Page) -> None:
    assert "memory" not in demo.figures
    assert "memory at most 902.0 MB" in demo.text


def test_page_asks_the_network_for_nothing(demo: Page) -> None:
    links = demo.attributes("href") + demo.attributes("src")
    assert "log.jsonl" in links
    assert [link for link in links if ":" in link or link.startswith("/")] == ["data:,"]
    assert not re.search(r"url\(|@import", "".join(demo.styles))
    (policy,) = (v for v in demo.attributes("content") if v.startswith("default-src"))
    allowed = dict(part.split(maxsplit=1) for part in policy.split("; "))
    assert allowed["default-src"] == "'none'"
    assert re.fullmatch(r"'sha256-[^ ]+'", allowed["script-src"])
    assert {tag for tag, _ in demo.tags} & {"iframe", "object", "embed", "img", "form", "base"} == set()


def test_page_of_a_long_and_wordy_run_stays_below_a_megabyte(tmp_path: Path) -> None:
    words = "word " * 10_000
    samples = [{"prompt": words, "text": words, "settings": {words: words}}] * 40
    config = {str(i): {str(j): words[:500] for j in range(50)} for i in range(10)} | {"model": {"note": words}}
    run = made.make_run(tmp_path, "long", samples=samples, config=config, command=[words], data={"source": words})
    row = made.log_row(2000, evaluated=True)
    numbers = {key: value for key, value in row.items() if isinstance(value, int | float)}
    parts = {f"layers.{i}": 1e-3 for i in range(300)}
    rows = [{key: value * 1.0001**step for key, value in numbers.items()} | {"step": step} for step in range(1, 6001)]
    made.write_log(run, [row | ({"update_ratios": parts} if row["step"] % 20 == 0 else {}) for row in rows])
    page = page_of(run)
    assert (run / "report.html").stat().st_size < 1_000_000
    steps = page.figures["loss"]["series"][0]["xs"]["step"]
    assert len(steps) <= 800
    assert steps[-1] == 6_000
    assert np.array(page.figures["update-ratios"]["z"]).shape == (100, 160)


def test_a_classifier_shows_what_was_taken_for_what(tmp_path: Path) -> None:
    bad = "<b>glad</b> & '"
    run = made.make_run(tmp_path, "sorted")
    kept = {"step": 40, "accuracy": 0.75, "macro_f1": 0.7333, "labels": [bad, "sad"], "confusion": [[12, 3], [1, 1234]]}
    (run / "classification.json").write_text(json.dumps(kept), encoding="utf-8")
    page = page_of(run)
    assert "accuracy 0.750, macro-F1 0.733" in page.text and "taken for at step 40" in page.text
    table = page.source.partition('<table class="rows confusion">')[2].partition("</table>")[0]
    assert bad not in page.source and table.count("&lt;b&gt;glad&lt;/b&gt; &amp; &#x27;") == 2
    cells = [re.sub("<[^>]*>", "", cell) for cell in re.findall("<td>(.*?)</td>", table)]
    assert cells == ["12", "3", "1", "1,234"]


@pytest.mark.parametrize(
    "kept", [[], {"labels": 3, "confusion": [[1]]}, {"labels": ["a", "b"], "confusion": [None, ["x", 10**400]]}]
)
def test_a_damaged_confusion_takes_no_other_part_of_the_page_with_it(kept: Any, tmp_path: Path) -> None:
    run = made.make_run(tmp_path, "sorted")
    (run / "classification.json").write_text(json.dumps(kept), encoding="utf-8")
    page = page_of(run)
    assert "could not be made" not in page.text and "Settings" in page.text


def test_whatever_a_run_holds_is_text_and_never_markup(tmp_path: Path) -> None:
    bad = '</script><script>alert(1)</script><img src="http://x/"> & "\''
    run = made.make_run(
        tmp_path,
        "a<b>&c",
        config={bad: {bad: [bad, {bad: bad}]}, "model": {"name": bad}},
        samples=[
            {"prompt": bad, "text": bad, "step": bad, "settings": {bad: bad, "temperature": t}} for t in (0.0, bad)
        ],
        versions={"torch": bad},
        device=bad,
        command=[bad],
        data={bad: bad},
        saved_at=bad,
        status=bad,
        tokenizer={bad: bad},
    )
    measured = {
        "update_ratios": {bad: 1e-3, "layers.0": bad},
        "seconds": {bad: 3, "data": bad},
        "peak_memory_bytes": bad,
    }
    rows = [{"step": 1, "loss": 2.0, bad: bad}, {"step": 2, "loss": bad, "val_loss": 1.9, "part_grad_norms": bad}]
    made.write_log(run, [row | measured for row in rows])
    page = page_of(run)
    assert sum(tag == "script" for tag, _ in page.tags) == 3  # two charts and report.js
    assert page.figures["update-ratios"]["parts"] == [bad, "layer 0"]
    assert not any(tag in ("img", "b") for tag, _ in page.tags)
    assert page.text.count("alert(1)") >= 12
    assert "a<b>&c" in page.text


def test_text_in_a_figure_cannot_end_its_script() -> None:
    bad = "</script><script>alert(1)</script>"
    series = [{"name": bad, "role": "train", "xs": {"step": [1]}, "y": [2.0]}]
    figure = {"kind": "lines", "unit": bad, "form": "loss", "series": series, "levels": [], "view": None}
    section = chart_section([Chart("loss", "Loss", "", figure)])
    assert section.count("<script") == section.count("</script") == 1
    assert json.loads(section.partition('json">')[2].partition("</script>")[0]) == figure


def test_run_without_a_log_shows_what_its_checkpoint_says(tmp_path: Path) -> None:
    run = made.make_run(tmp_path, "demo")
    (run / "log.jsonl").unlink()
    page = page_of(run)
    assert "Finished after 2,000 steps" in page.text
    assert "validation loss 1.620 0.736" in page.text
    assert "holds nothing to draw" in page.text
    assert page.figures == {}


@pytest.mark.parametrize("torn", ['{"step": 2010, "lo', '{"step": 2010, "loss": 9.9', "\0\0\0", '"step"'])
def test_torn_last_line_is_left_out_silently(tmp_path: Path, torn: str) -> None:
    run = made.make_run(tmp_path, "demo")
    with (run / "log.jsonl").open("a") as file:
        file.write(torn)
    page = page_of(run)
    assert page.figures["loss"]["series"][0]["xs"]["step"][-1] == 2000
    assert "damaged" not in page.text


def test_damaged_lines_in_the_middle_are_left_out_and_counted(tmp_path: Path) -> None:
    run = made.make_run(tmp_path, "demo")
    good = json.dumps({"step": 20, "loss": 3.0})
    (run / "log.jsonl").write_text(
        f'{{"step": 10, "loss": NaN}}\n!!\n[1]\n{good}\n{good}\n' + "[" * 100_000 + f"\n{good}\n"
    )
    page = page_of(run)
    assert page.figures["loss"]["series"][0]["xs"]["step"] == [20]
    assert "log.jsonl: 5 lines are damaged or out of order" in page.text


def test_run_without_evaluation_says_so(tmp_path: Path) -> None:
    run = made.make_run(tmp_path, "demo", val_loss=None, eval_loss=None, val_bits_per_byte=None)
    made.write_log(run, [{"step": 10, "loss": 3.25}, {"step": 20, "loss": 2.5}])
    page = page_of(run)
    assert "The training loss came to 2.500 nats per token; held-out text was never evaluated." in page.text
    assert "No validation loss" in page.text
    assert len(page.figures["loss"]["series"]) == 2


def test_run_without_a_floor_draws_and_claims_none(tmp_path: Path) -> None:
    page = page_of(made.make_run(tmp_path, "demo", floor=None))
    assert "1.620 nats per token (0.736 bits per byte)." in page.text
    assert "is not known" in page.text
    assert "gap" not in page.text
    assert page.figures["loss"]["levels"] == []


@pytest.mark.parametrize(
    ("training", "part"),
    [
        ({"eval_tokens": 5000, "micro_batch_size": 4}, "the first 5,120 tokens of the "),  # whole batches of 4 x 256
        ({"eval_tokens": 32_500, "micro_batch_size": 4}, ""),  # rounded up that is all of them
        ({"eval_tokens": 10**9}, ""),
        ({}, ""),
    ],
)
def test_a_loss_on_a_part_of_the_held_out_text_says_so(tmp_path: Path, training: dict[str, int], part: str) -> None:
    config = made.CONFIG | {"training": made.CONFIG["training"] | training}
    page = page_of(made.make_run(tmp_path, "demo", config=config))
    assert f"Measured on {part}held-out text at step 2,000." in page.text


def test_best_evaluation_counts_when_the_last_one_is_worse(tmp_path: Path) -> None:
    run = made.make_run(tmp_path, "demo", floor=None)
    rows = [
        {"step": s, "loss": 2.0, "val_loss": v, "val_bits_per_byte": v / 2} for s, v in ((1, 2.2), (2, 2.0), (3, 2.1))
    ]
    made.write_log(run, rows)
    (run / "step-00002000" / "manifest.json").unlink()
    (run / "step-00001000" / "manifest.json").unlink()
    page = page_of(run)
    assert "validation loss 2.000 1.000" in page.text
    assert "The best evaluation, at step 2; the last one gave 2.100." in page.text
    assert "No checkpoint is whole" in page.text


@pytest.mark.parametrize(
    ("status", "words"),
    [
        ("stopped", "Stopped after 2,000 of 3,000 steps and 9.6 minutes; it can be resumed."),
        ("running", "Stopped after 2,000 of 3,000 steps and 9.6 minutes; it can be resumed."),
        (
            "stopped_early",
            "Ended early after 2,000 of 3,000 steps and 9.6 minutes: the validation loss no longer fell.",
        ),
        ("finished", "Finished after 2,000 steps and 9.6 minutes."),
    ],
)
def test_ending_follows_the_status_of_the_newest_checkpoint(tmp_path: Path, status: str, words: str) -> None:
    assert words in page_of(made.make_run(tmp_path, "demo", status=status, total_steps=3000)).text


def test_only_a_log_is_enough(tmp_path: Path) -> None:
    made.write_log(tmp_path, [{"step": 1, "loss": 4.0}])
    page = page_of(tmp_path)
    assert "Stopped after 1 step, before any checkpoint." in page.text
    assert page.figures["loss"]["series"][0]["y"] == [4]


def test_empty_config_alone_gives_a_page(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("")
    assert "Nothing has been logged or saved yet." in page_of(tmp_path).text


@pytest.mark.parametrize("content", ["a: [", "- 1\n- 2", "a: &a [*a]", "\0", "{" * 1_000])
def test_unreadable_config_does_not_keep_the_rest_from_being_shown(tmp_path: Path, content: str) -> None:
    run = made.make_run(tmp_path, "demo")
    (run / "config.yaml").write_text(content)
    assert "Finished after 2,000 steps" in page_of(run).text


def test_config_that_multiplies_itself_stays_small(tmp_path: Path) -> None:
    run = made.make_run(tmp_path, "demo")
    lines = ["l0: [x, y]", *(f"l{i}: &l{i} [{', '.join([f'*l{i - 1}', 'z'] * 5)}]" for i in range(1, 12))]
    (run / "config.yaml").write_text("\n".join(lines).replace("l0: [", "l0: &l0 ["))
    page_of(run)
    assert (run / "report.html").stat().st_size < 1_000_000


@pytest.mark.parametrize(
    "content", ["", "[]", "[1, null]", '{"a": 1}', "nonsense", '[{"prompt": null, "settings": 3}]']
)
def test_odd_samples_give_a_page(tmp_path: Path, content: str) -> None:
    run = made.make_run(tmp_path, "demo")
    (run / "samples.json").write_text(content)
    assert "Finished after 2,000 steps" in page_of(run).text


def test_a_damaged_file_hides_no_other(tmp_path: Path) -> None:
    run = made.make_run(tmp_path, "demo")
    (run / "log.jsonl").write_text('{"step": 1, "loss": 2.0}\n')
    noted = {"size_bytes": 10**6, "sha256": "0" * 64}
    made.save_checkpoint(run, 3000, made.run_info(3000, log=noted), "last")
    for content, words in (("{", "samples.json cannot be read"), ("{}", "samples.json holds no list of samples")):
        (run / "samples.json").write_text(content)
        text = page_of(run).text
        assert words in text
        assert "log.jsonl is 999,975 bytes shorter than it was at the checkpoint" in text


def test_what_is_not_a_run_is_refused(tmp_path: Path) -> None:
    for path, what in ((tmp_path / "none", "no such directory"), (tmp_path, "not a run directory")):
        with pytest.raises(UserError, match=what) as caught:
            write_report(path)
        assert caught.value.exit_code is ExitCode.USAGE
        assert str(path) in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_section_that_fails_says_so_and_takes_no_other_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*arguments: Any) -> str:
        raise IndexError("no such row")

    run = made.make_run(tmp_path, "demo")
    whole = page_of(run).text
    for module, name, title in (
        (report, "charts", "Charts"),
        (report.page, "samples_section", "Samples"),
        (report, "time_section", "Where the time went"),
        (report, "diagnosis_section", "Diagnosis"),
        (report.page, "heading", "Heading"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, broken)
            text = page_of(run).text
        words = f"{title} This part of the page could not be made: IndexError: no such row. Please report this line."
        assert words in text
        assert len(text) > 0.4 * len(whole)
    with monkeypatch.context() as patch:
        patch.setattr(report, "loss_svg", broken)
        text = page_of(run).text
        assert len(text) > 0.9 * len(whole)
        assert "loss.svg could not be made: IndexError: no such row" in text


def test_the_first_page_leads_to_the_picture_beside_it(tmp_path: Path) -> None:
    page = page_of(made.make_run(tmp_path, "demo"))
    assert "loss.svg" in page.attributes("href")


def test_a_page_elsewhere_leads_to_the_files_of_its_run(tmp_path: Path) -> None:
    run = made.make_run(tmp_path / "runs", "a b")
    (tmp_path / "pages").mkdir()
    page = Page(write_report(run, tmp_path / "pages" / "p.html"))
    assert "beside this page" not in page.text and "beside this page" in page_of(run).text
    links = {attributes.get("href") for tag, attributes in page.tags if tag == "a"}
    assert {"../runs/a%20b/log.jsonl", "../runs/a%20b/config.yaml"} <= links


def test_a_picture_that_cannot_be_written_is_named_and_the_page_is_made_all_the_same(tmp_path: Path) -> None:
    run = made.make_run(tmp_path, "demo")
    (run / "loss.svg").mkdir()
    out = report.write_report(run, tmp_path / "elsewhere.html")
    assert "loss.svg could not be made: " in Page(out).text


def test_a_model_that_writes_nothing_but_blanks_takes_no_room(tmp_path: Path) -> None:
    texts = ["\n\n\n\n \n\n", "", " a\n\n \n\n\nb\n\n", "x" + 40 * " " + "y"]
    samples = [{"prompt": "p", "text": t, "step": i, "settings": {"temperature": 0.0}} for i, t in enumerate(texts)]
    source = page_of(made.make_run(tmp_path, "demo", samples=samples)).source
    for cell in ("(nothing but blanks)", "(nothing)", "> a\n\nb<", ">x        y<"):
        assert cell in source


def test_what_a_model_knows_is_told_in_words_where_its_skills_were_measured(tmp_path: Path) -> None:
    run = made.make_run(tmp_path, "demo")
    assert "What it knows" not in page_of(run).text
    skills = [
        {"name": "copy", "meaning": "that the hero keeps the name", "lost": 6.0, "pieces": 5.0, "share": 0.41},
        {"name": "stop", "meaning": "that the story is over", "lost": 0.05, "pieces": 1.0, "share": 0.01},
        {"name": "odd", "lost": "x"},
    ]
    (run / "skills.json").write_text(json.dumps({"skills": skills}))
    assert (
        "What it knows It knows: that the story is over. "
        "It does not know yet: that the hero keeps the name (41% of all that is lost)."
    ) in page_of(run).text
    (run / "skills.json").write_text(json.dumps({"step": 1000, "skills": skills}))
    assert "of all that is lost). Measured on fresh stories, at step 1,000." in page_of(run).text


def test_what_it_writes_and_how_that_grew_stand_on_the_page(tmp_path: Path) -> None:
    run = made.make_run(tmp_path, "demo")
    figures = [
        {"name": "hero", "right": 30, "places": 40, "right_stories": 5, "stories": 20, "meaning": "the hero's name"},
        {"name": "sums", "right": 0, "places": 0, "right_stories": 0, "stories": 0, "meaning": "none was told"},
        {"name": "odd", "right": "x", "places": 3},
    ]
    words = "It knows the sentences; not yet who is who."
    (run / "written.json").write_text(
        json.dumps({"step": 90, "num_stories": 20, "in_words": words, "figures": [*figures, 7]})
    )
    growth = [
        {"step": step, "chances": {"copy": share, "stop": 0.99, "odd": "<"}} for step, share in ((3, 0.01), (40, 0.5))
    ]
    (run / "growth.json").write_text(json.dumps([*growth, {"step": 50, "problem": "no"}, "x"]))
    page = page_of(run)
    assert "What it knows It knows the sentences; not yet who is who. " in page.text
    assert "hero 75% of 40 25% the hero's name" in page.text
    assert "none was told" not in page.text and "20 stories that it wrote, at step 90, read" in page.text
    assert "As it grew step 3 step 40 copy 1% 50% a word told in the last 200 characters" in page.text
    assert page.text.index("copy 1%") < page.text.index("stop 99% 99% that the story is over")  # the least known first
    (run / "growth.json").write_text('[{"step": 3, "problem": "another <tokenizer>"}]')
    assert "How it grew is not known: another <tokenizer>" in page_of(run).text


def test_report_is_written_again_over_the_old_one(tmp_path: Path) -> None:
    run = made.make_run(tmp_path, "demo")
    (run / "report.html").write_text("old")
    assert page_of(run).source.startswith("<!DOCTYPE html>")
    assert [path.name for path in run.iterdir() if path.name.startswith(".tmp")] == []


@pytest.mark.slow
def test_browser_draws_every_chart(tmp_path: Path) -> None:
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("needs chromium")
    path = write_report(made.make_run(tmp_path, "demo"))
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
    options += ["--disable-sync", "--disable-component-update", f"--user-data-dir={tmp_path / 'profile'}"]
    options += ["--virtual-time-budget=4000", "--enable-logging=stderr", "--dump-dom", path.as_uri()]
    done = subprocess.run([chromium, *options], capture_output=True, text=True, check=True)
    assert "CONSOLE" not in done.stderr, done.stderr
    for key in ("loss", "learning-rate", "tokens-per-second", "grad-norm"):
        assert 'class="train"' in done.stdout.partition(f'id="{key}"')[2].partition("</figure>")[0]
    for key in ("update-ratios", "part-grad-norms"):
        assert 'class="h11"' in done.stdout.partition(f'id="{key}"')[2].partition("</figure>")[0]
    assert ">best loss possible: 1.500</text>" in done.stdout
    assert (
        ">\N{BLACK UP-POINTING TRIANGLE} up to 8.539</text>" in done.stdout
    )  # the steep beginning is cut off, and says so
