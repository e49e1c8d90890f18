"""weights list, fetch, check: pretrained weights of others, by name."""

from typing import Annotated

import typer
from rich.table import Table

from pipeline.cli.options import Root, Sets, SomePreset, console, root_config
from pipeline.config import Config, load_config, preset_names
from pipeline.errors import PipelineError

_What = Annotated[
    list[str],
    typer.Argument(metavar="PRESET|NAME...", help="A preset, for all that it uses, or names of the catalogue."),
]
_To = Annotated[
    str | None,
    typer.Option("--to", help="Where they shall lie: a path, file:// or s3://. By default the config's `weights`."),
]
_From = Annotated[
    str | None,
    typer.Option(
        "--from", help="Folder or mirror that has the files by their publisher's names, for want of internet."
    ),
]

app = typer.Typer(no_args_is_help=True, help="Pretrained weights of others, by name.")


@app.command("list")
def weights_list(preset: SomePreset = None, to: _To = None, set_: Sets = None, root: Root = None) -> None:
    """List the catalogue, what of it lies here, and what a preset uses."""
    from pipeline.weights import CATALOGUE, place_of, read_recorded, weights_used

    config = _at(root_config(preset, set_, root), to)
    place = place_of(config)
    here = read_recorded(place)
    used = {use.file.name: f"{use.section}.{use.field}" for use in weights_used(config)} if preset else {}
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("name", "here", "size", "licence", "publisher", "what", "used by"):
        table.add_column(heading, overflow="fold")
    for name, entry in CATALOGUE.items():
        size = sum(file.bytes or 0 for file in entry.files)
        table.add_row(
            name,
            "package" if entry.package else "yes" if name in here else "-",
            f"{size / 1e6:.0f} MB" if size > 1e5 else "",
            entry.licence,
            entry.publisher,
            entry.title,
            used.get(name, ""),
        )
    for name, recorded in here.items():
        if name not in CATALOGUE:
            table.add_row(name, "yes", "", recorded.licence or "", recorded.source or "", "", used.get(name, ""))
    console.print(table)
    console.print(f"place: {place.root}", highlight=False, soft_wrap=True)


@app.command("fetch")
def weights_fetch(what: _What, to: _To = None, source: _From = None, set_: Sets = None, root: Root = None) -> None:
    """Fetch weights, verify and convert them to safetensors, and record them in weights.yaml."""
    from pipeline.console import Display, own_console
    from pipeline.weights import CATALOGUE, fetch, find_entry, place_of, wanted

    names, config = list[str](), root_config(None, set_, root)
    for one in what:
        if one in CATALOGUE:
            names.append(one)
        elif one in preset_names() or one.endswith((".yaml", ".yml")):
            config = load_config(one, set_, root)
            names += wanted(config)
        else:
            find_entry(one, tuple(preset_names()))  # raises, with the nearest
    place = place_of(_at(config, to))
    with Display(own_console()) as display:
        for name in dict.fromkeys(names):
            display.begin(name)
            recorded = fetch(name, place, lambda done, total, unit: display.progress(done, total, unit), source)
            display.end(name, "[green]✓[/]", recorded.uri if "://" in recorded.uri else place.uri(recorded.uri))
    if not names:
        console.print("there is nothing to fetch: no weights of a publisher are used", highlight=False)


@app.command("check")
def weights_check(preset: SomePreset = None, to: _To = None, set_: Sets = None, root: Root = None) -> None:
    """Hash the files that weights.yaml lists, and name what the preset lacks."""
    from pipeline.weights import check, check_known, place_of, resolve_weights

    config = _at(root_config(preset, set_, root), to)
    place = place_of(config)
    verdicts = list(check(place))
    for verdict in verdicts:
        mark = "[green]✓[/]" if verdict.whole else "[red]✗[/]"
        console.print(f"{mark} {verdict.name:<20} {verdict.text}", highlight=False, soft_wrap=True)
    if not verdicts:
        console.print(f"no weights lie at {place.root}", highlight=False, soft_wrap=True)
    if broken := [verdict.name for verdict in verdicts if not verdict.whole]:
        raise PipelineError(
            f"the weights {', '.join(broken)} at {place.root} are not whole",
            f"Fetch them again: `python -m pipeline weights fetch {' '.join(broken)} --to {place.root}`.",
        )
    if preset is not None:
        check_known(resolve_weights(config))


def _at(config: Config, to: str | None) -> Config:
    return config if to is None else config.model_copy(update={"weights": to})
