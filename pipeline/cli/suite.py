"""suite list|plan|run|report: the paper's tables and figures, and those of one's own, as sets of runs."""

import json
import shlex
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from pipeline.cli.options import Json, Root, Sets, console, local_file, local_folder
from pipeline.errors import ContractError

if TYPE_CHECKING:
    from pipeline.suites import Asked, Results, Run, Suite, Way

app = typer.Typer(help="The paper's tables and figures, and tables of your own, as sets of runs.", no_args_is_help=True)

SuiteName = Annotated[str, typer.Argument(metavar="SUITE", help="A suite's name, or a YAML file.")]
Scale = Annotated[str | None, typer.Option("--scale", help="At which size; by default the suite's first.")]
Seeds = Annotated[int | None, typer.Option("--seeds", min=1, help="Number of seeds; by default the suite's.")]
Rows = Annotated[list[str] | None, typer.Option("--rows", help="Only this row. Repeatable.")]
AtOnce = Annotated[int, typer.Option("--at-once", min=1, help="Runs at a time, at most.")]
ResultsFile = Annotated[
    Path | None,
    typer.Option(
        "--results",
        parser=local_file,
        metavar="FILE",
        help="JSON file of what was measured, in the place of suites/NAME-SCALE.json at the root. What is recorded "
        "there is not run again.",
    ),
]
To = Annotated[
    Path | None,
    typer.Option(
        "--to",
        parser=local_folder,
        metavar="FOLDER",
        help="Folder of the report. By default suites/NAME-SCALE at the root.",
    ),
]


class Opened(NamedTuple):
    """A suite, what is asked of it, its runs and its results."""

    suite: "Suite"
    asked: "Asked"
    runs: "list[Run]"
    results: "Results"
    label: str
    """NAME-SCALE."""


@app.command("list")
def list_suites() -> None:
    """The suites that come with this code, with their scales."""
    from pipeline import suites

    for name in suites.suite_names():
        suite = suites.load_suite(name)
        console.print(f"{name:<10} {suite.title} ({', '.join(suite.scales)})", highlight=False, soft_wrap=True)


@app.command()
def plan(
    name: SuiteName,
    scale: Scale = None,
    seeds: Seeds = None,
    rows: Rows = None,
    results: ResultsFile = None,
    set_: Sets = None,
    root: Root = None,
    as_json: Json = False,
) -> None:
    """Print which runs there are, what they share, device-hours, and their price. Starts nothing."""
    from pipeline import suites

    opened = open_suite(name, scale, seeds, rows, results, set_, root, fresh=False)
    found = suites.measured(opened.runs, opened.results.read())
    planned = suites.make_suite_plan(suites.surveyed(found))
    if as_json:
        print(json.dumps(planned, indent=1))  # noqa: T201
        return
    suites.print_suite_plan(console, suites.chosen_rows(opened.suite, opened.asked), planned)


@app.command()
def run(
    name: SuiteName,
    scale: Scale = None,
    seeds: Seeds = None,
    rows: Rows = None,
    at_once: AtOnce = 1,
    results: ResultsFile = None,
    to: To = None,
    set_: Sets = None,
    root: Root = None,
) -> None:
    """Make what is missing, one process a run, and write the report. Killed, the same command goes on.

    A run that fails stops no other: it is named at the end, with the command that repeats it, and the exit code is 1.
    """
    from pipeline import suites

    opened = open_suite(name, scale, seeds, rows, results, set_, root, fresh=True)
    make_suite(opened, suites.Way(root), at_once, to, ["python", "-m", "pipeline", "suite", "run", name])


@app.command()
def report(
    name: SuiteName,
    scale: Scale = None,
    seeds: Seeds = None,
    rows: Rows = None,
    results: ResultsFile = None,
    to: To = None,
    set_: Sets = None,
    root: Root = None,
) -> None:
    """Write the report of what there is by now: an HTML page, a table in Markdown, and figures."""
    _report(open_suite(name, scale, seeds, rows, results, set_, root, fresh=False), to)


def open_suite(
    name: str,
    scale: str | None,
    seeds: int | None,
    rows: list[str] | None,
    results: Path | None,
    set_: list[str] | None,
    root: str | None,
    *,
    fresh: bool,
) -> Opened:
    """The suite that a command line names. `fresh` as `resolved`; ConfigError as `load_suite` and `runs_of`."""
    from pipeline import suites
    from pipeline.config import site_root
    from pipeline.console import Display, own_console
    from pipeline.storage import open_storage

    suite = suites.load_suite(name)
    asked = suites.Asked(suites.scale_of(suite, scale), seeds, rows or [], set_ or [], root)
    with Display(own_console()) as display:
        runs = suites.runs_of(suite, asked, fresh, display if fresh else None)
    label = "-".join(part for part in (suite.name, asked.scale) if part)
    place = open_storage(runs[0].config.root if runs else root or site_root())
    kept: Results = suites.InFile(results) if results is not None else suites.AtRoot(place, label)
    return Opened(suite, asked, runs, kept, label)


def make_suite(opened: Opened, way: "Way", at_once: int, to: Path | None, words: list[str]) -> None:
    """Make what is missing and write the report. ContractError, with the `words` of a command, if a run failed."""
    from pipeline import suites

    logs = Path(tempfile.mkdtemp(prefix=f"dvae-{opened.label}-"))

    def say(text: str) -> None:
        console.print(text, highlight=False, soft_wrap=True)

    failures = suites.run_suite(opened.runs, opened.results, way, logs, at_once, say)
    _report(opened, to)
    if failures:
        lines = [f"{one.run.label}: {one.line} (`{way.command_line(one.run)}`)" for one in failures]
        raise ContractError(
            f"{len(failures)} of {len(opened.runs)} runs failed, whose logs are in {logs}: {'; '.join(lines)}",
            f"Mend them, and repeat `{shlex.join(words)} ...`, which goes on.",
        )


def _report(opened: Opened, to: Path | None) -> None:
    from pipeline import suites

    found = suites.measured(opened.runs, opened.results.read())
    suites.render_suite(console, opened.suite, opened.asked, found)
    for place in suites.write_suite(opened.suite, opened.asked, found, opened.label, to):
        console.print(place, highlight=False, soft_wrap=True)
