"""The figures of a suite's report, from the artifacts of its first seed, in the forms of `pipeline.reports`.

An artifact that is not at the root, as where only results are, leaves its picture out.
"""

import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline import reports
from pipeline.artifacts import Manifest, read_checked
from pipeline.storage import open_storage
from pipeline.suites.planning import nodes_of
from pipeline.suites.results import Measured
from pipeline.suites.runs import Run
from pipeline.suites.schema import Drawing, Suite
from pipeline.workflow import Node, artifacts_of

Classes = tuple[int, ...]
_ROWS, _COLUMNS = 10, 8  # of samples, where a suite names no classes


@dataclass(frozen=True)
class Picture:
    """A figure, by its name without an ending, in one form or several."""

    name: str
    caption: str
    files: dict[str, bytes]
    """Ending -> content; the page shows the PNG."""


@dataclass(frozen=True)
class Drawn:
    """A run of the first seed with its artifacts."""

    run: Run
    made: dict[str, Manifest]

    @property
    def title(self) -> str:
        """Of its row, with the group, since rows of two groups may have one title."""
        row = self.run.row
        return f"{row.title or row.name} ({row.group})" if row.group else row.title or row.name


def pictures_of(suite: Suite, scale: str, found: Sequence[Measured]) -> list[Picture]:
    """The figures that the suite asks for, of the runs that are done and whose artifacts are at the root."""
    first = [
        Drawn(one.run, artifacts_of(_nodes(one.run))) for one in found if one.run.seed == 0 and one.record is not None
    ]
    classes = suite.scales[scale].classes if scale else ()
    return [picture for drawing in suite.pictures for picture in _DRAWN[drawing](classes, first)]


def _nodes(run: Run) -> list[Node]:
    return [*nodes_of(run).values()]


def _having(first: Sequence[Drawn], stage: str) -> list[Drawn]:
    """The runs with an artifact of this stage; of several rows that share one, the first."""
    kept: dict[str, Drawn] = {}
    for one in first:
        if stage in one.made:
            kept.setdefault(one.made[stage].fingerprint, one)
    return list(kept.values())


def _panels(_: Classes, first: Sequence[Drawn]) -> list[Picture]:
    """Figures 1 and 2: the tokenizers' analyses side by side."""
    having = _having(first, "analyze")
    if not having:
        return []
    found = [reports.Found(one.title, open_storage(one.run.config.root), one.made["analyze"]) for one in having]
    analyses = reports.read_analyses(found)
    captions = {
        "figure1a": "Figure 1a: latents of images of one colour.",
        "figure1b": "Figure 1b: principal components of latents.",
        "figure1c": "Figure 1c: reconstruction without the latents' high frequencies.",
        "figure2": "Figure 2: latents at levels 0 to 3.",
        "spectrum": "Radial spectra of the latents.",
    }
    return _grouped(reports.draw_panels(analyses, ("png", "svg")), captions)


def _convergence(_: Classes, first: Sequence[Drawn]) -> list[Picture]:
    """Figure 3: distances over steps."""
    trainings = [
        reports.read_training(open_storage(one.run.config.root), one.made["convergence"], one.title)
        for one in _having(first, "convergence")
    ]
    if not trainings:
        return []
    reports.check_comparable(trainings)
    goal, rows = reports.convergence_rows(trainings, None)
    faster = [f"{row['name']}: {reports.faster(row['times_as_fast'])} times as fast" for row in rows[1:]]
    beside = f" Beside {trainings[0].name}, {'; '.join(faster)}." if faster else ""
    caption = f"Figure 3: distance over training steps, seed 0. To a distance of {goal:.4g}.{beside}"
    return _grouped(reports.draw_curves(trainings, goal), {"figure3": caption})


def _losses(_: Classes, first: Sequence[Drawn]) -> list[Picture]:
    """Figure 4: the generators' losses."""
    curves = [_loss_curve(one) for one in _having(first, "train-sit") if "history.jsonl" in one.made["train-sit"].files]
    if not curves:
        return []
    return _grouped(reports.draw_losses(curves), {"figure4": "Figure 4: diffusion loss over training steps, seed 0."})


def _loss_curve(one: Drawn) -> "reports.LossCurve":  # in quotes: its module, which draws, is loaded on use
    text = read_checked(open_storage(one.run.config.root), one.made["train-sit"], "history.jsonl").decode()
    lines = [line for line in map(json.loads, text.splitlines()) if "diffusion" in line]
    tokenizer = one.run.identities["train-tokenizer"]
    return reports.LossCurve(
        one.title, tokenizer, [line["step"] for line in lines], [line["diffusion"] for line in lines]
    )


def _samples(chosen: Classes, first: Sequence[Drawn]) -> list[Picture]:
    """Figure 5: samples of chosen classes, of the last row that has some."""
    having = _having(first, "sample")
    if not having:
        return []
    import numpy as np

    one = having[-1]
    storage, sample = open_storage(one.run.config.root), one.made["sample"]
    classes = list(chosen) or list(range(min(one.run.config.data.class_count, _ROWS)))
    images: dict[int, list[np.ndarray]] = {label: [] for label in classes}
    for shard in sample.details["shards"]:
        with np.load(io.BytesIO(read_checked(storage, sample, shard["path"]))) as part:
            for image, label in zip(part["images"], part["labels"], strict=True):
                if int(label) in images and len(images[int(label)]) < _COLUMNS:
                    images[int(label)].append(image)
    shown = [(image, label) for label, own in images.items() for image in own]
    if not shown:
        return []
    names = list(one.made["prepare"].details.get("class_names") or []) if "prepare" in one.made else []
    guidance = f"Guidance {one.run.config.sample.guidance:g}."
    files = reports.sample_grid_in(
        ("png", "svg"),
        np.stack([image for image, _ in shown]),
        np.array([label for _, label in shown]),
        names or None,
        note=guidance,
    )
    return [
        Picture(
            "figure5",
            f"Figure 5: samples of {one.title}. {guidance}",
            {str(form): data for form, data in files.items()},
        )
    ]


def _grids(_: Classes, first: Sequence[Drawn]) -> list[Picture]:
    """Every row's own grid of samples."""
    return [
        _of_artifact(one, "sample", "grid.png", "generated images, a row a class") for one in _having(first, "sample")
    ]


def _reconstructions(_: Classes, first: Sequence[Drawn]) -> list[Picture]:
    """Every tokenizer's reconstructions."""
    having = _having(first, "evaluate-tokenizer")
    words = "validation images and their reconstructions at levels 0 to 3"
    return [_of_artifact(one, "evaluate-tokenizer", "reconstructions.png", words) for one in having]


def _of_artifact(one: Drawn, stage: str, file: str, words: str) -> Picture:
    """A picture that a stage has drawn."""
    name = f"{Path(file).stem}-{one.run.row.name}".replace("/", "-").replace(" ", "-")
    png = read_checked(open_storage(one.run.config.root), one.made[stage], file)
    return Picture(name, f"{one.title}, seed 0: {words}.", {"png": png})


def _grouped(files: dict[str, bytes], captions: dict[str, str]) -> list[Picture]:
    """NAME.ENDING -> content as pictures, those with a caption."""
    return [
        Picture(name, caption, {Path(file).suffix[1:]: data for file, data in files.items() if Path(file).stem == name})
        for name, caption in captions.items()
    ]


_DRAWN: dict[Drawing, Callable[[Classes, Sequence[Drawn]], list[Picture]]] = {
    "panels": _panels,
    "convergence": _convergence,
    "losses": _losses,
    "samples": _samples,
    "grids": _grids,
    "reconstructions": _reconstructions,
}
