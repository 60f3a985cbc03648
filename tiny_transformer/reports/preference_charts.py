"""Charts of a run of alignment with pairs: what the loss does not show."""

from __future__ import annotations

from typing import Any

from tiny_transformer.reports.charts import Chart, column, line, lines

ORDER = "the share of pairs in which the chosen answer leads"
SHIFT = "nats that held-out answers have gained over the reference; both falling means that both are forgotten"


def preference_charts(log: list[dict[str, Any]]) -> list[Chart]:
    """The charts that the rows of a log have data for; none of a run of another kind."""
    order = {"training": ("train", "accuracy"), "validation": ("val", "val_accuracy")}
    shift = {"chosen": ("val", "val_chosen_shift"), "rejected": ("train", "val_rejected_shift")}
    far = {"KL": ("val", "val_kl")}
    if not len(column(log, "val_chosen_shift")[0]):
        return []
    return [
        _chart(log, "order", "Pairs in the right order", ORDER, order),
        _chart(log, "shift", "Likelihood against the reference", SHIFT, shift),
        _chart(log, "distance", "Distance from the reference", "KL in nats per token of the reference's answers", far),
    ]


def _chart(log: list[dict[str, Any]], key: str, title: str, note: str, curves: dict[str, tuple[str, str]]) -> Chart:
    found = [(name, role, column(log, field)) for name, (role, field) in curves.items()]
    series = [
        line(log, name, role=role, curve=curve, marks=True, group=place)
        for place, (name, role, curve) in enumerate(found)
        if len(curve[0])
    ]
    return Chart(key, title, note, lines("", "loss", series, zero=True))
