"""The feature networks of the evaluation, as functions of images. A process loads each once.

Legend: N images, H W pixels, F features, K classes.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache

import torch
from safetensors.torch import load_file
from torch import Tensor

from models.choices import FeatureNetwork
from models.classifier import Classifier
from models.inception import Inception
from models.perceptual import ImageNetFeatures
from pipeline.artifacts import Manifest, local_copies
from pipeline.config import Config, WeightFile
from pipeline.storage import cache_folder, open_storage
from pipeline.weights import fetch_weights

CLASSIFIER_WEIGHTS = "weights.safetensors"  # in the artifact of the stage `classifier`

Features = dict[str, Tensor]
"""`pool` (N, F), for distances; of inception also `spatial` (N, F); of inception and self `logits` (N, K). fp32."""
FeatureFunction = Callable[[Tensor], Features]
"""Maps uint8 images (N, 3, H, W) to their features."""


@dataclass(frozen=True)
class Network:
    """A feature network, with everything that it is loaded from."""

    name: str  # in keys of metrics and of files: inception, efficientnet_lite0, self-cifar10
    kind: FeatureNetwork
    size: int  # side to which images are resized, of ImageNet's
    weights: WeightFile | None
    root: str  # where the classifier lies
    classifier: str | None = None  # the manifest of self, as JSON

    @property
    def distances(self) -> tuple[str, ...]:
        """The kinds of features of which a Frechet distance is taken."""
        return ("pool", "spatial") if self.kind == "inception" else ("pool",)


def networks_of(config: Config, inputs: Mapping[str, Manifest], root: str) -> tuple[Network, ...]:
    """All networks of the config, that of the gate first; `self` from the artifact of the stage `classifier`."""
    own, found = config.evaluate, list[Network]()
    for kind, name in zip(own.networks, config.network_names, strict=True):
        weights = own.network_weights if kind == own.network else None
        classifier = inputs["classifier"].model_dump_json() if kind == "self" else None
        found.append(Network(name, kind, own.network_size, weights, root, classifier))
    return tuple(found)


@lru_cache(maxsize=4)
def feature_network(network: Network, device: torch.device) -> FeatureFunction:
    """The network as a function of uint8 images (N, 3, H, W) on the device."""
    return FEATURE_NETWORKS[network.kind](network, device)


def _inception(network: Network, device: torch.device) -> FeatureFunction:
    assert network.weights is not None  # the runner checks this
    inception = Inception(str(fetch_weights(network.weights))).to(device)

    def read(x_NCHW: Tensor) -> Features:
        features = inception(x_NCHW)
        return {"pool": features.pool_BF, "spatial": features.spatial_BF, "logits": features.logits_BK}

    return read


def _imagenet(network: Network, device: torch.device) -> FeatureFunction:
    path = str(fetch_weights(network.weights)) if network.weights else None
    layout = torch.channels_last  # makes depthwise convolutions on CPUs 1.5 times as fast
    loaded = ImageNetFeatures(network.kind, path, network.size).to(device).to(memory_format=layout)
    return lambda x_NCHW: {"pool": loaded(x_NCHW.contiguous(memory_format=layout))}


def _own(network: Network, device: torch.device) -> FeatureFunction:
    assert network.classifier is not None
    manifest, storage = Manifest.model_validate_json(network.classifier), open_storage(network.root)
    (path,) = local_copies(storage, manifest, [CLASSIFIER_WEIGHTS], cache_folder() / "weights").values()
    classifier = Classifier(manifest.details["classes"])
    classifier.load_state_dict(load_file(path))
    classifier.eval().requires_grad_(False).to(device)

    def read(x_NCHW: Tensor) -> Features:
        features = classifier(x_NCHW)
        return {"pool": features.features_BF, "logits": features.logits_BK}

    return read


@lru_cache(maxsize=2)
def imagenet_classifier(name: str, weights: WeightFile | None, device: torch.device) -> Callable[[Tensor], Tensor]:
    """uint8 images (N, 3, H, W) on the device to the class (N,) that a classifier of ImageNet reads, from 0 on."""
    path = str(fetch_weights(weights)) if weights else None
    loaded = ImageNetFeatures(name, path).to(device)
    return lambda x_NCHW: loaded.logits(loaded(x_NCHW)).argmax(1)


FEATURE_NETWORKS: dict[FeatureNetwork, Callable[[Network, torch.device], FeatureFunction]] = {
    "inception": _inception,
    "efficientnet_lite0": _imagenet,
    "dinov2_vitb14": _imagenet,
    "self": _own,
}
