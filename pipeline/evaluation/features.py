"""Features of images from a frozen network, and their statistics, for Ray tasks of the evaluation stages.

Features are stored in the work folder as .npz files; the metrics are implemented in `models.metrics`.
Legend: N images, F features, K classes.
"""

import io
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models.choices import FeatureNetwork
from models.inception import Inception
from models.metrics import FeatureMoments
from models.perceptual import ImageNetFeatures
from pipeline.config import EvaluateConfig
from pipeline.evaluation.precision import tensor_cores
from pipeline.inference import task_device
from pipeline.storage import Storage
from pipeline.weights import fetch_weights

Features = dict[str, Tensor]
"""`pool` (N, F), for Frechet distances; for inception also `spatial` (N, F) and `logits` (N, K). fp32."""
FeatureFunction = Callable[[Tensor], Features]
"""Maps uint8 images (N, 3, H, W) to their features."""


def evaluation_device() -> torch.device:
    """The device of this Ray task. On a CPU, limits torch to one thread, since the task has one core."""
    device = task_device()
    if device.type == "cpu":
        torch.set_num_threads(1)
    return device


@lru_cache(maxsize=1)
def feature_network(config: EvaluateConfig, device: torch.device) -> FeatureFunction:
    """The feature network as a function of uint8 images (N, 3, H, W). A process loads it once."""
    return FEATURE_NETWORKS[config.network](config, device)


def _inception(config: EvaluateConfig, device: torch.device) -> FeatureFunction:
    assert config.network_weights is not None  # the runner checks this
    inception = Inception(str(fetch_weights(config.network_weights))).to(device)

    def read(x_NCHW: Tensor) -> Features:
        features = inception(x_NCHW)
        return {"pool": features.pool_BF, "spatial": features.spatial_BF, "logits": features.logits_BK}

    return read


def _imagenet(config: EvaluateConfig, device: torch.device) -> FeatureFunction:
    path = str(fetch_weights(config.network_weights)) if config.network_weights else None
    network = ImageNetFeatures(config.network, path, config.network_size).to(device)
    layout = torch.channels_last  # makes depthwise convolutions on CPUs 1.5 times as fast
    network = network.to(memory_format=layout)
    return lambda x_NCHW: {"pool": network(x_NCHW.contiguous(memory_format=layout))}


FEATURE_NETWORKS: dict[FeatureNetwork, Callable[[EvaluateConfig, torch.device], FeatureFunction]] = {
    "inception": _inception,
    "efficientnet_lite0": _imagenet,
}


@torch.inference_mode()
def extract(images_NCHW: Tensor, config: EvaluateConfig) -> Features:
    """Features of uint8 images, in batches of `evaluate.batch_size`, on the CPU."""
    device = evaluation_device()
    network = feature_network(config, device)
    with tensor_cores(config.precision):
        parts = [network(batch.to(device)) for batch in torch.split(images_NCHW, config.batch_size)]
    return {kind: torch.cat([part[kind].cpu() for part in parts]) for kind in parts[0]}


def write_features(storage: Storage, path: str, features: Features) -> None:
    buffer, arrays = io.BytesIO(), dict[str, Any]()
    arrays.update({kind: values.numpy() for kind, values in features.items()})
    np.savez(buffer, **arrays)
    storage.write(path, buffer.getvalue())


def read_features(storage: Storage, paths: Sequence[str], kind: str) -> Iterator[Tensor]:
    """One kind of stored features, file by file."""
    for path in paths:
        with np.load(io.BytesIO(storage.read(path))) as arrays:
            yield torch.from_numpy(arrays[kind])


def kinds_of(storage: Storage, path: str) -> tuple[str, ...]:
    """The kinds of features in a file."""
    with np.load(io.BytesIO(storage.read(path))) as arrays:
        return tuple(arrays.files)


def moments(storage: Storage, paths: Sequence[str], kind: str) -> tuple[Tensor, Tensor]:
    """(mean_F, covariance_FF) over all files, fp64, on the task's device; one file is in memory at a time."""
    device, total = evaluation_device(), None
    for features_NF in read_features(storage, paths, kind):
        total = total or FeatureMoments(features_NF.shape[1], device)
        total.update(features_NF.to(device))
    assert total is not None
    return total.result()
