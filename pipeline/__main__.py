"""The command line: run, stage, plan, report, sample, config, data, artifact, tracking.

Each command reads a config, calls one function of the package and prints. Light at the top: `plan` and `config` must
answer without torch, ray or mlflow.
"""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from rich.console import Console

from pipeline.command_line import Debug, Preset, Root, Sets, run_app
from pipeline.config import Config
from pipeline.errors import ConfigError, ContractError
from pipeline.loading import load_config, preset_names

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Denoising-VAE: from images to a generator in a model registry, stage by stage.",
)
config_app = typer.Typer(no_args_is_help=True, help="Presets and the configuration tree.")
data_app = typer.Typer(no_args_is_help=True, help="The source of images.")
artifact_app = typer.Typer(no_args_is_help=True, help="What stages have left behind.")
tracking_app = typer.Typer(no_args_is_help=True, help="What waits to be delivered to MLflow.")
app.add_typer(config_app, name="config")
app.add_typer(data_app, name="data")
app.add_typer(artifact_app, name="artifact")
app.add_typer(tracking_app, name="tracking")

SomePreset = Annotated[str | None, typer.Argument(help="A preset: whose root to look at.")]
Expect = Annotated[
    str | None, typer.Option("--expect", help="Refuse unless this is the (last) stage's fingerprint, or begins it.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]

console = Console()


@app.command()
def run(
    preset: Preset,
    set_: Sets = None,
    root: Root = None,
    until: Annotated[str | None, typer.Option("--until", help="The last stage to run.")] = None,
    expect: Expect = None,
    debug: Debug = False,
) -> None:
    """Run the whole pipeline: what is cached is used, what was cut goes on, the rest is made."""
    from pipeline.console import Display, own_console
    from pipeline.graph import stages_until
    from pipeline.runner import Runner, check_expected, resolved

    last = stages_until(until)[-1]
    config = resolved(load_config(preset, set_, root), fresh=True)
    check_expected(config, last.name, expect)
    with Display(own_console()) as display:
        Runner(config, display, preset, debug).run(until)
    _say_where(config, preset)


@app.command()
def stage(
    name: Annotated[str, typer.Argument(help="The stage, as `plan` lists it.")],
    preset: Preset,
    set_: Sets = None,
    root: Root = None,
    expect: Expect = None,
    debug: Debug = False,
) -> None:
    """Run one stage; its inputs are found by fingerprint."""
    from pipeline.console import Display, own_console
    from pipeline.graph import find_stage
    from pipeline.runner import Runner, check_expected, resolved

    find_stage(name)
    config = resolved(load_config(preset, set_, root), fresh=True)
    check_expected(config, name, expect)
    with Display(own_console()) as display:
        Runner(config, display, preset, debug).run_stage(name)


@app.command()
def plan(preset: Preset, set_: Sets = None, root: Root = None, as_json: Json = False) -> None:
    """Say what a run would do, and what it would cost. Starts nothing."""
    from pipeline.planning import make_plan, print_plan
    from pipeline.runner import resolved, survey

    config = resolved(load_config(preset, set_, root), fresh=False)
    made = make_plan(config, survey(config))
    if as_json:
        print(json.dumps(made, indent=1))  # noqa: T201
    else:
        print_plan(console, config, made)


@app.command()
def report(preset: Preset, set_: Sets = None, root: Root = None, as_json: Json = False) -> None:
    """Say what came out: a table and an HTML page with the pictures, or JSON."""
    from pipeline import report as reports
    from pipeline.runner import resolved, survey
    from pipeline.storage import open_storage

    config = resolved(load_config(preset, set_, root), fresh=False)
    nodes, storage = survey(config), open_storage(config.root)
    collected = reports.collect(config, nodes, storage)
    if as_json:
        print(json.dumps(collected, indent=1))  # noqa: T201
        return
    reports.render_table(console, collected)
    page = reports.write_page(config, nodes, storage, preset)
    console.print(f"page: {page}", highlight=False, soft_wrap=True)


@app.command()
def sample(
    preset: Preset,
    class_: Annotated[int, typer.Option("--class", min=0, help="The class to draw.")],
    out: Annotated[Path, typer.Option("--out", help="Folder for the pictures.")],
    n: Annotated[int, typer.Option("--n", min=1, help="How many.")] = 8,
    guidance: Annotated[float | None, typer.Option("--guidance", min=1.0, help="Guidance scale W.")] = None,
    set_: Sets = None,
    root: Root = None,
) -> None:
    """Draw pictures of a class with the trained generator, as PNG files."""
    from pipeline.drawing import draw
    from pipeline.runner import resolved, survey

    config = resolved(load_config(preset, set_, root), fresh=False)
    if class_ >= config.data.class_count:
        raise ConfigError(
            f"--class {class_}: there are classes 0 to {config.data.class_count - 1}", "Choose one of them."
        )
    for path in draw(config, survey(config), class_, n, guidance, out):
        console.print(str(path), highlight=False, soft_wrap=True)


@config_app.command("list")
def config_list(set_: Sets = None, root: Root = None) -> None:
    """The presets and what each is for."""
    from pipeline.loading import PRESETS

    for name in preset_names():
        load_config(name, set_, root)
        first = (PRESETS / f"{name}.yaml").read_text().splitlines()[0].lstrip("# ")
        console.print(f"{name:<18} {first}", highlight=False, soft_wrap=True)


@config_app.command("show")
def config_show(preset: Preset, set_: Sets = None, root: Root = None) -> None:
    """The resolved tree of a preset."""
    tree = load_config(preset, set_, root).model_dump(mode="json")
    sys.stdout.write(yaml.safe_dump(tree, sort_keys=False))


@config_app.command("schema")
def config_schema(set_: Sets = None, root: Root = None) -> None:  # noqa: ARG001
    """The tree's JSON schema: every field with type, default and meaning."""
    print(json.dumps(Config.model_json_schema(), indent=1))  # noqa: T201


@data_app.command("index")
def data_index(preset: Preset, set_: Sets = None, root: Root = None) -> None:
    """List the source and record what it holds, so that plans and fingerprints know it."""
    from pipeline.data.index import write_index
    from pipeline.data.listing import list_source
    from pipeline.storage import open_storage

    config = load_config(preset, set_, root)
    where = config.data.uri or config.data.format
    with console.status(f"listing {where}") as status:
        listing = list_source(config.data, lambda files: status.update(f"listing {where}: {files} files"))
        index = write_index(open_storage(config.root), config.data, listing)
    console.print(f"{index.files} files, {index.bytes / 1e6:.1f} MB, revision {index.digest[:12]}", highlight=False)


@artifact_app.command("ls")
def artifact_ls(preset: SomePreset = None, set_: Sets = None, root: Root = None) -> None:
    """Every committed artifact at the root."""
    from pipeline.artifacts import SHORT, all_manifests
    from pipeline.storage import open_storage

    for manifest in all_manifests(open_storage(_root_config(preset, set_, root).root)):
        size = sum(record.bytes for record in manifest.files.values()) / 1e6
        name = f"{manifest.stage}/{manifest.fingerprint[:SHORT]}"
        console.print(f"{name:<34} {size:10.1f} MB  {manifest.rows:>9} rows  {manifest.created}", highlight=False)


@artifact_app.command("show")
def artifact_show(
    name: Annotated[str, typer.Argument(help="STAGE/FINGERPRINT")],
    preset: SomePreset = None,
    set_: Sets = None,
    root: Root = None,
) -> None:
    """An artifact's manifest. NAME is STAGE/FINGERPRINT."""
    sys.stdout.write(_artifact(_root_config(preset, set_, root), name).model_dump_json(indent=1) + "\n")


@artifact_app.command("verify")
def artifact_verify(
    name: Annotated[str | None, typer.Argument(help="STAGE/FINGERPRINT; all when left out.")] = None,
    set_: Sets = None,
    root: Root = None,
) -> None:
    """Hash the files again and compare with the manifests. Exit code 1 when something is broken."""
    from pipeline.artifacts import SHORT, all_manifests, broken_files
    from pipeline.storage import open_storage

    config = _root_config(None, set_, root)
    storage = open_storage(config.root)
    broken = False
    for manifest in [_artifact(config, name)] if name else all_manifests(storage):
        files = broken_files(storage, manifest)
        broken |= bool(files)
        state = f"broken: {', '.join(files[:5])}" if files else "whole"
        console.print(f"{manifest.stage}/{manifest.fingerprint[:SHORT]}  {state}", highlight=False, soft_wrap=True)
    if broken:
        raise ContractError("some artifacts are broken", "Run `python -m pipeline artifact repair STAGE/FINGERPRINT`.")


@artifact_app.command("repair")
def artifact_repair(
    name: Annotated[str, typer.Argument(help="STAGE/FINGERPRINT")],
    set_: Sets = None,
    root: Root = None,
    debug: Debug = False,
) -> None:
    """Make a broken artifact again, from its own config and inputs."""
    from pipeline.artifacts import broken_files
    from pipeline.console import Display, own_console
    from pipeline.lineage import config_of
    from pipeline.runner import Runner, repair
    from pipeline.storage import open_storage

    config = _root_config(None, set_, root)
    storage = open_storage(config.root)
    manifest = _artifact(config, name)
    if not broken_files(storage, manifest):
        console.print("whole: nothing to repair")
        return
    with Display(own_console()) as display:
        repair(Runner(config_of(storage, manifest, config), display, "repair", debug), manifest, display.say)


@artifact_app.command("gc")
def artifact_gc(
    presets: Annotated[list[str] | None, typer.Argument(help="Presets whose artifacts stay.")] = None,
    set_: Sets = None,
    root: Root = None,
    yes: Annotated[bool, typer.Option("--yes", help="Remove; without it, only say what would go.")] = False,
) -> None:
    """Remove what neither a registered model nor one of the PRESETS needs."""
    from pipeline.artifacts import SHORT, check_idle, remove_artifact
    from pipeline.graph import fingerprints
    from pipeline.lineage import unneeded
    from pipeline.runner import resolved
    from pipeline.storage import open_storage

    config = _root_config(None, set_, root)
    storage = open_storage(config.root)
    kept: set[str] = set()
    for preset in presets or []:
        prints = fingerprints(resolved(load_config(preset, set_, root), fresh=False))
        if None in prints.values():
            raise ConfigError(
                f"{preset} is unresolved, so what it needs is not known: its source is not given, or not listed",
                "Give the run's --set data.uri=..., or list it with `python -m pipeline data index`.",
            )
        kept |= {print_ for print_ in prints.values() if print_}
    check_idle(storage)
    freed = 0
    for manifest in unneeded(storage, kept):
        freed += sum(record.bytes for record in manifest.files.values())
        console.print(
            f"{'removed' if yes else 'would go'}: {manifest.stage}/{manifest.fingerprint[:SHORT]}", highlight=False
        )
        if yes:
            remove_artifact(storage, manifest.stage, manifest.fingerprint)
    console.print(f"{freed / 1e6:.1f} MB{'' if yes else ' (--yes removes)'}", highlight=False)


@tracking_app.command("sync")
def tracking_sync(
    name: Annotated[str | None, typer.Argument(metavar="RUN", help="A run's key; all that wait when left out.")] = None,
    set_: Sets = None,
    root: Root = None,
) -> None:
    """Deliver to MLflow what could not be delivered while it was away."""
    from pipeline import tracking
    from pipeline.storage import open_storage

    config = _root_config(None, set_, root)
    storage = open_storage(config.root)
    files = tracking.deliver(storage, tracking.Post(tracking.tracking_uri(config), config), name)
    console.print(f"{files} files of events delivered, {len(tracking.undelivered(storage))} runs wait", highlight=False)


def _root_config(preset: str | None, set_: list[str] | None, root: str | None) -> Config:
    """The config of a preset, or the defaults and the site file where none is named: what matters is the root."""
    return load_config(preset or "quickstart", set_, root)


def _artifact(config: Config, name: str) -> Any:
    from pipeline.lineage import find_artifact
    from pipeline.storage import open_storage

    return find_artifact(open_storage(config.root), name)


def _say_where(config: Config, preset: str) -> None:
    """Where to look now."""
    import shlex

    from pipeline import report as reports
    from pipeline.artifacts import artifact_path
    from pipeline.runner import survey
    from pipeline.storage import open_storage
    from pipeline.tracking import tracking_uri

    nodes, storage, uri = survey(config), open_storage(config.root), tracking_uri(config)
    made = {node.stage.name: node.manifest for node in nodes if node.manifest is not None}
    look = [("report", reports.write_page(config, nodes, storage, preset))]
    if "sample" in made:
        look.append(("samples", storage.uri(f"{artifact_path('sample', made['sample'].fingerprint)}/grid.png")))
    command = f"mlflow ui --backend-store-uri {shlex.quote(uri)}"
    look.append(("runs and models", command if uri.startswith("sqlite") else uri))
    for what, where in look:
        console.print(f"  [dim]{what:<16}[/] {where}", highlight=False, soft_wrap=True)


def main() -> None:
    """The console script `dvae`."""
    run_app(app)


if __name__ == "__main__":
    main()
