"""Features of images from frozen networks, for Ray tasks of the evaluation stages, and the files that hold them.

Features are stored in the work folder as .npz files; the metrics are implemented in `models.metrics`.
Legend: N images, F features, K classes.
"""

import io
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.config import EvaluateConfig
from pipeline.evaluation import networks
from pipeline.evaluation.networks import Features, Network
from pipeline.evaluation.precision import tensor_cores
from pipeline.inference import task_device
from pipeline.storage import Storage


def evaluation_device() -> torch.device:
    """The device of this Ray task. On a CPU, limits torch to one thread, since the task has one core."""
    device = task_device()
    if device.type == "cpu":
        torch.set_num_threads(1)
    return device


@torch.inference_mode()
def extract(images_NCHW: Tensor, chosen: Sequence[Network], config: EvaluateConfig) -> Features:
    """Features of uint8 images by all networks, `NETWORK/KIND`, in batches of `evaluate.batch_size`, on the CPU."""
    device, parts = evaluation_device(), dict[str, list[Tensor]]()
    with tensor_cores(config.precision):
        for network in chosen:
            read = networks.feature_network(network, device)
            for batch in torch.split(images_NCHW, config.batch_size):
                for kind, values in read(batch.to(device)).items():
                    parts.setdefault(f"{network.name}/{kind}", []).append(values.cpu())
    return {kind: torch.cat(values) for kind, values in parts.items()}


@torch.inference_mode()
def classes_read(images_NCHW: Tensor, config: EvaluateConfig) -> Tensor:
    """The class (N,) that `evaluate.classifier` reads in uint8 images, on the CPU."""
    device = evaluation_device()
    assert config.classifier is not None
    with tensor_cores(config.precision):
        read = networks.imagenet_classifier(config.classifier, config.classifier_weights, device)
        return torch.cat([read(batch.to(device)).cpu() for batch in torch.split(images_NCHW, config.batch_size)])


class FeatureRows:
    """Features that come in parts, as one array that grows in place: at no time are they in memory twice."""

    def __init__(self) -> None:
        self._rows: np.ndarray | None = None

    def add(self, part: Tensor) -> None:
        """More of them, (N, ...), on the CPU."""
        values = part.numpy()
        if self._rows is None:
            self._rows = values.copy()
            return
        start = len(self._rows)
        self._rows.resize((start + len(values), *values.shape[1:]), refcheck=False)  # nothing else refers to it yet
        self._rows[start:] = values

    def all(self) -> Tensor:
        """What was added. ValueError if nothing was."""
        if self._rows is None:
            raise ValueError("there are no features")
        return torch.from_numpy(self._rows)


def write_features(storage: Storage, path: str, features: Features) -> None:
    buffer, arrays = io.BytesIO(), dict[str, Any]()
    arrays.update({kind: values.numpy() for kind, values in features.items()})
    np.savez(buffer, **arrays)
    storage.write(path, buffer.getvalue())


def read_features(storage: Storage, paths: Sequence[str], kind: str) -> Iterator[Tensor]:
    """One kind of stored features, `NETWORK/KIND`, file by file."""
    for path in paths:
        with np.load(io.BytesIO(storage.read(path))) as arrays:
            yield torch.from_numpy(arrays[kind])


def all_features(storage: Storage, paths: Sequence[str], kind: str) -> Tensor:
    """The same of all files, on the task's device."""
    found = FeatureRows()
    for part in read_features(storage, paths, kind):
        found.add(part)
    return found.all().to(evaluation_device())
