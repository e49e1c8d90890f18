"""A run's metrics beside those of a registered version, from the version's tags: its artifacts may lie elsewhere."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from rich.console import Console
from rich.markup import escape

from models.intervals import Interval, half_width_of_difference
from pipeline.artifacts import SHORT
from pipeline.metrics import find_metric, interval_text, value_text
from pipeline.reports import page
from pipeline.tracking import INTERVAL_TAG, METRIC_TAG, input_tag

_COMPARED = {"prepare": "images", "reference": "reference"}  # stages of which both should have the same artifact
_COLOURS = {"better": "green", "worse": "red"}


class Row(NamedTuple):
    """One metric that both have."""

    key: str
    ours: float
    theirs: float
    verdict: str
    """`better` or `worse`, by more than the interval of the difference if there is one; `within the interval`; `equal`;
    or empty where neither direction is better."""


class Against(NamedTuple):
    """A run beside a version."""

    model: str
    """NAME@ALIAS."""
    rows: list[Row]
    intervals: dict[str, Interval]
    """Of the version's metrics."""
    notes: list[str]
    """What makes the two hard to compare."""


def against(
    report: Mapping[str, Any], fingerprints: Mapping[str, str | None], model: str, tags: Mapping[str, str]
) -> Against:
    """What both have measured.

    Args:
        report: of `collect`.
        fingerprints: of the run's artifacts, by stage.
        model: NAME@ALIAS.
        tags: of the version.
    """
    theirs = {key: float(value) for key, value in _with_prefix(tags, METRIC_TAG).items()}
    intervals: dict[str, Interval] = {
        key: (low, high) for key, text in _with_prefix(tags, INTERVAL_TAG).items() for low, high in [json.loads(text)]
    }
    rows = [
        Row(key, ours, theirs[key], _verdict(key, ours - theirs[key], report["intervals"].get(key), intervals.get(key)))
        for key, ours in report["metrics"].items()
        if key in theirs
    ]
    return Against(model, rows, intervals, list(_notes(fingerprints, model, tags)))


def _with_prefix(tags: Mapping[str, str], prefix: str) -> dict[str, str]:
    return {name.removeprefix(prefix): value for name, value in tags.items() if name.startswith(prefix)}


def _verdict(key: str, difference: float, ours: Interval | None, theirs: Interval | None) -> str:
    metric = find_metric(key)
    if metric is None or not metric.better or math.isnan(difference):
        return ""
    if difference == 0:
        return "equal"
    if ours is not None and theirs is not None and abs(difference) <= half_width_of_difference(ours, theirs):
        return "within the interval"
    return "better" if (difference > 0) == (metric.better == "higher") else "worse"


def _notes(fingerprints: Mapping[str, str | None], model: str, tags: Mapping[str, str]) -> Sequence[str]:
    notes = []
    for stage, what in _COMPARED.items():
        theirs, ours = tags.get(input_tag(stage)), fingerprints.get(stage)
        if theirs is None:
            notes.append(f"{model} does not say which {what} it was measured with.")
        elif theirs != ours:
            here = f"{stage}/{ours[:SHORT]}" if ours else "unknown"
            notes.append(f"{model} was measured with other {what}: {stage}/{theirs[:SHORT]}, here {here}.")
    return notes


def against_as_json(found: Against) -> dict[str, Any]:
    """For `report --json`."""
    metrics = {row.key: {"value": row.theirs, "verdict": row.verdict} for row in found.rows}
    kept = {key: interval for key, interval in found.intervals.items() if key in metrics}
    return {"model": found.model, "metrics": metrics, "intervals": kept, "notes": found.notes}


def render_against(console: Console, found: Against, intervals: Mapping[str, Interval]) -> None:
    """Print those metrics to the terminal that differ and of which a direction is better.

    `intervals` are the run's.
    """
    shown = [row for row in found.rows if row.verdict not in ("", "equal")]
    equal = sum(row.verdict == "equal" for row in found.rows)
    console.print()
    console.print(
        f"against {found.model}: {equal} equal, {len(shown)} different", highlight=False, markup=False, soft_wrap=True
    )
    for row in shown:
        ours, theirs = _values(row, found, intervals)
        verdict = f"[{_COLOURS[row.verdict]}]{row.verdict}[/]" if row.verdict in _COLOURS else row.verdict
        console.print(f"{row.key}\n  {ours} here, {theirs} there: {verdict}", highlight=False, soft_wrap=True)
    for note in found.notes:
        console.print(escape(note), highlight=False, soft_wrap=True)


def section(found: Against, intervals: Mapping[str, Interval]) -> str:
    """The same for the page."""
    rows = [
        [page.code(row.key), *map(page.number, _values(row, found, intervals)), page.text(row.verdict)]
        for row in found.rows
    ]
    return page.section(
        f"Against {found.model}", page.table(("metric", "here", found.model, "here is"), rows), found.notes
    )


def _values(row: Row, found: Against, intervals: Mapping[str, Interval]) -> tuple[str, str]:
    ours = value_text(row.key, row.ours) + interval_text(intervals.get(row.key), row.key)
    theirs = value_text(row.key, row.theirs) + interval_text(found.intervals.get(row.key), row.key)
    return ours, theirs
