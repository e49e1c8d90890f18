"""evaluate-samples: how close the generator's images are to the real ones.

Frechet distance, precision and recall against training images, under the name of the network whose features they take;
with Inception also its score and sFID; and, where asked for, whether a classifier that knows only real images reads a
sample as the class that was asked for.
"""

import io
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.artifacts import Manifest, Outcome, read_checked
from pipeline.config import Config
from pipeline.context import StageContext
from pipeline.data.decode import Pixels
from pipeline.data.listing import Split
from pipeline.data.prepared import Rows, choose_rows, read_images
from pipeline.data.store import Labels
from pipeline.errors import PipelineError
from pipeline.storage import Storage, open_storage

_NEIGHBOURS = 3  # k of precision and recall
_MANIFOLD = 10_000  # images a side of precision and recall, as in the ADM evaluator
_TASK_SAMPLES = 500
_CLASSIFIER_IMAGES = 10_000  # an SVC's time grows with their square
_CLASSIFIER_SIDE = 16
_TRUSTED = 0.97  # below this accuracy on real images the classifier's word about samples means little


@dataclass(frozen=True)
class Work:
    """What every task needs to know."""

    root: str
    prepare: Manifest
    sample: Manifest
    folder: str  # for features, on the storage
    config: Config


@dataclass(frozen=True)
class Shards:
    """Some files of the sample artifact: a unit of work."""

    paths: tuple[str, ...]


@dataclass(frozen=True)
class Spec:
    """One task: features of these images, real or generated."""

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
    if min(real, fake) <= _NEIGHBOURS:
        raise PipelineError(
            f"evaluate-samples needs {_NEIGHBOURS + 1} real and generated images; there are {real} and {fake}",
            "Raise sample.count, or evaluate.reference_images.",
        )
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
        (read,) = context.map(classify, [work], [1], unit="classifier")
        metrics = {**metrics, **read["metrics"]}
        details["classifier"] = read["said"]
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
    """Generated images uint8 (N, 3, H, W), and the labels that they were asked for, int64 (N,)."""
    images, labels = [], []
    for path in shards.paths:
        with np.load(io.BytesIO(read_checked(storage, sample, path))) as arrays:
            images.append(arrays["images"])
            labels.append(arrays["labels"])
    return np.concatenate(images), np.concatenate(labels)


def featurize(spec: Spec) -> dict[str, str]:
    """Features of one task's images, into the work folder."""
    import torch

    from pipeline.features import extract, write_features

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
    """The files with features of both sides."""

    work: Work
    real: tuple[str, ...]
    fake: tuple[str, ...]


def compare(spec: Comparison) -> dict[str, float]:
    """The metrics that are taken from features."""
    import torch

    from models.metrics import frechet_distance, inception_score, precision_recall
    from pipeline.features import kinds_of, moments, read_features

    storage, network = open_storage(spec.work.root), spec.work.config.evaluate.network
    kinds = kinds_of(storage, spec.fake[0])
    names = {"pool": f"samples/frechet_distance/{network}", "spatial": "samples/sfid"}
    metrics = {
        name: frechet_distance(*moments(storage, spec.real, kind), *moments(storage, spec.fake, kind))
        for kind, name in names.items()
        if kind in kinds
    }
    sides = [_thinned(torch.cat(list(read_features(storage, paths, "pool")))) for paths in (spec.real, spec.fake)]
    precision, recall = precision_recall(sides[0], sides[1], k=_NEIGHBOURS)
    metrics |= {f"samples/precision/{network}": precision, f"samples/recall/{network}": recall}
    if "logits" in kinds:
        metrics["samples/inception_score"] = inception_score(
            torch.cat(list(read_features(storage, spec.fake, "logits")))
        )
    return metrics


def _thinned(features_NF: Any) -> Any:
    """At most `_MANIFOLD` rows, spread evenly, on the task's device."""
    import torch

    from pipeline.features import settle_device

    count = min(_MANIFOLD, len(features_NF))
    return features_NF[torch.arange(count) * len(features_NF) // count].to(settle_device())


def classify(work: Work) -> dict[str, Any]:
    """Train an SVC on real training images alone; how it reads held-out real ones, and the samples."""
    from sklearn.svm import SVC

    storage = open_storage(work.root)
    train, held_out = (_real(storage, work, split) for split in ("train", "validation"))
    fake = read_samples(storage, work.sample, Shards(tuple(shard["path"] for shard in work.sample.details["shards"])))
    classifier = SVC(C=10.0).fit(*train)
    accuracy = float(classifier.score(*held_out))
    said = (
        f"SVC (RBF, C 10) on grey values of {_CLASSIFIER_SIDE} x {_CLASSIFIER_SIDE}, trained on {len(train[1])} real "
        f"images of the training split; reads {accuracy:.1%} of {len(held_out[1])} held-out real ones right"
    )
    if accuracy < _TRUSTED:
        said += f": less than {_TRUSTED:.0%}, so that class_accuracy says little"
    read = float(classifier.score(classifier_inputs(fake[0]), fake[1]))
    return {"metrics": {"samples/class_accuracy": read, "samples/classifier_accuracy": accuracy}, "said": said}


def _real(storage: Storage, work: Work, split: Split) -> tuple[np.ndarray, Labels]:
    parts = [
        read_images(storage, work.prepare, unit, work.config.data)
        for unit in choose_rows(work.prepare, split, _CLASSIFIER_IMAGES)
    ]
    inputs = np.concatenate([classifier_inputs(images) for images, _ in parts])
    return inputs, np.concatenate([labels for _, labels in parts])


def classifier_inputs(images_NCHW: Pixels) -> np.ndarray:
    """uint8 images to rows of grey values in [0, 1], of at most 16 x 16 areas each: (N, F) fp32."""
    side = images_NCHW.shape[-1]
    edges = np.arange(min(side, _CLASSIFIER_SIDE)) * side // min(side, _CLASSIFIER_SIDE)
    lengths = np.diff(np.append(edges, side)).astype(np.float32)
    grey_NHW = images_NCHW.mean(axis=1, dtype=np.float32) / 255
    summed = np.add.reduceat(np.add.reduceat(grey_NHW, edges, axis=1), edges, axis=2)
    means: np.ndarray = summed / (lengths[:, None] * lengths[None, :])
    return means.reshape(len(means), -1)
