"""sample: pictures of chosen classes from a trained generator or a registered model, drawn in this process."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from models.choices import MINIMUM_STEPS, SamplerMethod
from pipeline.cli.labels import labels_of
from pipeline.cli.options import Root, Sets, console, local_file, local_folder, root_config
from pipeline.config import load_config
from pipeline.errors import ConfigError

if TYPE_CHECKING:
    from pipeline.inference import Batch, Request, Source

app = typer.Typer()

_TILE = 144  # pixels, of the largest tile that a grid has by itself
_GRID_SIDE, _GRID_PIXELS = 60_000, 2**28  # matplotlib draws less than 2^16 a side; a grid is in memory several times


@app.command()
def sample(
    preset: Annotated[
        str,
        typer.Argument(metavar="PRESET|MODEL", help="A preset or YAML file, or models:/NAME@ALIAS or /VERSION."),
    ],
    class_: Annotated[str, typer.Option("--class", help="Classes: numbers from 0, ranges, names; as in 0-9,207,cat.")],
    n: Annotated[int, typer.Option("--n", min=1, help="Pictures of each class.")] = 8,
    out: Annotated[
        Path | None, typer.Option("--out", parser=local_folder, metavar="FOLDER", help="Folder for a PNG a picture.")
    ] = None,
    grid: Annotated[
        Path | None,
        typer.Option("--grid", parser=local_file, metavar="FILE.png", help="One figure, a row a class, as asked for."),
    ] = None,
    npz: Annotated[
        Path | None,
        typer.Option(
            "--npz",
            parser=local_file,
            metavar="FILE",
            help="A file as ADM's: arr_0 uint8 (N, H, W, 3), arr_1 labels.",
        ),
    ] = None,
    size: Annotated[int | None, typer.Option("--size", min=8, help="Side of a grid's pictures, in pixels.")] = None,
    guidance: Annotated[float | None, typer.Option("--guidance", min=1.0, help="Guidance scale; 1: none.")] = None,
    interval: Annotated[
        str | None, typer.Option("--interval", metavar="LOW,HIGH", help="Times t with guidance, in [0, 1].")
    ] = None,
    method: Annotated[SamplerMethod | None, typer.Option("--method", help="Sampler, as sample.method.")] = None,
    steps: Annotated[
        int | None, typer.Option("--steps", min=MINIMUM_STEPS, help="Points in time, as sample.steps.")
    ] = None,
    seed: Annotated[int | None, typer.Option("--seed", min=0, help="Another seed gives other pictures.")] = None,
    set_: Sets = None,
    root: Root = None,
) -> None:
    """Draw pictures of classes with a trained generator: PNG files, a grid, or one .npz, or several of them.

    What no option says is as in the preset, or as the model was registered. A name goes before a number: with folders
    named 1 to 12 or 01 to 12, `--class 2` is the folder of that number.

    Picture i of class c starts from the noise of (seed, i * number of classes + c): it is the same whatever --n, the
    batch or the other classes, and it is the one of the stage `sample`. (For dopri5 within its tolerances.) A .npz has
    all classes' pictures 0, then all pictures 1.

    With --npz a command that was cut goes on when it is given again; until then its pictures are in FILE.parts. Many
    pictures on many devices are the stage's work: `stage sample PRESET`.
    """
    files = _Files(out, grid, npz, size)
    files.check()
    source = _source(preset, set_, root)
    asked = {"guidance": guidance, "guidance_interval": _interval(interval), "method": method, "steps": steps}
    sampling = _sampling(source.sampling, {**asked, "seed": seed})
    labels = labels_of(class_, source.class_names, source.classes)
    if grid is not None:
        _check_grid(len(labels), n, size or min(source.image_size, _TILE))
    _draw(source, labels, n, sampling, files)


class _Files(NamedTuple):
    """What is to be written; None: not asked for."""

    out: Path | None
    grid: Path | None
    npz: Path | None
    size: int | None

    def check(self) -> None:
        """ConfigError if nothing is asked for, or a size of nothing, or the .npz is there."""
        if self.out is None and self.grid is None and self.npz is None:
            raise ConfigError("there is nothing to write", "Give --out FOLDER, --grid FILE.png or --npz FILE.")
        if self.size is not None and self.grid is None:
            raise ConfigError("--size has no effect without --grid", "Leave it out, or give --grid FILE.png.")
        if self.npz is not None and self.npz.is_file():
            raise ConfigError(f"{self.npz} is there already", "Delete it, or choose another file with --npz.")

    def make_ready(self) -> None:
        """Make the folders, before anything is drawn. StorageError where one cannot be written."""
        from pipeline.inference import ready_file, ready_folder

        if self.out is not None:
            ready_folder(self.out, "--out")
        if self.grid is not None:
            ready_file(self.grid, "--grid")
        if self.npz is not None:
            ready_file(self.npz, "--npz")


# --- what is asked for ---


def _source(preset: str, set_: list[str] | None, root: str | None) -> "Source":
    from pipeline import inference, workflow
    from pipeline.tracking import MODELS, fetch_model

    if not preset.startswith(MODELS):
        config = workflow.resolved(load_config(preset, set_, root), fresh=False)
        return inference.trained_source(config, workflow.artifacts_of(workflow.survey(config)))
    idle = [text for text in set_ or [] if not text.startswith("tracking.")]
    if idle:
        raise ConfigError(
            f"--set {idle[0]} has no effect on {preset}: the model was registered with its settings",
            "Leave it out; --guidance, --interval, --method, --steps and --seed are taken.",
        )
    folder = fetch_model(root_config(None, set_, root), preset, console.print)
    return inference.registered_source(folder, preset)


def _interval(given: str | None) -> tuple[float, float] | None:
    """ConfigError unless it is two numbers in [0, 1], not in falling order."""
    if given is None:
        return None
    try:
        low, high = (float(part) for part in given.split(","))
    except ValueError:
        raise ConfigError(f"--interval {given} is not of two numbers", "Write it as in 0,0.7.") from None
    if not 0.0 <= low <= high <= 1.0:
        raise ConfigError(f"--interval {given} is not an interval in [0, 1]", "Write it as in 0,0.7.")
    return low, high


def _sampling(own: Mapping[str, Any], asked: Mapping[str, Any]) -> dict[str, Any]:
    """The source's settings with those that were asked for. ConfigError for one that then has no effect."""
    given = {name: value for name, value in asked.items() if value is not None}
    sampling = {**own, **given}
    if not math.isfinite(sampling["guidance"]):
        raise ConfigError(f"--guidance {sampling['guidance']} is not a finite number", "Write it as in 1.8.")
    if "steps" in given and sampling["method"] == "dopri5":
        raise ConfigError(
            "--steps has no effect: dopri5 chooses its own steps", "Leave it out, or choose another --method."
        )
    if "guidance_interval" in given and sampling["guidance"] == 1.0:
        raise ConfigError("--interval has no effect without guidance", "Leave it out, or give --guidance above 1.")
    return sampling


def _check_grid(rows: int, columns: int, side: int) -> None:
    height, width = rows * side, columns * side
    if max(height, width) > _GRID_SIDE or height * width > _GRID_PIXELS:
        raise ConfigError(
            f"a grid of {rows} x {columns} pictures of {side} pixels is too large to be drawn",
            "Ask for fewer classes, or a smaller --n or --size; --out and --npz take any number.",
        )


# --- drawing and writing ---


def _draw(source: "Source", labels: Sequence[int], n: int, sampling: Mapping[str, Any], files: _Files) -> None:
    from pipeline.console import Display, own_console
    from pipeline.inference import Parts, Request, draw, write_pngs

    opened, request, parts, kept = source.open(), Request(labels, n, source.classes), None, list["Batch"]()
    files.make_ready()
    if files.npz is not None:
        parts = Parts(files.npz, request.digest(opened.identity, sampling), source.image_size)
    with Display(own_console()) as display:
        display.begin("sample")
        for batch in draw(opened, request, sampling, source.batch_size, parts):
            if files.out is not None:
                write_pngs(files.out, request, batch)
            if files.grid is not None:
                kept.append(batch)
            display.progress(batch.stop, len(request), "images")
    if parts is not None:
        parts.finish(request, source.batch_size)
    if files.grid is not None:
        _write_grid(files.grid, request, kept, source.class_names, sampling, files.size)
    for path in (files.out, files.grid, files.npz):
        if path is not None:
            console.print(f"{path}: {len(request):,} images", highlight=False, markup=False, soft_wrap=True)


def _write_grid(
    path: Path,
    request: "Request",
    batches: "Sequence[Batch]",
    names: Sequence[str],
    sampling: Mapping[str, Any],
    size: int | None,
) -> None:
    import numpy as np

    from pipeline.inference import output_errors
    from pipeline.reports import sample_grid

    images_NHWC = np.concatenate([batch.images_BHWC for batch in batches])
    labels_N = np.array([request.label(place) for place in range(len(request))])
    drawn = sample_grid(np.moveaxis(images_NHWC, -1, 1), labels_N, names, size=size, note=_told(sampling))
    with output_errors(path, "--grid"):
        path.write_bytes(drawn)


def _told(sampling: Mapping[str, Any]) -> str:
    """The settings in words: `heun, 50 steps, guidance 1.8 for t from 0 to 0.7, seed 0.`"""
    low, high = sampling["guidance_interval"]
    guidance = f"guidance {sampling['guidance']:g} for t from {low:g} to {high:g}"
    parts = [
        sampling["method"],
        *([f"{sampling['steps']} steps"] if sampling["method"] != "dopri5" else []),
        guidance if sampling["guidance"] != 1.0 else "no guidance",
        f"seed {sampling['seed']}",
    ]
    return f"{', '.join(parts)}."
