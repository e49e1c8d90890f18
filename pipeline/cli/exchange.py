"""import and export of tokenizers and generators: from elsewhere, and for use elsewhere."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, get_args

import typer

from models.choices import DEFAULT_KEEP, DEFAULT_MASK, Mask
from pipeline.cli.options import Preset, Root, Sets, console, local_folder, root_config
from pipeline.config import Config, load_config
from pipeline.errors import ConfigError, ContractError

if TYPE_CHECKING:
    from pipeline.artifacts import Manifest
    from pipeline.storage import Storage

importing = typer.Typer(no_args_is_help=True, help="Use what was trained elsewhere.")
exporting = typer.Typer(no_args_is_help=True, help="Write out what was trained, for use without the pipeline.")


@importing.command("tokenizer")
def import_tokenizer(
    kind: Annotated[str, typer.Argument(help="vit (as exported), sd-vae, dc-ae (folders of diffusers) or detok.")],
    uri: Annotated[str, typer.Argument(help="Folder with a config, or file of safetensors: a path, file:// or s3://.")],
    image_size: Annotated[int, typer.Option("--image-size", min=8, help="Side of the images to come.")] = 256,
    mask: Annotated[str, typer.Option("--mask", help="Mask of S_l on its latents, as tokenizer.mask.")] = DEFAULT_MASK,
    keep: Annotated[float, typer.Option("--keep", help="Its share, as tokenizer.keep.")] = DEFAULT_KEEP,
    set_: Sets = None,
    root: Root = None,
) -> None:
    """Make public weights an artifact that stands for a trained tokenizer, and print the lines of a preset that use it.

    Only safetensors are read.
    """
    from pipeline.workflow import ImportUse, SourceKind, preset_lines
    from pipeline.workflow import import_tokenizer as import_

    _check_choice("KIND", kind, get_args(SourceKind))
    _check_choice("--mask", mask, get_args(Mask))
    if not 0.0 < keep < 1.0:
        raise ConfigError(f"--keep {keep:g} is not between 0 and 1", "Choose a share of the frequencies.")
    named: SourceKind = kind  # type: ignore[assignment]  # checked above
    use = ImportUse(image_size, mask, keep)  # type: ignore[arg-type]
    manifest = import_(root_config(None, set_, root).root, named, uri, use, _say)
    _say(f"# {manifest.name}, from {uri}")
    _say(preset_lines(manifest))


@importing.command("sit")
def import_sit(
    kind: Annotated[str, typer.Argument(help="Whose layout: sit, repa or sra.")],
    uri: Annotated[str, typer.Argument(metavar="FILE", help=".pt, .pth or .safetensors: a path, file:// or s3://.")],
    heads: Annotated[int | None, typer.Option("--heads", min=1, help="Of a width that no public SiT has.")] = None,
    set_: Sets = None,
    root: Root = None,
) -> None:
    """Make public weights an artifact that stands for a trained generator, and print the lines of a preset that use it.

    Of a checkpoint its moving average is taken; no code in it is run.
    """
    from pipeline.workflow import import_sit as import_
    from pipeline.workflow import public_kind, sit_preset_lines

    manifest = import_(root_config(None, set_, root).root, public_kind(kind), uri, heads, _say)
    _say(f"# {manifest.name}, from {uri}")
    _say(sit_preset_lines(manifest))


def _say(lines: str) -> None:
    """Print lines of YAML, which a narrow terminal may not break."""
    console.print(lines, highlight=False, markup=False, soft_wrap=True)


def _check_choice(name: str, given: str, choices: tuple[str, ...]) -> None:
    if given not in choices:
        raise ConfigError(f"{name} {given} is unknown", f"Use one of {', '.join(choices)}.")


@exporting.command("tokenizer")
def export_tokenizer(
    preset: Preset,
    to: Annotated[
        Path,
        typer.Option("--to", parser=local_folder, metavar="FOLDER", help="New folder for config.json and weights."),
    ] = Path("tokenizer"),
    set_: Sets = None,
    root: Root = None,
) -> None:
    """Write a preset's tokenizer to a folder that `models.tokenizers.load` opens; an sd-vae is also diffusers'."""
    from pipeline.inference import export_tokenizer as export

    _, storage, manifest = _made("train-tokenizer", preset, set_, root)
    for path in export(storage, manifest, to):
        console.print(str(path), highlight=False, soft_wrap=True)


@exporting.command("sit")
def export_sit(
    kind: Annotated[str, typer.Argument(help="Whose code will load it: sit, repa or sra.")],
    preset: Preset,
    to: Annotated[Path, typer.Option("--to", parser=local_folder, metavar="FILE", help="New file of torch.")] = Path(
        "sit.pt"
    ),
    set_: Sets = None,
    root: Root = None,
) -> None:
    """Write a preset's generator to a file that public code loads, and print the scale of its latents.

    The average of the weights is that of sample.ema_decay.
    """
    from pipeline.inference import export_sit as export
    from pipeline.workflow import public_kind

    layout = public_kind(kind)
    config, storage, manifest = _made("train-sit", preset, set_, root)
    export(storage, manifest, config.sample.ema_decay, layout, to)
    own = manifest.details["statistics"]
    console.print(str(to), highlight=False, soft_wrap=True)
    console.print(
        f"# for latents (z - mean) / std of level {manifest.details['level']}: mean {own['mean']}, std {own['std']}",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )


@exporting.command("samples")
def export_samples(
    preset: Preset,
    to: Annotated[Path, typer.Option("--to", parser=local_folder, metavar="FILE", help="New .npz file.")] = Path(
        "samples.npz"
    ),
    set_: Sets = None,
    root: Root = None,
) -> None:
    """Write a preset's samples to a file as ADM's: arr_0 uint8 (N, H, W, 3), arr_1 the labels."""
    from pipeline.inference import export_samples as export

    _, storage, manifest = _made("sample", preset, set_, root)
    count = export(storage, manifest, to)
    console.print(f"{to}: {count:,} images", highlight=False, markup=False, soft_wrap=True)


def _made(stage: str, preset: str, set_: list[str] | None, root: str | None) -> "tuple[Config, Storage, Manifest]":
    """The config of a preset, its root, and the artifact of a stage of it there. ContractError if it is not there."""
    from pipeline.storage import open_storage
    from pipeline.workflow import artifacts_of, resolved, survey

    config = resolved(load_config(preset, set_, root), fresh=False)
    manifest = artifacts_of(survey(config)).get(stage)
    if manifest is None:
        raise ContractError(
            f"the {stage} artifact of {preset} is not at {config.root}",
            f"Run `python -m pipeline run {preset} --until {stage}` first (with the same --set and --root).",
        )
    return config, open_storage(config.root), manifest
