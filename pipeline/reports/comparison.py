"""`analyze PRESET PRESET ...`: several tokenizers side by side, in the figures of their analyses of the same images.

The artifacts of the stage `analyze` are read; nothing is computed anew.
"""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pipeline.artifacts import SHORT, Manifest
from pipeline.config import preset_label
from pipeline.errors import ContractError
from pipeline.metrics import value_text
from pipeline.reports.analysis import Analysis, read_analysis
from pipeline.reports.folder import write_files
from pipeline.storage import Storage

_FIGURES = "figures.json"
_COLUMNS = (  # of the table: title, metric
    ("high frequencies", "latent/high_frequency_share"),
    ("uniform, off DC", "latent/uniform_off_dc"),
    ("PCA, high frequencies", "latent/pca_high_frequency_share"),
    ("PSNR lost without half", "latent/psnr_loss_half_removed"),
)


class Found(NamedTuple):
    """A preset's analyze artifact, and where it lies."""

    preset: str
    storage: Storage
    manifest: Manifest


def read_analyses(found: Sequence[Found]) -> list[Analysis]:
    """The analyses, named by their presets, of different tokenizers that saw the same images.

    ContractError if one tokenizer is named twice, if the images differ, or as `read_analysis`.
    """
    first: dict[str, str] = {}
    for preset, _, manifest in found:
        if manifest.fingerprint in first:
            raise ContractError(
                f"{first[manifest.fingerprint]} and {preset} have the same tokenizer ({manifest.name})",
                "Name each tokenizer once.",
            )
        first[manifest.fingerprint] = preset
    labels = [preset_label(one.preset) for one in found]
    twice = {label for label, count in Counter(labels).items() if count > 1}
    names = [one.preset if label in twice else label for label, one in zip(labels, found, strict=True)]
    analyses = [read_analysis(one.storage, one.manifest, name) for name, one in zip(names, found, strict=True)]
    for analysis, one in zip(analyses, found, strict=True):
        if analysis.numbers["images_sha256"] != analyses[0].numbers["images_sha256"]:
            raise ContractError(
                f"{analysis.name} was analysed on other images ({_images(analysis, one)}) than {analyses[0].name} "
                f"({_images(analyses[0], found[0])})",
                "Compare tokenizers with the same data, seed, data.image_size and data.center_crop.",
            )
    return analyses


def _images(analysis: Analysis, found: Found) -> str:
    """Which images a tokenizer was analysed on."""
    size = analysis.numbers["image_size"]
    return f"{analysis.numbers['images']} of prepare/{found.manifest.inputs['prepare'][:SHORT]} at {size} x {size}"


def write_comparison(folder: Path, analyses: Sequence[Analysis], found: Sequence[Found]) -> list[Path]:
    """Write the figures and `figures.json`, with every number in them, to the folder; returns the paths.

    StorageError if the folder cannot be written.
    """
    from pipeline.reports.panels import draw_panels

    files = {_FIGURES: json.dumps(_content(analyses, found)).encode(), **draw_panels(analyses)}
    return write_files(folder, files)


def _content(analyses: Sequence[Analysis], found: Sequence[Found]) -> dict[str, Any]:
    """The numbers of every figure, and which artifacts they are from."""
    shared = ("images", "images_sha256", "image_size")
    return {
        **{key: analyses[0].numbers[key] for key in shared},
        "tokenizers": [
            {
                "name": analysis.name,
                "analyze": one.manifest.fingerprint,
                "inputs": one.manifest.inputs,
                **{key: value for key, value in analysis.numbers.items() if key not in shared},
                "projections": analysis.projections,
            }
            for analysis, one in zip(analyses, found, strict=True)
        ],
    }


def render_comparison(console: Console, analyses: Sequence[Analysis]) -> None:
    """Print the numbers that tell the tokenizers apart."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("tokenizer")
    for title in ("latent", *(title for title, _ in _COLUMNS)):
        table.add_column(title, justify="right")
    for analysis in analyses:
        measured = analysis.numbers["metrics"]
        cells = [value_text(key, measured[key]) for _, key in _COLUMNS]
        table.add_row(escape(analysis.name), analysis.shape_text, *cells)
    console.print(table)
