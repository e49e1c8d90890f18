"""evaluate-samples: metrics of the generator's images against real ones.

Frechet distance, KID, precision and recall against the reference, in the features of the networks in their names; the
same distances against reconstructions of the reference's images; with Inception also Inception Score and sFID; with the
network `self`, or a classifier of ImageNet, the share of samples that it reads as their requested class; and, if
configured, the accuracy of an SVC.
"""

import io
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.artifacts import Manifest, Outcome, read_checked
from pipeline.data import Labels, Pixels, Split, choose_rows, read_images
from pipeline.evaluation import Measured
from pipeline.storage import Storage, open_storage
from pipeline.workflow import StageContext, Work, check_compared

_TASK_SAMPLES = 500


@dataclass(frozen=True)
class Shards:
    """Files of the sample artifact: a unit of work."""

    paths: tuple[str, ...]


@dataclass(frozen=True)
class Spec:
    """One task: the features of these images."""

    work: Work
    index: int
    images: Shards


def run(context: StageContext) -> Outcome:
    own, inputs = context.config.evaluate, dict(context.inputs)
    work = context.common("features")
    count = sum(shard["rows"] for shard in inputs["sample"].details["shards"])
    check_compared(inputs["reference"].rows, count)
    groups, measured = _grouped(inputs["sample"]), Measured()
    specs = [Spec(work, index, shards) for index, (shards, _) in enumerate(groups)]
    records = context.map(featurize, specs, [rows for _, rows in groups], unit="images", gpu=True)
    if own.classifier is not None:
        right = sum(record["right"] for record in records)
        measured.add_share(f"samples/class_accuracy/{own.classifier}", right / count, count)
    paths = tuple(record["path"] for record in records)
    comparisons = [Comparison(work, paths, place) for place in range(len(own.networks))]
    for record in context.map(compare, comparisons, [1] * len(comparisons), unit="networks", gpu=True):
        measured.update(record)
    for note in measured.notes:
        context.say(note)
    details: dict[str, Any] = {"reference": inputs["reference"].details["reference"], "samples": count}
    if own.class_accuracy:
        (record,) = context.map(classify, [work], [1], unit="classifier")
        measured.update(record)
        details["classifier"] = record["words"]
    return context.writer.outcome(
        count, measured.metrics, intervals=measured.intervals, notes=measured.notes, **details
    )


def _grouped(sample: Manifest) -> list[tuple[Shards, int]]:
    """The sample artifact's files in units of about `_TASK_SAMPLES` images, each with its number of images."""
    groups: list[tuple[Shards, int]] = []
    paths, rows = list[str](), 0
    for shard in sample.details["shards"]:
        if paths and rows + shard["rows"] > _TASK_SAMPLES:
            groups.append((Shards(tuple(paths)), rows))
            paths, rows = [], 0
        paths.append(shard["path"])
        rows += shard["rows"]
    return [*groups, (Shards(tuple(paths)), rows)]


def read_samples(storage: Storage, sample: Manifest, shards: Shards) -> tuple[Pixels, Labels]:
    """Generated images uint8 (N, 3, H, W), and their requested labels int64 (N,)."""
    images, labels = [], []
    for path in shards.paths:
        with np.load(io.BytesIO(read_checked(storage, sample, path))) as arrays:
            images.append(arrays["images"])
            labels.append(arrays["labels"])
    return np.concatenate(images), np.concatenate(labels)


def featurize(spec: Spec) -> dict[str, Any]:
    """Write the features of one task's images, and the labels that were asked for, to the work folder.

    With `evaluate.classifier` it counts the images that are read as their label.
    """
    import torch

    from pipeline.evaluation import classes_read, extract, networks_of, write_features

    work, storage = spec.work, open_storage(spec.work.root)
    images, labels = read_samples(storage, work.inputs["sample"], spec.images)
    networks = networks_of(work.config, work.inputs, work.root)
    path = f"{work.folder}/{spec.index:06d}.npz"
    features = extract(torch.from_numpy(images), networks, work.config.evaluate)
    write_features(storage, path, {**features, "labels": torch.from_numpy(labels)})
    if work.config.evaluate.classifier is None:
        return {"path": path}
    read_N = classes_read(torch.from_numpy(images), work.config.evaluate)
    return {"path": path, "right": int((read_N == torch.from_numpy(labels)).sum())}


@dataclass(frozen=True)
class Comparison:
    """One task: all features by one network."""

    work: Work
    paths: tuple[str, ...]
    network: int  # its place among the config's


def compare(spec: Comparison) -> dict[str, Any]:
    """The metrics that are computed from one network's features."""
    from pipeline.evaluation import networks_of, read_statistics, sample_metrics

    work, storage = spec.work, open_storage(spec.work.root)
    network = networks_of(work.config, work.inputs, work.root)[spec.network]
    reference, floor = (read_statistics(storage, work.inputs[stage], network.name) for stage in ("reference", "floor"))
    return sample_metrics(storage, spec.paths, reference, floor, network).record()


def classify(work: Work) -> dict[str, Any]:
    """Accuracy of an SVC, trained on real training images, on held-out real images and on the samples."""
    from pipeline.evaluation import CLASSIFIER_IMAGES, classify_samples

    storage, sample = open_storage(work.root), work.inputs["sample"]
    train, held_out = (_real(storage, work, split, CLASSIFIER_IMAGES) for split in ("train", "validation"))
    shards = Shards(tuple(shard["path"] for shard in sample.details["shards"]))
    samples, measured = read_samples(storage, sample, shards), Measured()
    result = classify_samples(train, held_out, samples)
    measured.add_share("samples/class_accuracy", result.samples, len(samples[1]))
    measured.add_share("samples/classifier_accuracy", result.held_out, len(held_out[1]))
    return {**measured.record(), "words": result.description}


def _real(storage: Storage, work: Work, split: Split, most: int) -> tuple[Pixels, Labels]:
    prepare = work.inputs["prepare"]
    parts = [read_images(storage, prepare, unit, work.config.data) for unit in choose_rows(prepare, split, most)]
    return np.concatenate([images for images, _ in parts]), np.concatenate([labels for _, labels in parts])
