"""`report`: the results of a run, from its manifests, as JSON, as a table or as one HTML page.

It imports no torch, ray, mlflow or matplotlib; the figures come from the artifacts. The markup is in `page.py`.
"""

import base64
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from models.intervals import Interval
from pipeline.artifacts import SHORT, Manifest
from pipeline.config import Config, preset_label
from pipeline.console import duration
from pipeline.errors import ContractError
from pipeline.metrics import find_metric, headlines, interval_text, level_of, value_text
from pipeline.reports import page
from pipeline.reports.against import Against, section
from pipeline.storage import Storage
from pipeline.workflow import Node

STATUS_WORDS = {"cached": "done", "resumable": "incomplete", "new": "not run", "unresolved": "no source"}


_CAPTIONS = {  # in the order of the page
    "sample/grid.png": "Images generated from a class label and the noise of a seed.",
    "evaluate-tokenizer/reconstructions.png": "Little detail should be lost up to the generator's level.",
    "analyze/figure2.png": "Denoised latents keep the shapes of the image and lose high-frequency noise.",
    "analyze/figure1a.png": "Ideally each latent has one colour; any structure is added by the encoder.",
    "analyze/figure1b.png": "The more latent channels, the noisier: less of the variance is in three components.",
    "analyze/figure1c.png": "How much of the reconstruction depends on the latent's high frequencies.",
    "analyze/spectrum.png": "S_l attenuates high frequencies; level 0 shows those that remain after regularization.",
    "train-tokenizer/losses.png": "The terms of the tokenizer's objective, and the discriminator's loss.",
    "train-sit/losses.png": "The generator's loss and its terms, also by quarters of the time t.",
}


def collect(config: Config, nodes: list[Node], storage: Storage) -> dict[str, Any]:
    """Each stage's status and duration in seconds (0 if not done), the metrics of all stages with their 95% intervals,
    notes on how they were measured, the classes' names.
    """
    stages = {
        node.stage.name: {"status": node.status, "seconds": node.manifest.seconds if node.manifest else 0.0}
        for node in nodes
    }
    made = [node.manifest for node in nodes if node.manifest]
    metrics = {name: value for manifest in made for name, value in manifest.metrics.items()}
    source = config.data.uri or config.data.format
    return {
        "source": source,
        "root": storage.root,
        "class_names": _class_names(nodes),
        "stages": stages,
        "metrics": metrics,
        "intervals": {name: interval for manifest in made for name, interval in manifest.intervals.items()},
        "notes": _notes(nodes),
    }


def _class_names(nodes: list[Node]) -> list[str]:
    """The names of the classes by label; empty if images are not prepared, or have none."""
    manifest = next((node.manifest for node in nodes if node.stage.name == "prepare"), None)
    return list(manifest.details.get("class_names") or []) if manifest is not None else []


def _meaning(key: str) -> str:
    metric = find_metric(key)
    return metric.meaning if metric else ""


_NAMED, _LISTED = 10, 50  # classes that are named on the page, and on the terminal
_WIDE = 130  # terminal columns from which a metric's meaning is shown


def render_table(console: Console, report: dict[str, Any]) -> None:
    """Print stages and metrics to the terminal."""
    stages = Table(box=None, pad_edge=False, header_style="bold")
    stages.add_column("stage")
    stages.add_column("status")
    stages.add_column("time", justify="right")
    for name, stage in report["stages"].items():
        done = stage["status"] == "cached"
        word = STATUS_WORDS[stage["status"]]
        stages.add_row(name, f"[green]{word}[/]" if done else word, duration(stage["seconds"]) if done else "")
    total = sum(stage["seconds"] for stage in report["stages"].values())
    stages.add_row("[bold]total[/]", "", f"[bold]{duration(total)}[/]")
    console.print(stages)
    metrics = Table(box=None, pad_edge=False, header_style="bold")
    metrics.add_column("metric", no_wrap=True)
    metrics.add_column("value", justify="right", no_wrap=True)
    explained = console.width >= _WIDE  # on a narrow terminal the meanings would wrap into single words
    if explained:
        metrics.add_column("meaning", style="dim")
    for name, value in report["metrics"].items():
        interval = interval_text(report["intervals"].get(name), name)
        metrics.add_row(name, value_text(name, value) + interval, *([_meaning(name)] if explained else []))
    console.print()
    console.print(metrics)
    for note in report["notes"]:
        console.print(escape(note), highlight=False, soft_wrap=True)
    if names := report["class_names"]:
        console.print()
        more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
        listed = ", ".join(f"{label} {name}" for label, name in enumerate(names[:_LISTED]))
        console.print(escape(f"classes: {listed}{more}"), highlight=False)


def write_page(config: Config, nodes: list[Node], storage: Storage, preset: str, against: Against | None = None) -> str:
    """Write the page at the root; returns its URI. Errors as `render_html`, StorageError if it cannot be written."""
    name = preset_label(preset)
    path = f"reports/{name}.html"
    storage.write(path, render_html(config, nodes, storage, name, against).encode())
    return storage.uri(path)


def render_html(config: Config, nodes: list[Node], storage: Storage, name: str, against: Against | None = None) -> str:
    """The page, including style and figures. ContractError if a figure of an artifact is missing."""
    report = collect(config, nodes, storage)
    body = [
        page.header(name, _facts(config, nodes)),
        page.cards(_headline(report["metrics"], report["intervals"])),
        page.section("Stages", page.table(("stage", "status", "time", "", "rows", "fingerprint"), _stage_rows(nodes))),
        section(against, report["intervals"]) if against else "",
        page.section("Figures", page.figures(_figures(nodes, storage))),
        page.section("Metrics", _metric_tables(report["metrics"], report["intervals"]), report["notes"]),
        page.section("Config of each stage", "".join(page.folded(*part) for part in _configs(nodes))),
        page.section("Lineage", page.table(("stage", "inputs", "code", "created", "location"), _lineage_rows(nodes))),
    ]
    return page.document(f"{name} · Denoising-VAE", "".join(body))


def _facts(config: Config, nodes: list[Node]) -> list[str]:
    """The line below the title."""
    manifests = [node.manifest for node in nodes if node.manifest]
    source = config.data.uri or {"digits": "scikit-learn's handwritten digits"}.get(config.data.format, "no source")
    facts = [
        source,
        f"{config.data.image_size} × {config.data.image_size} pixels",
        _classes(config, _class_names(nodes)),
    ]
    if manifests:
        facts.append(
            f"{len(manifests)} of {len(nodes)} stages in {duration(sum(manifest.seconds for manifest in manifests))}"
        )
        facts.append(f"last created {max(manifest.created for manifest in manifests)[:16].replace('T', ' ')} UTC")
    return facts


def _classes(config: Config, names: list[str]) -> str:
    """The number of classes, with their names if they are few."""
    count = f"{config.data.classes or 'unknown'} classes"
    shown = ", ".join(names[:_NAMED])
    return f"{count}: {shown}{', …' if len(names) > _NAMED else ''}" if names else count


def _headline(metrics: dict[str, float], intervals: dict[str, Interval]) -> list[tuple[str, str, str]]:
    """(title, value, explanation) of the headline metrics that were measured."""
    cards = []
    for title, key, metric in headlines(metrics):
        network = key.removeprefix(metric.key).strip("/")
        note = f"{metric.better} is better{interval_text(intervals.get(key), key)}"
        cards.append((title, value_text(key, metrics[key]), f"{network}, {note}" if network else note))
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
    """(data URI, caption) of every PNG in the artifacts that is not in a folder: there, images are data.

    Those with a caption come first, in the order of `_CAPTIONS`.
    """
    found = {
        f"{node.stage.name}/{name}": node.manifest
        for node in nodes
        if node.manifest
        for name in node.manifest.files
        if name.endswith(".png") and "/" not in name
    }
    order = [name for name in _CAPTIONS if name in found] + [name for name in found if name not in _CAPTIONS]
    return [(_data_uri(storage, found[name], name), _CAPTIONS.get(name, name)) for name in order]


def _data_uri(storage: Storage, manifest: Manifest, name: str) -> str:
    path = f"{manifest.name}/{name.partition('/')[2]}"
    try:
        return f"data:image/png;base64,{base64.b64encode(storage.read(path)).decode()}"
    except FileNotFoundError:
        raise ContractError(
            f"{storage.uri(path)} is missing",
            f"Run `python -m pipeline artifact repair {manifest.name} --root {storage.root}`.",
        ) from None


def _metric_tables(metrics: dict[str, float], intervals: dict[str, Interval]) -> str:
    """One table of metrics that are measured at every level, one of all others."""
    levelled = {level_of(name)[0] for name in metrics if level_of(name)[1]}
    by_level, rest = list[list[str]](), list[list[str]]()
    for name in metrics:
        metric = find_metric(name)
        explanation = [page.text(metric.better if metric else ""), page.quiet(_meaning(name))]
        if name in levelled:
            names = [name, *(f"{name}_level{level}" for level in (1, 2, 3))]
            cells = [_with_interval(key, metrics, intervals) if key in metrics else page.number("") for key in names]
            by_level.append([page.code(name), *cells, *explanation])
        elif level_of(name)[0] not in levelled:
            rest.append([page.code(name), _with_interval(name, metrics, intervals), *explanation])
    levels = page.table(("metric", "level 0", "level 1", "level 2", "level 3", "better", "meaning"), by_level)
    return (levels if by_level else "") + page.table(("metric", "value", "better", "meaning"), rest)


def _with_interval(key: str, metrics: dict[str, float], intervals: dict[str, Interval]) -> str:
    interval = interval_text(intervals.get(key), key).strip()
    return page.number(value_text(key, metrics[key])) + (page.number(interval) if interval else "")


def _notes(nodes: list[Node]) -> list[str]:
    """Notes on how metrics were measured, from the stages' manifests."""
    return [f"{node.stage.name}: {note}" for node in nodes if node.manifest for note in notes_of(node.manifest.details)]


def notes_of(details: Mapping[str, Any]) -> list[str]:
    """What the details of a manifest tell a reader of its metrics, in sentences."""
    notes = []
    if "source" in details:
        notes.append(f"imported from {details['source']['uri']}, sha256 {details['source']['sha256']}.")
    if "reference" in details:
        notes.append(f"the reference of the distances is {details['reference']}.")
    if "classifier" in details:
        notes.append(f"{details['classifier']}.")
    return notes + [f"{note}." for note in details.get("notes", [])]


def _configs(nodes: list[Node]) -> list[tuple[str, str]]:
    """(stage, table of the fields that it was made with)."""
    parts = []
    for node in nodes:
        if node.manifest:
            fields = node.manifest.config | node.manifest.uncounted
            rows = [[page.code(name), page.code(str(value))] for name, value in sorted(fields.items())]
            parts.append((node.stage.name, page.table(("field", "value"), rows)))
    return parts


def _lineage_rows(nodes: list[Node]) -> list[list[str]]:
    rows = []
    for node in nodes:
        if manifest := node.manifest:
            origin = manifest.details["source"]["uri"] if "source" in manifest.details else "the source"
            inputs = [f"{stage}/{fingerprint[:SHORT]}" for stage, fingerprint in manifest.inputs.items()]
            rows.append(
                [
                    page.text(f"{node.stage.name} ") + page.code(manifest.fingerprint[:SHORT]),
                    page.lines(inputs) if inputs else page.quiet(origin),
                    page.code((manifest.git_sha or "")[:SHORT]),
                    page.text(manifest.created[:16].replace("T", " ")),
                    page.code(node.uri or ""),
                ]
            )
    return rows
