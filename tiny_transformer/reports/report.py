"""Writes `report.html`: one run on one page that opens anywhere, without a network.

The page carries everything it needs, in less than a megabyte. Its content security policy forbids every request, and
every script but the one that is put in here; so even a text that escaped its quoting could not run.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable
from importlib import resources
from pathlib import Path

from tiny_transformer.errors import UserError, in_words
from tiny_transformer.reports import page
from tiny_transformer.reports.charts import charts
from tiny_transformer.reports.diagnosis.diagnose import diagnose_run
from tiny_transformer.reports.diagnosis.evidence import time_spent
from tiny_transformer.reports.loss_svg import loss_svg
from tiny_transformer.reports.outcome import Outcome, outcome_of
from tiny_transformer.reports.page_findings import classes_section, diagnosis_section, knowledge_section, time_section
from tiny_transformer.reports.preference_charts import preference_charts
from tiny_transformer.reports.run_reader import RunFiles, read_run
from tiny_transformer.storage import atomic_write

REPORT_NAME = "report.html"
PICTURE_NAME = "loss.svg"


def write_report(run_dir: Path, out: Path | None = None) -> Path:
    """Makes or renews `report.html` in a run directory, or `out`, and returns its path. The loss curve alone becomes
    `loss.svg` in the run directory.

    Whatever the run has not written yet is left out of the page; what cannot be read, or shown, is named in it.

    Raises UserError: USAGE when `run_dir` is not a run directory, IO when the page cannot be written.
    """
    run = read_run(Path(run_dir))
    path = out or Path(run_dir) / REPORT_NAME
    outcome = outcome_of(run)
    picture = ""
    try:
        if picture := loss_svg(run.log, outcome.floor, outcome.target):
            atomic_write(Path(run_dir) / PICTURE_NAME, picture)  # before the page, which leads to it
    except Exception as error:  # the page tells the numbers
        run.problems.append(f"{PICTURE_NAME} could not be made: {in_words(error)}")
    write_page(path, report_html(run, outcome, picture, page_dir=path.parent))
    return path


def write_page(path: Path, text: str) -> None:
    """Write a page, whole or not at all.

    Raises UserError: USAGE when the path is a directory, IO when the page cannot be written.
    """
    refuse_directory(path)
    atomic_write(path, text)


def refuse_directory(path: Path) -> None:
    """Raise UserError where a page cannot be, because a directory is there."""
    if path.is_dir():
        raise UserError(f"{path} is a directory", where="--out", remedy=f"name a file, such as {path / REPORT_NAME}")


def report_html(run: RunFiles, outcome: Outcome, picture: str = "", *, page_dir: Path | None = None) -> str:
    """The whole page; `picture` is for readers without scripts, `page_dir` where it goes if not into the run."""
    sections = {
        "Heading": lambda: page.heading(run, outcome),
        "Diagnosis": lambda: diagnosis_section(diagnose_run(run), len(run.log)),
        "Figures": lambda: page.key_figures(outcome, run.log),
        "Knowledge": lambda: knowledge_section(run.skills, run.written, run.growth),
        "Confusion": lambda: classes_section(run.classes),
        "Charts": lambda: page.chart_section(
            [*charts(run.log, outcome.floor, outcome.target), *preference_charts(run.log)],
            picture,
            counted=f"{outcome.target}s",
        ),
        "Where the time went": lambda: time_section(time_spent(run.log), outcome.elapsed_seconds),
        "Samples": lambda: page.samples_section(run.samples),
        "The same prompt through time": lambda: page.samples_over_time_section(run.samples),
        "Settings": lambda: page.settings_section(run.config),
        "Environment": lambda: page.environment_section(run),
        "Files": lambda: page.files_section(run, page_dir or run.path),
    }
    parts = [guarded(title, make) for title, make in sections.items()]
    return whole_page(f"{run.name} · tiny-transformer run", parts)


def guarded(title: str, make: Callable[[], str]) -> str:
    """A section; one that cannot be made says so, and takes no other with it."""
    try:
        return make()
    except Exception as error:
        words = f"This part of the page could not be made: {in_words(error)}. Please report this line."
        return f'<section><h2>{page.esc(title)}</h2><p class="note">{page.esc(words)}</p></section>'


def whole_page(title: str, sections: list[str], *, script: str | None = None, style: str = "") -> str:
    """The sections inside a page that forbids every request and every script but its own.

    Args:
        title: of the page.
        sections: HTML, quoted where it must be.
        script: the page's one script; None: what draws the reports' charts.
        style: rules added to the reports' own.
    """
    script = _resource("report.js") if script is None else script
    policy = (
        f"default-src 'none'; img-src data: blob:; style-src 'unsafe-inline'; "
        f"script-src {_hash_source(script)}; base-uri 'none'; form-action 'none'"
    )
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta name="referrer" content="no-referrer">
<link rel="icon" href="data:,">
<title>{page.esc(title)}</title>
<style>{_resource("report.css")}{style}</style>
</head>
<body>
<main>
{"".join(sections)}
<footer><p class="note">Written by tiny-transformer. This page makes no network request.</p></footer>
</main>
<script>{script}</script>
</body>
</html>
"""


def _resource(name: str) -> str:
    return resources.files("tiny_transformer.reports").joinpath(name).read_text(encoding="utf-8")


def _hash_source(script: str) -> str:
    """The word by which a content security policy allows one inline script."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
