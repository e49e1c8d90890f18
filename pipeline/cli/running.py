"""run, stage, plan, report, analyze: the main commands."""

import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.cli.options import Debug, Expect, Json, Preset, Root, Sets, Wait, console, local_folder
from pipeline.config import Config, load_config
from pipeline.errors import ContractError

if TYPE_CHECKING:
    from pipeline.reports import Against, Found
    from pipeline.workflow import Node

app = typer.Typer()


@app.command()
def run(
    preset: Preset,
    set_: Sets = None,
    root: Root = None,
    until: Annotated[str | None, typer.Option("--until", help="The last stage to run.")] = None,
    expect: Expect = None,
    wait: Wait = False,
    debug: Debug = False,
) -> None:
    """Run the pipeline: skip cached stages, resume interrupted ones, run the others."""
    from pipeline.console import Display, own_console
    from pipeline.workflow import Runner, check_expected, resolved, stages_until

    last = stages_until(until)[-1]
    with Display(own_console()) as display:
        config = resolved(load_config(preset, set_, root), fresh=True, display=display)
        check_expected(config, last.name, expect)
        Runner(config, display, preset, debug, wait).run(until)
    _print_locations(config, preset)


@app.command()
def stage(
    name: Annotated[str, typer.Argument(help="The stage, as listed by `plan`.")],
    preset: Preset,
    set_: Sets = None,
    root: Root = None,
    expect: Expect = None,
    debug: Debug = False,
) -> None:
    """Run one stage; its inputs are found by fingerprint."""
    from pipeline.console import Display, own_console
    from pipeline.workflow import Runner, check_expected, find_stage, resolved

    find_stage(name)
    with Display(own_console()) as display:
        config = resolved(load_config(preset, set_, root), fresh=True, display=display)
        check_expected(config, name, expect)
        Runner(config, display, preset, debug).run_stage(name)


@app.command()
def plan(preset: Preset, set_: Sets = None, root: Root = None, as_json: Json = False) -> None:
    """Print what a run would do, and its cost. Starts nothing."""
    from pipeline.workflow import make_plan, print_plan, resolved, survey

    config = resolved(load_config(preset, set_, root), fresh=False)
    planned = make_plan(config, survey(config))
    if as_json:
        print(json.dumps(planned, indent=1))  # noqa: T201
    else:
        print_plan(console, config, planned)


@app.command()
def report(
    preset: Preset,
    against: Annotated[
        str | None,
        typer.Option("--against", metavar="ALIAS", help="Beside the registered version with this alias: champion."),
    ] = None,
    set_: Sets = None,
    root: Root = None,
    as_json: Json = False,
) -> None:
    """Report results: a table and an HTML page with figures, or JSON."""
    from pipeline import reports
    from pipeline.storage import open_storage
    from pipeline.workflow import resolved, survey

    config = resolved(load_config(preset, set_, root), fresh=False)
    nodes, storage = survey(config), open_storage(config.root)
    collected = reports.collect(config, nodes, storage)
    rival = _registered(config, nodes, collected, against) if against else None
    if as_json:
        compared = {"against": reports.against_as_json(rival)} if rival else {}
        print(json.dumps({**collected, **compared}, indent=1))  # noqa: T201
        return
    reports.render_table(console, collected)
    if rival:
        reports.render_against(console, rival, collected["intervals"])
    page = reports.write_page(config, nodes, storage, preset, rival)
    console.print(f"page: {page}", highlight=False, soft_wrap=True)


def _registered(config: Config, nodes: "list[Node]", collected: dict[str, Any], alias: str) -> "Against":
    """The registered version with this alias beside what the run has measured."""
    from pipeline.reports import against
    from pipeline.tracking import aliased_tags, tracking_uri

    name = config.register.name
    tags = aliased_tags(tracking_uri(config), name, alias)
    if tags is None:
        raise ContractError(
            f"no version of {name} in MLflow at {tracking_uri(config)} has the alias {alias}",
            "Give one that a version has, such as champion, or leave out --against.",
        )
    return against(collected, {node.stage.name: node.fingerprint for node in nodes}, f"{name}@{alias}", tags)


@app.command()
def analyze(
    presets: Annotated[list[str], typer.Argument(metavar="PRESET...", help="Presets' names or YAML files.")],
    to: Annotated[
        Path,
        typer.Option(
            "--to",
            parser=local_folder,
            metavar="FOLDER",
            help="Folder for the figures and figures.json; those of an earlier call are replaced.",
        ),
    ],
    set_: Sets = None,
    root: Root = None,
) -> None:
    """Draw the paper's Figures 1 and 2 for tokenizers side by side, with every number in them.

    It reads what the stage `analyze` has left for each of them, on the same images. --set holds for all presets.
    """
    from pipeline import reports

    found = [_analysed(preset, set_, root) for preset in presets]
    analyses = reports.read_analyses(found)
    paths = reports.write_comparison(to, analyses, found)
    reports.render_comparison(console, analyses)
    for path in paths:
        console.print(str(path), highlight=False, soft_wrap=True)


def _analysed(preset: str, set_: list[str] | None, root: str | None) -> "Found":
    """A preset's analysis. ContractError with the command that makes it, if there is none."""
    from pipeline.reports import Found
    from pipeline.storage import open_storage
    from pipeline.workflow import artifacts_of, check_inputs, resolved, stage_fingerprints, survey

    config = resolved(load_config(preset, set_, root), fresh=False)
    if stage_fingerprints(config)["analyze"] is None:
        check_inputs(config, preset)  # raises, with what is not known
    storage, manifest = open_storage(config.root), artifacts_of(survey(config)).get("analyze")
    if manifest is None:
        same = [word for text in set_ or [] for word in ("--set", text)] + (["--root", root] if root else [])
        command = shlex.join(["python", "-m", "pipeline", "run", preset, "--until", "analyze", *same])
        raise ContractError(f"the analysis of {preset} is missing at {storage.root}", f"Make it by `{command}`.")
    return Found(preset, storage, manifest)


def _print_locations(config: Config, preset: str) -> None:
    """Print where to find the results."""
    from pipeline import reports
    from pipeline.storage import open_storage
    from pipeline.tracking import tracking_uri
    from pipeline.workflow import artifacts_of, survey

    nodes, storage, uri = survey(config), open_storage(config.root), tracking_uri(config)
    artifacts = artifacts_of(nodes)
    locations = [("report", reports.write_page(config, nodes, storage, preset))]
    if "sample" in artifacts:
        locations.append(("samples", storage.uri(f"{artifacts['sample'].name}/grid.png")))
    command = f"mlflow ui --backend-store-uri {shlex.quote(uri)}"
    locations.append(("runs and models", command if uri.startswith("sqlite") else uri))
    for what, where in locations:
        console.print(f"  [dim]{what:<16}[/] {where}", highlight=False, soft_wrap=True)
