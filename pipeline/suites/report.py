"""The report of a suite: one self-contained HTML page, a table in Markdown, and the figures as files.

Ours stands beside the paper's value. The numbers are made in `summary.py`, the markup in `pipeline.reports.page`.
"""

import base64
import shlex
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.markup import escape
from rich.measure import Measurement
from rich.table import Table

from pipeline import reports
from pipeline.config import Config, site_root
from pipeline.errors import PipelineError
from pipeline.metrics import find_metric
from pipeline.reports import page
from pipeline.storage import open_storage
from pipeline.suites.figures import Picture, pictures_of
from pipeline.suites.results import Measured, hours_text, total_hours
from pipeline.suites.runs import Asked, chosen_rows
from pipeline.suites.schema import Column, Suite
from pipeline.suites.summary import IMAGE_INTERVAL, INTERVAL, VERDICT, Cell, Line, Verdict, lines_of, verdicts
from pipeline.tracking import runs_page, tracking_uri

_WIDEST = 1000  # columns of a terminal: so wide a table is measured as it is


class _Content(NamedTuple):
    """What all three forms of the report say."""

    suite: Suite
    scale: str
    lines: list[Line]
    verdicts: list[Verdict]
    hours: float
    runs: tuple[int, int]
    """Recorded, and all."""
    told: list[str]
    """What the stages say of how the columns were measured."""


def _content(suite: Suite, asked: Asked, found: Sequence[Measured]) -> _Content:
    suite = _shown(suite, asked.scale)
    lines = lines_of(suite, chosen_rows(suite, asked), asked.scale, found)
    done = sum(one.record is not None for one in found)
    told = _told(suite, asked.scale, found)
    return _Content(suite, asked.scale, lines, verdicts(suite, lines), total_hours([*found]), (done, len(found)), told)


_TELLS = {  # by the first part of a column's key: the stage that says what was compared with what
    "samples": "evaluate-samples",
    "floor": "evaluate-samples",
    "reconstruction": "evaluate-tokenizer",
    "convergence": "convergence",
}


def _told(suite: Suite, scale: str, found: Sequence[Measured]) -> list[str]:
    """The notes of the stages that measured the columns, each once, behind the names of its rows unless all have it."""
    stages = {_TELLS.get((column.key(scale) or "").partition("/")[0]) for column in suite.columns}
    recorded = [(one.run.row.name, one.record) for one in found if one.record is not None]
    rows: dict[str, list[str]] = {}
    for row, record in recorded:
        for line in [f"{stage}: {note}" for stage, own in record.notes.items() if stage in stages for note in own]:
            rows.setdefault(line, []).append(row)
    every = {row for row, _ in recorded}
    return [line if {*own} == every else f"{', '.join(dict.fromkeys(own))}: {line}" for line, own in rows.items()]


def _shown(suite: Suite, scale: str) -> Suite:
    """The suite without columns that have neither a metric at this scale nor a printed value, and without claims on
    what is not measured here.
    """
    printed = {name for row in suite.rows for name in row.printed}
    columns = [column for column in suite.columns if column.key(scale) is not None or column.name in printed]
    here = {column.name for column in columns if column.key(scale) is not None}
    order = [claim for claim in suite.order if claim.column in here]
    return suite.model_copy(update={"columns": tuple(columns), "order": tuple(order)})


# --- in words ---


def _ours(cell: Cell, column: Column) -> str:
    if cell.mean is None:
        return ""
    half = f" ± {cell.half_width:.{column.digits}f}" if cell.half_width is not None else ""
    return f"{cell.mean:.{column.digits}f}{half}"


def _printed(cell: Cell, _: Column) -> str:
    return "" if cell.printed is None else str(cell.printed)


class _Part(NamedTuple):
    """A column of the report: ours or the paper's of a column of the suite."""

    heading: str
    column: int
    text: Callable[[Cell, Column], str]

    def of(self, line: Line, suite: Suite) -> str:
        return self.text(line.cells[self.column], suite.columns[self.column])


def _parts(content: _Content) -> list[_Part]:
    """Ours where there is a metric at this scale, and the paper's where it prints something.

    The paper's has its own name where another metric stands for it here.
    """
    parts = []
    for index, column in enumerate(content.suite.columns):
        title = column.title(content.scale)
        arrow = {"higher": " ↑", "lower": " ↓", "": ""}[column.better_is]
        measured = column.key(content.scale) is not None
        if measured:
            parts.append(_Part(title + arrow, index, _ours))
        if any(line.cells[index].printed is not None for line in content.lines):
            plain = "paper" if measured and title == column.name else f"paper's {column.name}"
            parts.append(_Part(plain, index, _printed))
    return parts


def _said(verdict: Verdict, suite: Suite) -> str:
    """A claim and what came out, in a sentence."""
    outcome = "open: a row was not run" if verdict.outcome == "open" else verdict.outcome
    parts = [outcome, *_differences(verdict, suite)]
    if verdict.share is not None:
        parts.append(f"of all pairs of seeds {verdict.share:.0%} agree")
    return f"{_order(verdict)}: {'; '.join(parts)}."


def _order(verdict: Verdict) -> str:
    place = f" ({verdict.claim.place})" if verdict.claim.place else ""
    return f"{verdict.claim.column}: {' before '.join(verdict.claim.rows)}{place}"


def _differences(verdict: Verdict, suite: Suite) -> list[str]:
    """By how much each row is ahead of the next one, and in how many pairs of seeds."""
    (digits,) = (column.digits for column in suite.columns if column.name == verdict.claim.column)
    parts = []
    for pair in [pair for pair in verdict.pairs if pair.ahead is not None]:
        half = f" ± {pair.half_width:.{digits}f}" if pair.half_width else ""
        parts.append(
            f"{pair.better} before {pair.worse} by {pair.ahead:.{digits}f}{half}, in {pair.agree} of {pair.pairs}"
        )
    return parts


def _facts(content: _Content) -> list[str]:
    done, runs = content.runs
    return [
        *([f"scale {content.scale}"] if content.scale else []),
        f"{done} of {runs} runs",
        f"{hours_text(content.hours)} device-hours",
        *_intervals(content),
    ]


def _intervals(content: _Content) -> list[str]:
    """Of what the half widths in the table are."""
    cells = [cell for line in content.lines for cell in line.cells]
    of_images = any(cell.images is not None for cell in cells)
    of_seeds = any(len(cell.values) > 1 for cell in cells)
    if not of_seeds and not of_images:
        return [f"{INTERVAL}, from two seeds on"]
    return [*([INTERVAL] if of_seeds else []), *([IMAGE_INTERVAL] if of_images else [])]


def _about(content: _Content) -> list[str]:
    """Notes below the table."""
    suite = content.suite
    notes = [f"Printed values: {suite.place}. Ours: {', '.join(_intervals(content))}.", *content.told]
    if content.verdicts:
        notes.append(VERDICT)
    if suite.about:
        notes.append(suite.about)
    if content.scale and suite.scales[content.scale].about:
        notes.append(suite.scales[content.scale].about)
    for column in suite.columns:
        key = column.key(content.scale)
        metric = find_metric(key) if key is not None else None
        if metric is not None:
            level = ", at the level of the row's generator" if column.at_level else ""
            notes.append(f"{column.title(content.scale)}: {key}{level}; {metric.meaning}.")
    notes += [f"{line.row.name}: {line.row.note}" for line in content.lines if line.row.note]
    return notes


def markdown(content: _Content) -> str:
    """The report as Markdown, without pictures."""
    columns = _parts(content)
    parts = [f"# {content.suite.title}", "", ", ".join(_facts(content)) + ".", ""]
    parts += [
        f"| {' | '.join(['row', *(one.heading for one in columns), 'status'])} |",
        "|---" * (2 + len(columns)) + "|",
    ]
    for group, lines in groupby(content.lines, key=lambda line: line.row.group):
        if group:
            parts.append(f"| **{group}** |{' |' * (1 + len(columns))}")
        for line in lines:
            cells = [one.of(line, content.suite) for one in columns]
            parts.append(f"| {' | '.join([_named(line), *cells, line.status])} |")
    if content.verdicts:
        parts += [
            "",
            "## The paper's order",
            "",
            *(f"* {_said(verdict, content.suite)}" for verdict in content.verdicts),
        ]
    parts += ["", *(f"* {note}" for note in _about(content))]
    parts += [f"* {line.row.name}: `{command}`" for line in content.lines for command in line.row.commands]
    return "\n".join(parts) + "\n"


def _named(line: Line) -> str:
    return (line.row.title or line.row.name) + (" (baseline)" if line.row.baseline else "")


# --- on the screen ---


def render_suite(console: Console, suite: Suite, asked: Asked, found: Sequence[Measured]) -> None:
    """Print the table and the verdicts; where the terminal is too narrow for the table, a row as a line of text."""
    content = _content(suite, asked, found)
    table = Table(box=None, pad_edge=False, header_style="bold", title=suite.title)
    table.add_column("row", overflow="fold")
    for part in _parts(content):
        table.add_column(part.heading, justify="right")
    table.add_column("status")
    for line in content.lines:
        cells = [part.of(line, content.suite) for part in _parts(content)]
        table.add_row(escape(_named(line)), *map(escape, cells), line.status)
    if Measurement.get(console, console.options.update(max_width=_WIDEST), table).maximum <= console.width:
        console.print(table)
    else:
        for text in _as_text(content):
            console.print(text, highlight=False, soft_wrap=True, markup=False)
    for text in [f"Ours: {', '.join(_intervals(content))}.", *content.told]:
        console.print(text, highlight=False, soft_wrap=True, markup=False)
    for verdict in content.verdicts:
        console.print(_said(verdict, content.suite), highlight=False, soft_wrap=True, markup=False)


def _as_text(content: _Content) -> Iterator[str]:
    """The table's rows, of each the numbers that there are."""
    yield content.suite.title
    for line in content.lines:
        cells = [(part.heading, part.of(line, content.suite)) for part in _parts(content)]
        numbers = [f"{heading} {cell}" for heading, cell in cells if cell]
        group = f"{line.row.group}: " if line.row.group else ""
        yield f"{group}{_named(line)}: {', '.join([*numbers, line.status])}"


# --- as files ---


def write_suite(suite: Suite, asked: Asked, found: Sequence[Measured], label: str, to: Path | None) -> list[str]:
    """Write index.html, table.md and the figures; returns their places.

    They go to the folder `to`, by default to `suites/LABEL` at the root. StorageError if they cannot be written.
    """
    content, pictures = _content(suite, asked, found), pictures_of(suite, asked.scale, found)
    files = {
        "index.html": _html(content, found, pictures, asked.root).encode(),
        "table.md": markdown(content).encode(),
        **{f"{one.name}.{ending}": data for one in pictures for ending, data in one.files.items()},
    }
    if to is not None:
        return [str(path) for path in reports.write_files(to, files)]
    storage = open_storage(found[0].run.config.root if found else asked.root or site_root())
    for name, data in files.items():
        storage.write(f"suites/{label}/{name}", data)
    return [storage.uri(f"suites/{label}/{name}") for name in files]


def _html(content: _Content, found: Sequence[Measured], pictures: Sequence[Picture], root: str | None) -> str:
    suite = content.suite
    body = [
        page.header(suite.title, _facts(content)),
        page.section(suite.place, page.table(*_table(content), wide=True)),
        page.section("The paper's order", page.table(_CLAIMED, _claims(content))),
        page.section("How it was measured", page.note_list(_about(content))),
        page.section(
            "Figures",
            page.figures([(_data_uri(one.files["png"]), one.caption) for one in pictures]),
        ),
        page.section("Runs", page.table(("row", "seed", "status", "device-hours", "run"), _runs(found, root))),
        page.section("Commands for public weights", page.table(("row", "command"), _commands(content))),
    ]
    return page.document(f"{suite.title} · Denoising-VAE", "".join(body))


def _table(content: _Content) -> tuple[list[str], list[list[str]]]:
    """Headings and rows."""
    parts = _parts(content)
    headings = ["row", *(part.heading for part in parts), "status"]
    rows = []
    for group, lines in groupby(content.lines, key=lambda line: line.row.group):
        if group:
            rows.append([page.quiet(group), *[""] * (len(headings) - 1)])
        for line in lines:
            cells = [page.number(part.of(line, content.suite)) for part in parts]
            rows.append([page.text(_named(line)), *cells, page.chip(line.status, _CHIPS.get(line.status, "resumable"))])
    return headings, rows


_CLAIMED = ("claim", "came out", "by", "pairs of seeds that agree")
_CHIPS = {"run": "cached", **dict.fromkeys(("not at this scale", "by command", "printed only"), "new")}


def _claims(content: _Content) -> list[list[str]]:
    rows = []
    for one in content.verdicts:
        share = f"{one.share:.0%}" if one.share is not None else ""
        kind = "cached" if one.outcome == "reproduced" else "resumable"
        by = page.text("; ".join(_differences(one, content.suite)))
        rows.append([page.text(_order(one)), page.chip(one.outcome, kind), by, page.number(share)])
    return rows


def _runs(found: Sequence[Measured], root: str | None) -> list[list[str]]:
    """Every run with its place in MLflow: a link to a server's page, or its key in a database."""
    rows = []
    for run, record in found:
        hours = sum(record.device_seconds.values()) / 3600 if record is not None else None
        rows.append(
            [
                page.text(run.row.name),
                page.number(str(run.seed)),
                page.chip("run" if record else "not run yet", "cached" if record else "resumable"),
                page.number(hours_text(hours) if hours is not None else ""),
                _tracked(run.config, record.mlflow) if record is not None else page.code(run.command_line(root)),
            ]
        )
    return rows


def _tracked(config: Config, key: str) -> str:
    uri = tracking_uri(config)
    if not uri.startswith(("http://", "https://")):
        return page.code(f"{key}, of mlflow ui --backend-store-uri {shlex.quote(uri)}")
    try:
        address = runs_page(uri, config.tracking.experiment, key)
    except PipelineError:  # the page is worth having without a link
        address = None
    return page.link(address, key) if address else page.code(key)


def _commands(content: _Content) -> list[list[str]]:
    return [
        [page.text(line.row.title or line.row.name), page.code(command)]
        for line in content.lines
        for command in line.row.commands
    ]


def _data_uri(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"
