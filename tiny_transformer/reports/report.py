"""Writes `report.html`: one run on one page that opens anywhere, without a network.

The page carries everything it needs, plotly.js included (about 4.8 MB of its size). Its content security policy forbids
every request, and every script but the two that are put in here; so even a text that escaped its quoting could not run.
"""

from __future__ import annotations

import base64
import hashlib
from importlib import resources
from pathlib import Path

from tiny_transformer.errors import ExitCode, UserError
from tiny_transformer.reports import page
from tiny_transformer.reports.charts import charts
from tiny_transformer.reports.diagnosis.diagnose import diagnose_run
from tiny_transformer.reports.diagnosis.evidence import time_spent
from tiny_transformer.reports.loss_svg import loss_svg
from tiny_transformer.reports.outcome import outcome_of
from tiny_transformer.reports.page_findings import diagnosis_section, time_section
from tiny_transformer.reports.run_reader import RunFiles, read_run
from tiny_transformer.storage import atomic_write

REPORT_NAME = "report.html"
PICTURE_NAME = "loss.svg"


def write_report(run_dir: Path, out: Path | None = None) -> Path:
    """Makes or renews `report.html` in a run directory, or `out`, and returns its path. The loss curve alone becomes
    `loss.svg` in the run directory.

    Whatever the run has not written yet is left out of the page; what cannot be read is named in it.

    Raises UserError: USAGE when plotly is not installed or `run_dir` is not a run directory, IO when the page cannot be
    written.
    """
    run = read_run(Path(run_dir))
    path = out or Path(run_dir) / REPORT_NAME
    atomic_write(path, report_html(run, plotly_js()))
    picture = loss_svg(run.log, outcome_of(run).floor)
    if picture:
        atomic_write(Path(run_dir) / PICTURE_NAME, picture)
    return path


def report_html(run: RunFiles, plotly: str) -> str:
    """The whole page."""
    outcome = outcome_of(run)
    sections = [
        page.heading(run, outcome),
        diagnosis_section(diagnose_run(run), len(run.log)),
        page.key_figures(outcome),
        page.chart_section(charts(run.log, outcome.floor)),
        time_section(time_spent(run.log), outcome.elapsed_seconds),
        page.samples_section(run.samples),
        page.samples_over_time_section(run.samples),
        page.settings_section(run.config),
        page.environment_section(run),
        page.files_section(run),
    ]
    return whole_page(f"{run.name} · tiny-transformer run", sections, plotly)


def whole_page(title: str, sections: list[str], plotly: str) -> str:
    """The sections inside a page that forbids every request and every script but its own two."""
    script = _resource("report.js")
    policy = (
        f"default-src 'none'; img-src data: blob:; style-src 'unsafe-inline'; "
        f"script-src {_hash_source(plotly)} {_hash_source(script)}; base-uri 'none'; form-action 'none'"
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
<style>{_resource("report.css")}</style>
</head>
<body>
<main>
{"".join(sections)}
<footer><p class="note">Written by tiny-transformer. This page makes no network request.</p></footer>
</main>
<script>{plotly}</script>
<script>{script}</script>
</body>
</html>
"""


def plotly_js() -> str:
    """The charting library.

    Raises UserError when plotly is not installed.
    """
    try:
        from plotly.offline import get_plotlyjs
    except ImportError:
        raise UserError(
            "the report needs plotly, which is not installed",
            remedy="pip install 'tiny-transformer[report]'",
            exit_code=ExitCode.USAGE,
        ) from None
    return get_plotlyjs()


def _resource(name: str) -> str:
    return resources.files("tiny_transformer.reports").joinpath(name).read_text(encoding="utf-8")


def _hash_source(script: str) -> str:
    """The word by which a content security policy allows one inline script."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
