"""weights list, fetch, check: pretrained weights of others, by name."""

import importlib.util
from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.cli.options import Root, Sets, SomePreset, console, root_config
from pipeline.config import Config, load_config, preset_names
from pipeline.errors import ConfigError, PipelineError

if TYPE_CHECKING:
    from pipeline.weights import Entry

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
        "--from",
        help="Folder or mirror that has the files by their publisher's names, those of sd-vae and dc-ae in a folder of "
        "the weights' name; for want of internet.",
    ),
]

app = typer.Typer(no_args_is_help=True, help="Pretrained weights of others, by name.")


@app.command("list")
def weights_list(preset: SomePreset = None, to: _To = None, set_: Sets = None, root: Root = None) -> None:
    """List the catalogue, what of it lies here, and what a preset uses."""
    from pipeline.weights import CATALOGUE, place_of, read_recorded, resolve_weights, weights_used

    config = _at(root_config(preset, set_, root), to)
    place = place_of(config)
    here = read_recorded(place)
    used = defaultdict[str | None, list[str]](list)
    for use in weights_used(resolve_weights(config)) if preset else ():
        used[use.file.name].append(f"{use.section}.{use.field}")
    _print_row("name", "here", "size", "sha256", "licence")
    for name, entry in CATALOGUE.items():
        size = sum(file.bytes or 0 for file in entry.files)
        digest = entry.package_sha256 if entry.package else entry.files[0].sha256
        shown = f"{size / 1e6:.0f} MB" if size > 1e5 else ""
        about = [f"{entry.title}; {entry.publisher}", *used[name]]
        _print_row(name, _where(entry, name in here), shown, digest, entry.licence, about)
    for name, recorded in here.items():
        if name not in CATALOGUE:
            about = [recorded.source or recorded.uri, *used[name]]
            _print_row(name, "yes", "", recorded.sha256, recorded.licence, about)
    console.print(f"place: {place.root}", highlight=False, soft_wrap=True)


def _print_row(
    name: str, here: str, size: str, sha256: str | None, licence: str | None, about: Sequence[str] = ()
) -> None:
    """A line of facts, and below it what it is and what uses it; whole words, whatever the terminal's width."""
    line = f"{name:<20}{here:<9}{size:>8}  {(sha256 or '')[:8]:<9} {licence or ''}"
    console.print(line.rstrip(), highlight=False, markup=False, soft_wrap=True)
    if about:
        what, *uses = about
        text = f"  {what}" + (f"; used by {', '.join(uses)}" if uses else "")
        console.print(text, style="dim", highlight=False, markup=False, soft_wrap=True)


def _where(entry: "Entry", recorded: bool) -> str:
    if entry.package is None:
        return "yes" if recorded else "-"
    return "package" if importlib.util.find_spec(entry.package.partition(":")[0]) else "-"


@app.command("fetch")
def weights_fetch(what: _What, to: _To = None, source: _From = None, set_: Sets = None, root: Root = None) -> None:
    """Fetch weights, verify and convert them to safetensors, and record them in weights.yaml."""
    from pipeline.console import Display, own_console
    from pipeline.weights import CATALOGUE, fetch, find_entry, place_of, resolve_weights, wanted

    presets = [one for one in what if one not in CATALOGUE]
    for one in presets:
        if one not in preset_names() and not one.endswith((".yaml", ".yml")):
            find_entry(one, tuple(preset_names()))  # raises, with the nearest
    configs = [_at(load_config(one, set_, root), to) for one in presets]
    places = {place_of(config).root: place_of(config) for config in configs or [_at(root_config(None, set_, root), to)]}
    if len(places) > 1:
        raise ConfigError(f"the presets have their weights at {' and '.join(places)}", "Give one place with --to.")
    (place,) = places.values()
    names = [one for one in what if one in CATALOGUE]
    for config in configs:
        names += wanted(resolve_weights(config))
    with Display(own_console()) as display:
        for name in dict.fromkeys(names):
            display.begin(name)
            recorded = fetch(name, place, lambda done, total, unit: display.progress(done, total, unit), source)
            display.end(name, "[green]✓[/]", recorded.uri if "://" in recorded.uri else place.uri(recorded.uri))
            if CATALOGUE[name].files[0].sha256 is None:
                display.say(
                    f"  [yellow]![/] {name} was compared with no sum, as its publisher gives none; compare with other "
                    f"machines': sha256 {recorded.source_sha256}"
                )
    if not names:
        console.print("there is nothing to fetch: no weights of a publisher are used", highlight=False)


@app.command("check")
def weights_check(preset: SomePreset = None, to: _To = None, set_: Sets = None, root: Root = None) -> None:
    """Hash the files that weights.yaml lists, and name what the preset lacks."""
    from pipeline.weights import CATALOGUE, check, check_known, place_of, read_recorded, resolve_weights

    config = _at(root_config(preset, set_, root), to)
    place = place_of(config)
    verdicts = list(check(place))
    for verdict in verdicts:
        mark = "[green]✓[/]" if verdict.whole else "[red]✗[/]"
        console.print(f"{mark} {verdict.name:<20} {verdict.text}", highlight=False, soft_wrap=True)
    if not verdicts:
        console.print(f"no weights lie at {place.root}", highlight=False, soft_wrap=True)
    if broken := [verdict.name for verdict in verdicts if not verdict.whole]:
        recorded = read_recorded(place)
        own = [name for name in broken if recorded[name].source is None or name not in CATALOGUE]
        again = f"Fetch them again: `python -m pipeline weights fetch {' '.join(broken)} --to {place.root}`."
        raise PipelineError(
            f"the weights {', '.join(broken)} at {place.root} are not whole",
            f"Bring the files of {', '.join(own)}, or correct weights.yaml." if own else again,
        )
    if preset is not None:
        check_known(resolve_weights(config))


def _at(config: Config, to: str | None) -> Config:
    return config if to is None else config.model_copy(update={"weights": to})
