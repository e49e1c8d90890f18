"""What is kept of a set of images to compare others with: statistics of their features by one network.

A file of safetensors: of each kind of features (`pool`; of inception also `spatial`) the mean and the covariance, of
`pool` the features of at most 10,000 images too, for KID, precision and recall.
Legend: N images, F features.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from safetensors.torch import load, save
from torch import Tensor

from models.metrics import FeatureMoments
from pipeline.artifacts import Manifest, read_checked
from pipeline.data import spaced
from pipeline.evaluation.features import evaluation_device, read_features
from pipeline.evaluation.measured import MANIFOLD
from pipeline.evaluation.networks import Network
from pipeline.storage import Storage


@dataclass(frozen=True)
class Moments:
    """A Gaussian: fp64."""

    mean_F: Tensor
    covariance_FF: Tensor


@dataclass(frozen=True)
class Statistics:
    """Of one network's features of a set of images."""

    images: int
    moments: dict[str, Moments]  # by kind of features
    features_NF: Tensor  # pooled, fp32, of at most `MANIFOLD` images, evenly spaced

    def to(self, device: torch.device) -> "Statistics":
        moved = {
            kind: Moments(one.mean_F.to(device), one.covariance_FF.to(device)) for kind, one in self.moments.items()
        }
        return Statistics(self.images, moved, self.features_NF.to(device))


def gathered(storage: Storage, paths: Sequence[str], network: Network) -> Statistics:
    """The statistics of the features in these files, on the task's device. One file is in memory at a time.

    ValueError for fewer than two images.
    """
    device, count = evaluation_device(), 0
    moments, kept = dict[str, Moments](), list[Tensor]()
    for kind in network.distances:
        total: FeatureMoments | None = None
        for features_NF in read_features(storage, paths, f"{network.name}/{kind}"):
            total = total or FeatureMoments(features_NF.shape[1], device)
            total.update(features_NF.to(device))
        assert total is not None
        moments[kind], count = Moments(*total.result()), total.count
    chosen, start = spaced(count, MANIFOLD), 0
    for features_NF in read_features(storage, paths, f"{network.name}/pool"):
        inside = chosen[(chosen >= start) & (chosen < start + len(features_NF))] - start
        kept.append(features_NF[inside])
        start += len(features_NF)
    return Statistics(count, moments, torch.cat(kept).to(device))


def file_of(network: str) -> str:
    """The file in an artifact that has the statistics by this network."""
    return f"{network}.safetensors"


def to_bytes(statistics: Statistics) -> bytes:
    tensors = {"images": torch.tensor(statistics.images), "features": statistics.features_NF}
    for kind, moments in statistics.moments.items():
        tensors |= {f"{kind}.mean": moments.mean_F, f"{kind}.covariance": moments.covariance_FF}
    data: bytes = save({name: tensor.cpu().contiguous() for name, tensor in tensors.items()})
    return data


def read_statistics(storage: Storage, manifest: Manifest, network: str) -> Statistics:
    """Of an artifact of `reference` or `floor`, on the task's device. ContractError if its file is broken or gone."""
    tensors = load(read_checked(storage, manifest, file_of(network)))
    kinds = [name.removesuffix(".mean") for name in tensors if name.endswith(".mean")]
    moments = {kind: Moments(tensors[f"{kind}.mean"], tensors[f"{kind}.covariance"]) for kind in kinds}
    return Statistics(int(tensors["images"]), moments, tensors["features"]).to(evaluation_device())
