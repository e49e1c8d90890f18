"""convergence: how far samples are from real images at each milestone of a generator's training (Figures 3 and 4).

A milestone's samples have the same labels and noise as those of every other one. Each distance comes with those of
bootstrap resamples of its images, from which `pipeline.evaluation.curves` takes intervals.
"""

import json
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.artifacts import ArtifactWriter, FileRecord, Manifest, Outcome
from pipeline.config import Config
from pipeline.data import Rows, choose_rows, read_images
from pipeline.inference import device_seconds
from pipeline.storage import open_storage
from pipeline.workflow import StageContext

CURVE = "curve.json"
_RESAMPLES = 100
_SHOWN = 10  # images of a milestone, in the figure


@dataclass(frozen=True)
class Work:
    """The common inputs of all tasks."""

    root: str
    inputs: dict[str, Manifest]
    fingerprint: str
    folder: str  # of the features, at the root
    config: Config


@dataclass(frozen=True)
class Real:
    """One task: some training images."""

    work: Work
    index: int
    images: Rows


@dataclass(frozen=True)
class Drawn:
    """One task: images `start` to `stop` - 1 of a milestone."""

    work: Work
    milestone: int
    start: int
    stop: int


@dataclass(frozen=True)
class Compared:
    """One task: a milestone's features against the real ones."""

    work: Work
    milestone: int
    real: tuple[str, ...]
    drawn: tuple[str, ...]


def run(context: StageContext) -> Outcome:
    config, inputs = context.config, dict(context.inputs)
    milestones = config.sit.milestones  # which `check_start` has asked for
    work = Work(context.storage.root, inputs, context.fingerprint, f"{context.work}/features", config)
    units = choose_rows(inputs["prepare"], "train", config.evaluate.reference_images)
    real = context.map(
        featurize,
        [Real(work, index, unit) for index, unit in enumerate(units)],
        [len(unit.rows) for unit in units],
        unit="images",
        gpu=True,
    )
    count, batch = config.convergence.images, config.sample.batch_size
    parts = [
        Drawn(work, step, start, min(count, start + batch)) for step in milestones for start in range(0, count, batch)
    ]
    drawn = context.map(generate, parts, [part.stop - part.start for part in parts], unit="images", gpu=True)
    of_step: dict[int, list[str]] = {step: [] for step in milestones}
    for part, record in zip(parts, drawn, strict=True):
        of_step[part.milestone].append(record["path"])
    paths = tuple(record["path"] for record in real)
    compared = [Compared(work, step, paths, tuple(of_step[step])) for step in milestones]
    points = context.map(compare, compared, [1] * len(compared), unit="distances", gpu=True)
    context.figure(draw_milestones, Shown(work, {step: own[0] for step, own in of_step.items()}), "milestones.png")
    return _outcome(context, points)


def _outcome(context: StageContext, points: list[dict[str, Any]]) -> Outcome:
    """The curve as JSON, and its points as metrics by step."""
    own, sit = context.config.evaluate, context.inputs["train-sit"]
    curve = {
        "distance": f"frechet_distance/{own.network}",
        "images": context.config.convergence.images,
        "sampling": {name: value for name, value in context.config.sampling().items() if name != "seed"},
        "data": context.config.data.revision,
        "batch_size": context.config.sit.batch_size,
        "training_images": context.inputs["encode"].rows,
        "device_seconds_per_step": device_seconds(sit) / context.config.sit.steps,
        "points": points,
    }
    context.writer.add_bytes(json.dumps(curve).encode(), CURVE)
    key = f"convergence/frechet_distance/{own.network}"
    for point in points:
        context.outbox.metrics({key: point["distance"]}, step=point["step"])
    return context.writer.outcome(len(points) * context.config.convergence.images, {key: points[-1]["distance"]})


def featurize(spec: Real) -> dict[str, str]:
    """Write the features of some training images to the work folder."""
    import torch

    from pipeline.evaluation import extract, write_features

    work, storage = spec.work, open_storage(spec.work.root)
    images, _ = read_images(storage, work.inputs["prepare"], spec.images, work.config.data)
    path = f"{work.folder}/real-{spec.index:06d}.npz"
    write_features(storage, path, extract(torch.from_numpy(images), work.config.evaluate))
    return {"path": path}


def generate(spec: Drawn) -> dict[str, str]:
    """Draw images from a milestone; write their features, and of the first images these, to the work folder."""
    import torch

    from models.generator import Sampling
    from pipeline.evaluation import extract, write_features
    from pipeline.inference import load_generator, task_device

    device, work = task_device(), spec.work
    if device.type == "cpu":
        torch.set_num_threads(1)
    storage = open_storage(work.root)
    indices = np.arange(spec.start, spec.stop)
    labels = torch.from_numpy(indices % work.config.data.class_count)
    generator = load_generator(storage, work.inputs, device, work.config.sample.ema_decay, spec.milestone)
    images = generator.draw(labels, indices.tolist(), Sampling(**work.config.sampling())).cpu()
    path = f"{work.folder}/{spec.milestone:08d}-{spec.start:06d}.npz"
    shown = {"images": images[:_SHOWN]} if spec.start == 0 else {}
    write_features(storage, path, {**extract(images, work.config.evaluate), **shown})
    return {"path": path}


def compare(spec: Compared) -> dict[str, Any]:
    """A milestone's distance, and those of its resamples."""
    from pipeline.evaluation import resampled_frechet

    storage = open_storage(spec.work.root)
    distance, resampled = resampled_frechet(storage, spec.real, spec.drawn, _RESAMPLES, spec.work.config.seed)
    return {"step": spec.milestone, "distance": distance, "resampled": resampled}


@dataclass(frozen=True)
class Shown:
    """The file with the first images of each milestone."""

    work: Work
    paths: dict[int, str]


def draw_milestones(spec: Shown) -> dict[str, Any]:
    """Draw milestones.png: the same images by every milestone, a row each."""
    from pipeline.evaluation import read_features
    from pipeline.reports import milestone_grid

    storage = open_storage(spec.work.root)
    images = {step: next(read_features(storage, [path], "images")).numpy() for step, path in spec.paths.items()}
    writer = ArtifactWriter(storage, "convergence", spec.work.fingerprint)
    writer.add_bytes(milestone_grid(images), "milestones.png")
    record: FileRecord = writer.files["milestones.png"]
    return record.model_dump()
