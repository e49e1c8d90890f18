"""What is measured between two sets of images from their stored features, for the evaluation stages.

One kind of a set's features is in memory at a time, once, in fp32; what is in fp64 is a block of them.
Every metric has a 95% interval over the images that are measured, with what they are compared with held fixed.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from models.intervals import bootstrap_interval
from models.metrics import (
    FrechetReference,
    inception_score,
    kid,
    paired_kid,
    precision_recall,
    resample_counts,
    resampled_inception_score,
)
from pipeline.evaluation.features import all_features
from pipeline.evaluation.measured import Measured
from pipeline.evaluation.networks import Network
from pipeline.evaluation.reference import Moments, Statistics, gathered
from pipeline.storage import Storage

NEIGHBOURS = 3  # k of precision and recall
RESAMPLES = 100
_SEED = 0  # of the resamples: the same for all that is compared
_ENOUGH = 10  # samples a feature with which a Frechet distance's bias is small


def resampled_frechet(features_NF: Tensor, reference: Moments) -> tuple[float, list[float]]:
    """The Frechet distance of these features to a Gaussian, and those of `RESAMPLES` bootstrap resamples of them."""
    counts_RN = resample_counts(len(features_NF), RESAMPLES, _SEED).to(features_NF.device)
    whole_1N = torch.ones_like(counts_RN[:1])
    compared = FrechetReference(reference.mean_F, reference.covariance_FF)
    distance, *resampled = compared.resampled(features_NF, torch.cat([whole_1N, counts_RN])).tolist()
    return distance, resampled


def add_frechet(measured: Measured, key: str, features_NF: Tensor, reference: Moments) -> None:
    distance, resampled = resampled_frechet(features_NF, reference)
    measured.add(key, distance, bootstrap_interval(distance, resampled))


def add_inception_score(measured: Measured, key: str, logits_NK: Tensor) -> None:
    score = inception_score(logits_NK)
    resampled = resampled_inception_score(logits_NK, RESAMPLES, _SEED).tolist()
    measured.add(key, score, bootstrap_interval(score, resampled))


def reconstruction_metrics(
    storage: Storage, original: Sequence[str], reconstruction: Sequence[str], network: Network
) -> Measured:
    """rFID, r-sFID and the Inception Score of reconstructions; with another network its Frechet distance alone."""
    of_inception = network.kind == "inception"
    names = {"pool": "rfid" if of_inception else f"frechet_distance/{network.name}", "spatial": "sfid"}
    measured, originals = Measured(), gathered(storage, original, network)

    def features(kind: str) -> Tensor:
        return all_features(storage, reconstruction, f"{network.name}/{kind}")

    for kind in network.distances:
        add_frechet(measured, f"reconstruction/{names[kind]}", features(kind), originals.moments[kind])
    if of_inception:
        add_inception_score(measured, "reconstruction/inception_score", features("logits"))
    measured.note(too_few(originals.images, originals.features_NF.shape[1], network.name))
    return measured


def floor_metrics(storage: Storage, paths: Sequence[str], reference: Statistics, network: Network) -> Measured:
    """Distances of reconstructions of the images whose features the reference keeps, in their order."""
    measured = Measured()
    names = {"pool": f"floor/frechet_distance/{network.name}", "spatial": "floor/sfid"}

    def features(kind: str) -> Tensor:
        return all_features(storage, paths, f"{network.name}/{kind}")

    for kind in network.distances:
        add_frechet(measured, names[kind], features(kind), reference.moments[kind])
    measured.add_estimate(f"floor/kid/{network.name}", *paired_kid(features("pool"), reference.features_NF))
    measured.note(too_few(len(reference.features_NF), reference.features_NF.shape[1], network.name))
    return measured


def sample_metrics(
    storage: Storage, paths: Sequence[str], reference: Statistics, floor: Statistics, network: Network
) -> Measured:
    """All that is computed from the features of samples, by key; the keys contain the network's name.

    Against the reference, and against reconstructions of its images at the generator's level (`floor`). Precision and
    recall in ADM's protocol: all samples against the 10,000 images whose features the reference keeps.
    """
    measured, name = Measured(), network.name

    def features(kind: str) -> Tensor:
        return all_features(storage, paths, f"{name}/{kind}")

    _add_distances(measured, features("pool"), reference, floor, name)
    if network.kind == "inception":
        add_frechet(measured, "samples/sfid", features("spatial"), reference.moments["spatial"])
        add_inception_score(measured, "samples/inception_score", features("logits"))
    if network.kind == "self":
        right_N = features("logits").argmax(1) == all_features(storage, paths, "labels")
        measured.add_share(f"samples/class_accuracy/{name}", float(right_N.double().mean()), len(right_N))
    return measured


def _add_distances(measured: Measured, pool_NF: Tensor, reference: Statistics, floor: Statistics, name: str) -> None:
    for ending, other in (("", reference), ("_to_reconstructions", floor)):
        add_frechet(measured, f"samples/frechet_distance{ending}/{name}", pool_NF, other.moments["pool"])
        measured.add_estimate(f"samples/kid{ending}/{name}", *kid(pool_NF, other.features_NF))
    precision, recall = precision_recall(reference.features_NF, pool_NF, k=NEIGHBOURS)
    measured.add_share(f"samples/precision/{name}", precision, len(pool_NF))
    measured.add_share(f"samples/recall/{name}", recall, len(reference.features_NF))
    measured.note(too_few(len(pool_NF), pool_NF.shape[1], name))


def too_few(samples: int, features: int, network: str) -> str | None:
    """A line on the bias of a Frechet distance with fewer samples than features; None if there are enough."""
    if samples > features:
        return None
    return (
        f"{samples:,} images for the {features:,} features of {network}: their covariance has not full rank, and the "
        f"Frechet distance is too large, by more the fewer they are; compare equal numbers, or by kid, which has no "
        f"bias. {features + 1:,} are the least, {_ENOUGH * features:,} would do"
    )
