"""`report`: what came out of a run, from the manifests. As JSON, as a table, as one HTML page.

Light: no torch, ray, mlflow or matplotlib; pictures are the artifacts' own. The page's markup is `report_page.py`.
"""

import base64
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from pipeline import report_page as page
from pipeline.artifacts import SHORT, Manifest, artifact_path
from pipeline.config import Config
from pipeline.console import duration
from pipeline.errors import ContractError
from pipeline.graph import Node
from pipeline.loading import SENT
from pipeline.storage import Storage

STATUS_WORDS = {"cached": "made", "resumable": "in part", "new": "not made", "unresolved": "no source"}


@dataclass(frozen=True)
class Meaning:
    """How a metric is read. `better` is higher, lower or empty; a `%` unit takes a share times 100."""

    unit: str
    better: str
    text: str


_MEANINGS = {
    "data/rows": Meaning("images", "", "readable images of both splits"),
    "data/train_rows": Meaning("images", "", "images of the training split"),
    "data/validation_rows": Meaning("images", "", "images of the validation split"),
    "data/quarantined": Meaning("images", "lower", "unreadable images that were left out"),
    "reconstruction/psnr": Meaning("dB", "higher", "mean over validation images, uint8, range 255"),
    "reconstruction/ssim": Meaning("", "higher", "mean over validation images, uint8, range 255"),
    "reconstruction/lpips": Meaning("", "lower", "LPIPS (VGG), mean over validation images"),
    "reconstruction/rfid": Meaning("", "lower", "Frechet distance to the originals, Inception's features"),
    "reconstruction/frechet_distance": Meaning(
        "", "lower", "reconstructions to their originals, this network's features"
    ),
    "latent/high_frequency_share": Meaning("%", "lower", "energy off DC that lies above half the largest |k|"),
    "latent/uniform_off_dc": Meaning("%", "lower", "energy off DC in latents of images of one colour"),
    "latents/rows": Meaning("latents", "", "encoded images of the training split"),
    "latents/quarantined": Meaning("images", "lower", "images that could not be decoded"),
    "latents/canary_psnr": Meaning("dB", "higher", "stored latents, decoded again, to their images"),
    "samples/count": Meaning("images", "", "generated images"),
    "samples/class_accuracy": Meaning("%", "higher", "samples that a classifier reads as the class asked for"),
    "samples/classifier_accuracy": Meaning("%", "higher", "that classifier on held-out real images"),
    "samples/frechet_distance": Meaning("", "lower", "samples to the training split, this network's features"),
    "samples/sfid": Meaning("", "lower", "as before, on Inception's spatial features"),
    "samples/inception_score": Meaning("", "higher", "Inception Score of the samples"),
    "samples/precision": Meaning("%", "higher", "samples inside the real images' manifold"),
    "samples/recall": Meaning("%", "higher", "real images inside the samples' manifold"),
}
_LEVEL = re.compile(r"^(.*)_level(\d)$")

_HEADLINE = (  # the numbers at the top of the page, with the words above them
    ("reconstruction/psnr", "reconstruction, level 0"),
    ("reconstruction/psnr_level2", "reconstruction, level 2"),
    ("latent/high_frequency_share", "high frequencies"),
    ("samples/class_accuracy", "samples read as asked"),
    ("samples/frechet_distance", "Frechet distance"),
    ("reconstruction/rfid", "rFID"),
)

_CAPTIONS = {  # in the order of the page
    "sample/grid.png": "The generator was given a class and the noise of a seed, nothing else.",
    "evaluate-tokenizer/reconstructions.png": "Little should be lost down to the level that the generator learns.",
    "analyze/latents.png": "A denoised latent keeps the shapes of its image and loses the speckle.",
    "analyze/uniform.png": "A square of one colour is right; speckle is what the encoder adds to whatever image.",
    "analyze/spectrum.png": "S_l takes from the high frequencies; level 0 shows what the regularizer has left there.",
    "train-tokenizer/losses.png": "The terms of the tokenizer's objective, and its discriminator's.",
    "train-sit/losses.png": "The generator's loss and its terms, also by quarters of the time t.",
}


def collect(config: Config, nodes: list[Node], storage: Storage) -> dict[str, Any]:
    """Each stage's status and the seconds of the run that made it (0: not made), and the metrics of all stages."""
    stages = {
        node.stage.name: {"status": node.status, "seconds": node.manifest.seconds if node.manifest else 0.0}
        for node in nodes
    }
    metrics = {name: value for node in nodes if node.manifest for name, value in node.manifest.metrics.items()}
    source = config.data.uri or config.data.format
    return {"source": source, "root": storage.root, "stages": stages, "metrics": metrics}


def meaning(name: str) -> Meaning:
    """The meaning of a metric, whatever level or network its name ends with; an empty one for a training loss."""
    base = level_of(name)[0]
    return _MEANINGS.get(base) or _MEANINGS.get(base.rpartition("/")[0]) or Meaning("", "", "")


def level_of(name: str) -> tuple[str, int]:
    """`reconstruction/psnr_level2` as (`reconstruction/psnr`, 2); a name without a level is at 0."""
    found = _LEVEL.match(name)
    return (found[1], int(found[2])) if found else (name, 0)


def value_text(name: str, value: float) -> str:
    """The number with its unit: four digits, or all of a count."""
    unit = meaning(name).unit
    if unit == "%":
        return f"{100 * value:.3g} %"
    number = f"{value:,.0f}" if unit in ("images", "latents") else f"{value:.4g}"
    return f"{number} {unit}".strip()


_WIDE = 130  # columns of a terminal that has room for a metric's meaning


def render_table(console: Console, report: dict[str, Any]) -> None:
    """Stages and metrics on the terminal."""
    stages = Table(box=None, pad_edge=False, header_style="bold")
    stages.add_column("stage")
    stages.add_column("status")
    stages.add_column("time", justify="right")
    for name, stage in report["stages"].items():
        made = stage["status"] == "cached"
        word = STATUS_WORDS[stage["status"]]
        stages.add_row(name, f"[green]{word}[/]" if made else word, duration(stage["seconds"]) if made else "")
    total = sum(stage["seconds"] for stage in report["stages"].values())
    stages.add_row("[bold]together[/]", "", f"[bold]{duration(total)}[/]")
    console.print(stages)
    metrics = Table(box=None, pad_edge=False, header_style="bold")
    metrics.add_column("metric", no_wrap=True)
    metrics.add_column("value", justify="right", no_wrap=True)
    explained = console.width >= _WIDE  # else the meanings would fold into columns of single words
    if explained:
        metrics.add_column("meaning", style="dim")
    for name, value in report["metrics"].items():
        metrics.add_row(name, value_text(name, value), *([meaning(name).text] if explained else []))
    console.print()
    console.print(metrics)


def write_page(config: Config, nodes: list[Node], storage: Storage, preset: str) -> str:
    """Write the page under the root; its URI. Errors as `render_html`, StorageError when it cannot be written."""
    name = Path(preset.removeprefix(SENT)).stem
    path = f"reports/{name}.html"
    storage.write(path, render_html(config, nodes, storage, name).encode())
    return storage.uri(path)


def render_html(config: Config, nodes: list[Node], storage: Storage, name: str) -> str:
    """The whole page, with its style and pictures inside. ContractError when an artifact's picture is gone."""
    report = collect(config, nodes, storage)
    body = [
        page.header(name, _facts(config, nodes)),
        page.cards(_headline(report["metrics"])),
        page.section("Stages", page.table(("stage", "status", "time", "", "rows", "fingerprint"), _stage_rows(nodes))),
        page.section("Pictures", page.figures(_figures(nodes, storage))),
        page.section("Metrics", _metric_tables(report["metrics"]), _notes(nodes)),
        page.section("Config that counts", "".join(page.folded(*part) for part in _configs(nodes))),
        page.section("Lineage", page.table(("stage", "made from", "code", "made at", "where"), _lineage_rows(nodes))),
    ]
    return page.document(f"{name} · Denoising-VAE", "".join(body))


def _facts(config: Config, nodes: list[Node]) -> list[str]:
    """The line below the title."""
    made = [node.manifest for node in nodes if node.manifest]
    source = config.data.uri or {"digits": "scikit-learn's handwritten digits"}.get(
        config.data.format, "no source given"
    )
    facts = [
        source,
        f"{config.data.image_size} × {config.data.image_size} pixels",
        f"{config.data.classes or 'unknown'} classes",
    ]
    if made:
        facts.append(f"{len(made)} of {len(nodes)} stages in {duration(sum(manifest.seconds for manifest in made))}")
        facts.append(f"last made {max(manifest.created for manifest in made)[:16].replace('T', ' ')} UTC")
    return facts


def _headline(metrics: dict[str, float]) -> list[tuple[str, str, str]]:
    """(words, number, how to read it) for the numbers that matter, of those that were measured."""
    cards = []
    for wanted, words in _HEADLINE:
        for name in metrics:
            if name == wanted or name.startswith(f"{wanted}/"):
                network = name.removeprefix(wanted).strip("/")
                reading = f"{meaning(name).better} is better"
                cards.append((words, value_text(name, metrics[name]), f"{network}, {reading}" if network else reading))
    return cards


def _stage_rows(nodes: list[Node]) -> list[list[str]]:
    longest = max([node.manifest.seconds for node in nodes if node.manifest] or [1.0])
    rows = []
    for node in nodes:
        manifest = node.manifest
        rows.append(
            [
                page.text(node.stage.name),
                page.chip(STATUS_WORDS[node.status], node.status),
                page.number(duration(manifest.seconds) if manifest else ""),
                page.bar(manifest.seconds / max(longest, 1e-9) if manifest else 0.0),
                page.number(f"{manifest.rows:,}" if manifest else ""),
                page.code((node.fingerprint or "")[:SHORT]),
            ]
        )
    return rows


def _figures(nodes: list[Node], storage: Storage) -> list[tuple[str, str]]:
    """(data URI, caption) of every PNG in the artifacts; those with a caption first, in its order."""
    found = {
        f"{node.stage.name}/{name}": node.manifest
        for node in nodes
        if node.manifest
        for name in node.manifest.files
        if name.endswith(".png")
    }
    order = [name for name in _CAPTIONS if name in found] + [name for name in found if name not in _CAPTIONS]
    return [(_data_uri(storage, found[name], name), _CAPTIONS.get(name, name)) for name in order]


def _data_uri(storage: Storage, manifest: Manifest, name: str) -> str:
    path = f"{artifact_path(manifest.stage, manifest.fingerprint)}/{name.partition('/')[2]}"
    try:
        return f"data:image/png;base64,{base64.b64encode(storage.read(path)).decode()}"
    except FileNotFoundError:
        raise ContractError(
            f"{storage.uri(path)} is gone",
            f"Run `python -m pipeline artifact repair {manifest.stage}/{manifest.fingerprint[:SHORT]}`.",
        ) from None


def _metric_tables(metrics: dict[str, float]) -> str:
    """One table for what is measured at every level, one for the rest."""
    levelled = {level_of(name)[0] for name in metrics if level_of(name)[1]}
    by_level, rest = list[list[str]](), list[list[str]]()
    for name, value in metrics.items():
        known = meaning(name)
        said = [page.text(known.better), page.quiet(known.text)]
        if name in levelled:
            names = [name, *(f"{name}_level{level}" for level in (1, 2, 3))]
            cells = [page.number(value_text(key, metrics[key]) if key in metrics else "") for key in names]
            by_level.append([page.code(name), *cells, *said])
        elif level_of(name)[0] not in levelled:
            rest.append([page.code(name), page.number(value_text(name, value)), *said])
    levels = page.table(("metric", "level 0", "level 1", "level 2", "level 3", "better", "meaning"), by_level)
    return (levels if by_level else "") + page.table(("metric", "value", "better", "meaning"), rest)


def _notes(nodes: list[Node]) -> list[str]:
    """What the stages say about how their numbers came about."""
    notes = []
    for node in nodes:
        details = node.manifest.details if node.manifest else {}
        if "reference" in details:
            notes.append(f"{node.stage.name}: the reference of the Frechet distance is {details['reference']}.")
        if "classifier" in details:
            notes.append(f"{node.stage.name}: {details['classifier']}.")
    return notes


def _configs(nodes: list[Node]) -> list[tuple[str, str]]:
    """(stage, table of the fields that its result depends on)."""
    parts = []
    for node in nodes:
        if node.manifest:
            rows = [[page.code(name), page.code(str(value))] for name, value in sorted(node.manifest.config.items())]
            parts.append((node.stage.name, page.table(("field", "value"), rows)))
    return parts


def _lineage_rows(nodes: list[Node]) -> list[list[str]]:
    rows = []
    for node in nodes:
        if manifest := node.manifest:
            inputs = [f"{stage}/{fingerprint[:SHORT]}" for stage, fingerprint in manifest.inputs.items()]
            rows.append(
                [
                    page.text(f"{node.stage.name} ") + page.code(manifest.fingerprint[:SHORT]),
                    page.lines(inputs) if inputs else page.quiet("the source"),
                    page.code((manifest.git_sha or "")[:SHORT]),
                    page.text(manifest.created[:16].replace("T", " ")),
                    page.code(node.uri or ""),
                ]
            )
    return rows
