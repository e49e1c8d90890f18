"""Distances between two sets of images from their stored features, for both evaluation stages."""

from collections.abc import Sequence

import torch
from torch import Tensor

from models.choices import FeatureNetwork
from models.metrics import (
    FrechetReference,
    frechet_distance,
    inception_score,
    precision_recall,
    resample_counts,
)
from pipeline.config import EvaluateConfig
from pipeline.evaluation.features import evaluation_device, kinds_of, moments, read_features
from pipeline.storage import Storage

NEIGHBOURS = 3  # k of precision and recall
_MANIFOLD = 10_000  # images per side for precision and recall, as in the ADM evaluator


def frechet_between(storage: Storage, one: Sequence[str], other: Sequence[str], kind: str = "pool") -> float:
    """The Frechet distance between the features of one kind in two groups of files."""
    return frechet_distance(*moments(storage, one, kind), *moments(storage, other, kind))


def resampled_frechet(
    storage: Storage, real: Sequence[str], fake: Sequence[str], resamples: int, seed: int
) -> tuple[float, list[float]]:
    """The Frechet distance of the pooled features in two groups of files, and those of resamples of the second."""
    reference = FrechetReference(*moments(storage, real, "pool"))
    fake_NF = torch.cat(list(read_features(storage, fake, "pool"))).to(evaluation_device())
    counts_RN = resample_counts(len(fake_NF), resamples, seed).to(fake_NF.device)
    whole_1N = torch.ones_like(counts_RN[:1])
    distance, *resampled = reference.resampled(fake_NF, torch.cat([whole_1N, counts_RN])).tolist()
    return distance, resampled


def reconstruction_metrics(
    storage: Storage, original: Sequence[str], reconstruction: Sequence[str], network: FeatureNetwork
) -> dict[str, float]:
    """rFID, r-sFID and the Inception Score of reconstructions; with another network its Frechet distance alone."""
    kinds = kinds_of(storage, original[0])
    names = {"pool": "rfid" if network == "inception" else f"frechet_distance/{network}", "spatial": "sfid"}
    found = {name: frechet_between(storage, original, reconstruction, kind)
             for kind, name in names.items() if kind in kinds}  # fmt: skip
    if "logits" in kinds:
        found["inception_score"] = inception_score(torch.cat(list(read_features(storage, reconstruction, "logits"))))
    return {f"reconstruction/{name}": value for name, value in found.items()}


def sample_metrics(
    storage: Storage, real: Sequence[str], fake: Sequence[str], config: EvaluateConfig
) -> dict[str, float]:
    """All metrics that are computed from features, by key; the keys contain the network's name."""
    kinds, network = kinds_of(storage, fake[0]), config.network
    names = {"pool": f"samples/frechet_distance/{network}", "spatial": "samples/sfid"}
    metrics = {name: frechet_between(storage, real, fake, kind) for kind, name in names.items() if kind in kinds}
    sides = [_subsampled(torch.cat(list(read_features(storage, paths, "pool")))) for paths in (real, fake)]
    precision, recall = precision_recall(sides[0], sides[1], k=NEIGHBOURS)
    metrics |= {f"samples/precision/{network}": precision, f"samples/recall/{network}": recall}
    if "logits" in kinds:
        metrics["samples/inception_score"] = inception_score(torch.cat(list(read_features(storage, fake, "logits"))))
    return metrics


def _subsampled(features_NF: Tensor) -> Tensor:
    """At most `_MANIFOLD` rows, evenly spaced, on the task's device."""
    count = min(_MANIFOLD, len(features_NF))
    return features_NF[torch.arange(count) * len(features_NF) // count].to(evaluation_device())
