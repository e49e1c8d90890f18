"""Any set of images against any other, in this process: the numbers of the command `evaluate`.

The same features, distances and intervals as those of the evaluation stages.
Legend: N images, F features.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from models.metrics import FeatureMoments, kid, precision_recall
from pipeline.artifacts import Manifest
from pipeline.config import EvaluateConfig
from pipeline.data import Labels, spaced
from pipeline.errors import ContractError, DataError
from pipeline.evaluation.comparison import NEIGHBOURS, add_frechet, add_inception_score, too_few
from pipeline.evaluation.features import FeatureRows, evaluation_device, extract
from pipeline.evaluation.image_sets import ImageSet
from pipeline.evaluation.measured import MANIFOLD, Measured
from pipeline.evaluation.networks import Network
from pipeline.evaluation.reference import Moments, Statistics

Progress = Callable[[int], None]
"""Told how many images are done."""


class Read(NamedTuple):
    """The features of a set of images, by kind, and the side of its pixels."""

    features: dict[str, Tensor]
    side: int


@dataclass(frozen=True)
class Reference:
    """What images are compared with: all of it, or what a file of ADM's has."""

    name: str
    moments: Mapping[str, Moments]
    features_NF: Tensor | None  # pooled, of at most `MANIFOLD` images
    side: int | None = None  # of its pixels, where that is known

    def with_images(self, images: "Reference") -> "Reference":
        """With these moments, and the features of images for what moments do not give."""
        return Reference(self.name, self.moments, images.features_NF, images.side)


@dataclass(frozen=True)
class Reading:
    """How sets are read."""

    network: Network
    settings: EvaluateConfig  # batch size and precision
    progress: Progress


def read_set(images: ImageSet, reading: Reading, side: int | None) -> Read:
    """All features of a set. `side`: to which pictures are cropped; None: as they are.

    DataError for fewer than two images, or pixels of another size.
    """
    if side is not None and images.side not in (None, side):
        raise DataError(
            f"{images.name} has images of {images.side} x {images.side} pixels, and {side} x {side} are wanted",
            "Compare images of one size: draw or crop them anew.",
        )
    parts, count, found = dict[str, FeatureRows](), 0, side
    for pixels in images.batches(side):
        x_NCHW = torch.from_numpy(np.ascontiguousarray(pixels))
        for kind, values in extract(x_NCHW, [reading.network], reading.settings).items():
            parts.setdefault(kind.rpartition("/")[2], FeatureRows()).add(values)
        count, found = count + len(pixels), pixels.shape[-1]
        reading.progress(count)
    if count < 2 or found is None:
        raise DataError(f"{images.name} has {count} images, and a distance needs two", "Give more of them.")
    return Read({kind: values.all() for kind, values in parts.items()}, found)


def reference_of(images: ImageSet, reading: Reading, side: int | None) -> Reference:
    """The reference of a set of images. Errors as `read_set`."""
    read = read_set(images, reading, side)
    moments = {kind: _moments(read.features[kind]) for kind in reading.network.distances}
    pool_NF = read.features["pool"]
    return Reference(images.name, moments, pool_NF[spaced(len(pool_NF), MANIFOLD)], read.side)


def reference_of_statistics(name: str, statistics: Statistics, side: int) -> Reference:
    """The reference of an artifact of the stage `reference`, of images of `side` pixels."""
    return Reference(name, statistics.moments, statistics.features_NF, side)


def reference_of_moments(name: str, given: Mapping[str, tuple[np.ndarray, np.ndarray]], network: Network) -> Reference:
    """The reference of ADM's means and covariances. ContractError if they are of features of another network."""
    if network.kind != "inception":
        raise ContractError(
            f"{name} has means and covariances of Inception's features, and not of {network.name}'s",
            "Give --network inception, or a reference with images.",
        )
    moments = {kind: Moments(torch.from_numpy(mean), torch.from_numpy(cov)) for kind, (mean, cov) in given.items()}
    return Reference(name, moments, None)


def _moments(features_NF: Tensor) -> Moments:
    total = FeatureMoments(features_NF.shape[1], evaluation_device())
    for part in torch.split(features_NF, 4096):
        total.update(part.to(evaluation_device()))
    return Moments(*total.result())


def compare(read: Read, reference: Reference, network: Network, labels_N: Labels | None = None) -> Measured:
    """Everything that these features and this reference allow. ContractError if their numbers of features differ.

    `labels_N`: of the images; how many of them the network self reads as theirs.
    """
    measured, device = Measured(), evaluation_device()
    features = {kind: values.to(device) for kind, values in read.features.items()}
    names = {"pool": f"frechet_distance/{network.name}", "spatial": "sfid"}
    for kind, moments in reference.moments.items():
        here, there = features[kind].shape[1], len(moments.mean_F)
        if here != there:
            raise ContractError(
                f"{reference.name} has {there:,} features, and {network.name} gives {here:,}: of another network",
                "Give the network that made them by --network.",
            )
        on_device = Moments(moments.mean_F.to(device), moments.covariance_FF.to(device))
        add_frechet(measured, names[kind], features[kind], on_device)
    pool_NF = features["pool"]
    if reference.features_NF is None:
        measured.note(f"{reference.name} has no images: neither KID nor precision and recall")
    elif min(len(pool_NF), len(reference.features_NF)) <= NEIGHBOURS:
        measured.note(f"KID, precision and recall need {NEIGHBOURS + 1} images on both sides")
    else:
        real_NF = reference.features_NF.to(device)
        measured.add_estimate(f"kid/{network.name}", *kid(pool_NF, real_NF))
        precision, recall = precision_recall(real_NF, pool_NF, k=NEIGHBOURS)
        measured.add_share(f"precision/{network.name}", precision, len(pool_NF))
        measured.add_share(f"recall/{network.name}", recall, len(real_NF))
    if network.kind == "inception":
        add_inception_score(measured, "inception_score", features["logits"])
    measured.note(too_few(len(pool_NF), pool_NF.shape[1], network.name))
    if network.classifier is not None:
        measured.note(Manifest.model_validate_json(network.classifier).details["classifier"])
        _add_class_accuracy(measured, features["logits"], network.name, labels_N)
    return measured


def _add_class_accuracy(measured: Measured, logits_NK: Tensor, name: str, labels_N: Labels | None) -> None:
    images, classes = logits_NK.shape
    if labels_N is None:
        measured.note(f"the images have no labels: no class_accuracy/{name}")
    elif labels_N.shape != (images,) or labels_N.min() < 0 or labels_N.max() >= classes:
        measured.note(f"the images' labels are not one of {classes} classes each: no class_accuracy/{name}")
    else:
        right_N = logits_NK.argmax(1).cpu() == torch.from_numpy(labels_N.astype(np.int64))
        measured.add_share(f"class_accuracy/{name}", float(right_N.double().mean()), images)
