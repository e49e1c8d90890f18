"""The fields of a config that hold weights, and the network that each of them takes."""

from collections.abc import Iterator
from typing import NamedTuple

from pipeline.config import Config, WeightFile
from pipeline.weights.catalogue import Layout

_TAKEN: dict[str, Layout] = {"lpips": "vgg16", "convnext": "convnext_small", "efficientnet": "efficientnet_lite0"}


class Use(NamedTuple):
    """A field that holds weights."""

    section: str
    field: str
    file: WeightFile

    def __str__(self) -> str:
        return f"{self.file.name or self.file.uri} ({self.section}.{self.field})"


def weights_used(config: Config) -> Iterator[Use]:
    """The fields of the config that hold weights."""
    for section in type(config).model_fields:
        own = getattr(config, section)
        for field in getattr(type(own), "model_fields", {}):
            value = getattr(own, field)
            if isinstance(value, WeightFile):
                yield Use(section, field, value)


def layout_taken(use: Use, config: Config) -> str:
    """The network whose weights the field takes: a layout of the catalogue, or a classifier of timm."""
    if use.field == "classifier_weights":
        assert config.evaluate.classifier is not None  # EvaluateConfig
        return config.evaluate.classifier
    if use.field == "network_weights":
        network = config.evaluate.network
        assert network != "self"  # which takes none: EvaluateConfig
        return network
    return _TAKEN[use.field]
