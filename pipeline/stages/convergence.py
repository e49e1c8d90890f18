"""convergence: how far samples are from real images at each milestone of a generator's training (Figures 3 and 4).

A milestone's samples have the same labels and noise as those of every other one. Each distance comes with those of
bootstrap resamples of its images, from which `pipeline.evaluation.curves` takes intervals.
"""

import json
from dataclasses import dataclass
from typing import Any

import numpy as np

from models.intervals import bootstrap_interval
from pipeline.artifacts import ArtifactWriter, FileRecord, Outcome
from pipeline.evaluation import Measured
from pipeline.inference import device_seconds
from pipeline.reports import curve_file
from pipeline.storage import open_storage
from pipeline.workflow import StageContext, Work

_SHOWN = 10  # images of a milestone, in the figure


@dataclass(frozen=True)
class Drawn:
    """One task: images `start` to `stop` - 1 of a milestone."""

    work: Work
    milestone: int
    start: int
    stop: int


@dataclass(frozen=True)
class Compared:
    """One task: a milestone's features against the reference."""

    work: Work
    network: int  # its place among the config's
    milestone: int
    drawn: tuple[str, ...]


def run(context: StageContext) -> Outcome:
    config = context.config
    milestones = config.sit.milestones  # which `check_start` has asked for
    work = context.common("features")
    count, batch = config.convergence.images, config.sample.batch_size
    parts = [
        Drawn(work, step, start, min(count, start + batch)) for step in milestones for start in range(0, count, batch)
    ]
    drawn = context.map(generate, parts, [part.stop - part.start for part in parts], unit="images", gpu=True)
    of_step: dict[int, list[str]] = {step: [] for step in milestones}
    for part, record in zip(parts, drawn, strict=True):
        of_step[part.milestone].append(record["path"])
    networks = range(len(config.network_names))
    compared = [Compared(work, network, step, tuple(of_step[step])) for network in networks for step in milestones]
    records = context.map(compare, compared, [1] * len(compared), unit="distances", gpu=True)
    notes = list(dict.fromkeys(note for record in records if (note := record.get("note"))))
    for note in notes:
        context.say(note)
    points = [{name: record[name] for name in ("step", "distance", "resampled")} for record in records]
    context.figure(draw_milestones, Shown(work, {step: own[0] for step, own in of_step.items()}), "milestones.png")
    curves = [points[place * len(milestones) : (place + 1) * len(milestones)] for place in networks]
    return _outcome(context, dict(zip(config.network_names, curves, strict=True)), notes)


def _outcome(context: StageContext, curves: dict[str, list[dict[str, Any]]], notes: list[str]) -> Outcome:
    """The curve of each network as JSON, and its points as metrics by step."""
    sit = context.inputs["train-sit"]
    about = {
        "reference": context.inputs["reference"].details["reference"],
        "images": context.config.convergence.images,
        "sampling": {name: value for name, value in context.config.sampling().items() if name != "seed"},
        "data": context.config.data.revision,
        "batch_size": context.config.sit.batch_size,
        "training_images": context.inputs["encode"].rows,
        "device_seconds_per_step": device_seconds(sit) / context.config.sit.steps,
    }
    measured = Measured()
    for network, points in curves.items():
        distance, last = f"frechet_distance/{network}", points[-1]
        curve = {"distance": distance, **about, "points": points}
        context.writer.add_bytes(json.dumps(curve).encode(), curve_file(network))
        for point in points:
            context.outbox.metrics({f"convergence/{distance}": point["distance"]}, step=point["step"])
        interval = bootstrap_interval(last["distance"], last["resampled"])
        measured.add(f"convergence/{distance}", last["distance"], interval)
    rows = len(context.config.sit.milestones) * context.config.convergence.images
    return context.writer.outcome(
        rows,
        measured.metrics,
        intervals=measured.intervals,
        notes=notes,
        reference=about["reference"],
        networks=list(curves),
        curves={
            network: [(point["step"], point["distance"]) for point in points] for network, points in curves.items()
        },
    )


def generate(spec: Drawn) -> dict[str, str]:
    """Draw images from a milestone; write their features, and of the first images these, to the work folder."""
    import torch

    from models.generator import Sampling
    from pipeline.evaluation import extract, networks_of, write_features
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
    networks = networks_of(work.config, work.inputs, work.root)
    write_features(storage, path, {**extract(images, networks, work.config.evaluate), **shown})
    return {"path": path}


def compare(spec: Compared) -> dict[str, Any]:
    """A milestone's distance in one network's features, those of its resamples, and a line on too few images."""
    from pipeline.evaluation import all_features, read_statistics, resampled_frechet, too_few

    storage, network = open_storage(spec.work.root), spec.work.config.network_names[spec.network]
    reference = read_statistics(storage, spec.work.inputs["reference"], network)
    features_NF = all_features(storage, spec.drawn, f"{network}/pool")
    distance, resampled = resampled_frechet(features_NF, reference.moments["pool"])
    note = too_few(len(features_NF), features_NF.shape[1], network)
    return {"step": spec.milestone, "distance": distance, "resampled": resampled, "note": note}


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
