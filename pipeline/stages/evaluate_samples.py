"""evaluate-samples: metrics of the generator's images against real ones.

Frechet distance, precision and recall against training images, in the features of the network in their names; with
Inception also Inception Score and sFID; and, if configured, the accuracy of a classifier, trained on real images only,
on the samples' requested classes.
"""

import io
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.artifacts import Manifest, Outcome, read_checked
from pipeline.config import Config
from pipeline.data import Labels, Pixels, Rows, Split, choose_rows, read_images
from pipeline.storage import Storage, open_storage
from pipeline.workflow import StageContext, check_compared

_TASK_SAMPLES = 500


@dataclass(frozen=True)
class Work:
    """The common inputs of all tasks."""

    root: str
    prepare: Manifest
    sample: Manifest
    folder: str  # of the features, at the root
    config: Config


@dataclass(frozen=True)
class Shards:
    """Files of the sample artifact: a unit of work."""

    paths: tuple[str, ...]


@dataclass(frozen=True)
class Spec:
    """One task: the features of these images, real or generated."""

    work: Work
    side: str
    index: int
    images: Rows | Shards


def run(context: StageContext) -> Outcome:
    own, prepare, sample = context.config.evaluate, context.inputs["prepare"], context.inputs["sample"]
    work = Work(context.storage.root, prepare, sample, f"{context.work}/features", context.config)
    reference = choose_rows(prepare, "train", own.reference_images)
    real = sum(len(unit.rows) for unit in reference)
    fake = sum(shard["rows"] for shard in sample.details["shards"])
    check_compared(real, fake)
    specs = [Spec(work, "real", index, unit) for index, unit in enumerate(reference)]
    weights = [len(unit.rows) for unit in reference]
    for index, (shards, rows) in enumerate(_grouped(sample)):
        specs.append(Spec(work, "fake", index, shards))
        weights.append(rows)
    records = context.map(featurize, specs, weights, unit="images", gpu=True)
    paths = {side: tuple(r["path"] for r in records if r["side"] == side) for side in ("real", "fake")}
    (metrics,) = context.map(compare, [Comparison(work, paths["real"], paths["fake"])], [1], unit="distance", gpu=True)
    details: dict[str, Any] = {"reference": f"{real} images of the training split", "samples": fake}
    if own.class_accuracy:
        (record,) = context.map(classify, [work], [1], unit="classifier")
        metrics = {**metrics, **record["metrics"]}
        details["classifier"] = record["words"]
    return context.writer.outcome(fake, metrics, **details)


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


def featurize(spec: Spec) -> dict[str, str]:
    """Write the features of one task's images to the work folder."""
    import torch

    from pipeline.evaluation import extract, write_features

    work, storage = spec.work, open_storage(spec.work.root)
    if isinstance(spec.images, Rows):
        images, _ = read_images(storage, work.prepare, spec.images, work.config.data)
    else:
        images, _ = read_samples(storage, work.sample, spec.images)
    path = f"{work.folder}/{spec.side}-{spec.index:06d}.npz"
    write_features(storage, path, extract(torch.from_numpy(images), work.config.evaluate))
    return {"side": spec.side, "path": path}


@dataclass(frozen=True)
class Comparison:
    """The feature files of real and generated images."""

    work: Work
    real: tuple[str, ...]
    fake: tuple[str, ...]


def compare(spec: Comparison) -> dict[str, float]:
    """The metrics that are computed from features."""
    from pipeline.evaluation import sample_metrics

    return sample_metrics(open_storage(spec.work.root), spec.real, spec.fake, spec.work.config.evaluate)


def classify(work: Work) -> dict[str, Any]:
    """Accuracy of an SVC, trained on real training images, on held-out real images and on the samples."""
    from pipeline.evaluation import CLASSIFIER_IMAGES, classify_samples

    storage = open_storage(work.root)
    train, held_out = (_real(storage, work, split, CLASSIFIER_IMAGES) for split in ("train", "validation"))
    shards = Shards(tuple(shard["path"] for shard in work.sample.details["shards"]))
    result = classify_samples(train, held_out, read_samples(storage, work.sample, shards))
    metrics = {"samples/class_accuracy": result.samples, "samples/classifier_accuracy": result.held_out}
    return {"metrics": metrics, "words": result.description}


def _real(storage: Storage, work: Work, split: Split, most: int) -> tuple[Pixels, Labels]:
    units = choose_rows(work.prepare, split, most)
    parts = [read_images(storage, work.prepare, unit, work.config.data) for unit in units]
    return np.concatenate([images for images, _ in parts]), np.concatenate([labels for _, labels in parts])
