"""`report`: what came out of a run, from the manifests. As JSON, as a table, as one HTML page.

Light: no torch, ray, mlflow or matplotlib; pictures are the artifacts' own. The page's markup is `report_page.py`.
"""

import base64
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from pipeline.artifacts import SHORT, Manifest
from pipeline.config import SENT, Config
from pipeline.console import duration
from pipeline.errors import ContractError
from pipeline.metrics import find_metric, headlines, level_of, value_text
from pipeline.reports import page
from pipeline.storage import Storage
from pipeline.workflow import Node

STATUS_WORDS = {"cached": "made", "resumable": "in part", "new": "not made", "unresolved": "no source"}


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


def _meaning(key: str) -> str:
    metric = find_metric(key)
    return metric.meaning if metric else ""


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
        metrics.add_row(name, value_text(name, value), *([_meaning(name)] if explained else []))
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
    for words, key, metric in headlines(metrics):
        network = key.removeprefix(metric.key).strip("/")
        reading = f"{metric.better} is better"
        cards.append((words, value_text(key, metrics[key]), f"{network}, {reading}" if network else reading))
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
    path = f"{manifest.name}/{name.partition('/')[2]}"
    try:
        return f"data:image/png;base64,{base64.b64encode(storage.read(path)).decode()}"
    except FileNotFoundError:
        raise ContractError(
            f"{storage.uri(path)} is gone",
            f"Run `python -m pipeline artifact repair {manifest.name}`.",
        ) from None


def _metric_tables(metrics: dict[str, float]) -> str:
    """One table for what is measured at every level, one for the rest."""
    levelled = {level_of(name)[0] for name in metrics if level_of(name)[1]}
    by_level, rest = list[list[str]](), list[list[str]]()
    for name, value in metrics.items():
        metric = find_metric(name)
        said = [page.text(metric.better if metric else ""), page.quiet(_meaning(name))]
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
