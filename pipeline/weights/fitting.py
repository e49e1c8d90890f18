"""Whether weights are of the network that a field of the config takes: by name, and by a file's header. torch is
imported for a classifier of timm alone.

What loads a file compares all of its tensors; here a few are enough to tell networks apart before a run starts.
"""

import difflib
import json
import struct
from pathlib import Path
from typing import Any, NamedTuple

from models.choices import IMAGENET_CLASSES
from pipeline.config import Config
from pipeline.errors import ConfigError
from pipeline.weights.catalogue import CATALOGUE
from pipeline.weights.used import Use, layout_taken

_LENGTH = 8  # bytes before the header of a safetensors file, which give the header's length
_LARGEST_HEADER = 100_000_000  # bytes, as safetensors itself limits it

Shapes = dict[str, list[int]]


class Network(NamedTuple):
    """Of some tensors of a network, the names and shapes."""

    title: str
    shapes: Shapes


def _vgg16() -> Shapes:
    """All convolutions: what LPIPS reads."""
    shapes, inputs, place = Shapes(), 3, 0
    for outputs, count in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        for _ in range(count):
            shapes[f"features.{place}.weight"], shapes[f"features.{place}.bias"] = [outputs, inputs, 3, 3], [outputs]
            inputs, place = outputs, place + 2  # a ReLU follows
        place += 1  # and a pooling
    return shapes


NETWORKS: dict[str, Network] = {
    "vgg16": Network("VGG-16", _vgg16()),
    "convnext_small": Network(
        "ConvNeXt-S",
        {
            "stem.0.weight": [96, 3, 4, 4],
            "stages.2.blocks.26.mlp.fc1.weight": [1536, 384],  # of its 27 blocks the last: a ConvNeXt-T has 9
            "stages.3.blocks.2.gamma": [768],
            "head.fc.weight": [1000, 768],
        },
    ),
    "inception": Network(
        "FID's Inception",
        {
            "Conv2d_1a_3x3.conv.weight": [32, 3, 3, 3],
            "Mixed_6d.branch1x1.conv.weight": [192, 768, 1, 1],
            "fc.weight": [1008, 2048],
        },
    ),
    "dinov2_vitb14": Network(
        "DINOv2 ViT-B/14",
        {
            "patch_embed.proj.weight": [768, 3, 14, 14],
            "pos_embed": [1, 1370, 768],
            "blocks.11.ls2.gamma": [768],
        },
    ),
}


def _timm_classifier(name: str) -> Network:
    """All tensors of a classifier of timm. ConfigError if there is none of this name that reads ImageNet's classes."""
    import timm
    import torch

    if not timm.is_model(name):
        close = difflib.get_close_matches(name, timm.list_models(), n=1)
        raise ConfigError(
            f"evaluate.classifier: timm has no network {name}", f"Did you mean {close[0]}?" if close else "Correct it."
        )
    with torch.device("meta"):
        network = timm.create_model(name, pretrained=False)
    if network.num_classes != IMAGENET_CLASSES:
        raise ConfigError(
            f"evaluate.classifier: timm's {name} reads {network.num_classes:,} classes, not the {IMAGENET_CLASSES:,} "
            "of ImageNet",
            "Choose another.",
        )
    return Network(f"timm's {name}", {key: list(value.shape) for key, value in network.state_dict().items()})


def check_name(use: Use, config: Config) -> None:
    """ConfigError if the field names weights of the catalogue that are of another network."""
    entry, layout = CATALOGUE.get(use.file.name or ""), layout_taken(use, config)
    if entry is None or entry.layout == layout:
        return
    fitting = next((name for name, other in CATALOGUE.items() if other.layout == layout), None)
    taken = CATALOGUE[fitting].title if fitting else f"timm's {layout}"
    raise ConfigError(
        f"{use.section}.{use.field}: {use.file.name} is {entry.title}, and the field takes {taken}",
        f"Set {use.section}.{use.field}={fitting or 'a file of safetensors with these weights'}.",
    )


def check_file(use: Use, config: Config, path: Path) -> None:
    """ConfigError, with field and file, if a local copy is not whole or not of the network that the field takes."""
    layout, where = layout_taken(use, config), f"{use.section}.{use.field}: {use.file.uri}"
    if layout == "efficientnet_lite0":  # that of the package, which is no file of safetensors and known by its sha256
        _check_package(use, where)
        return
    network = _timm_classifier(layout) if use.field == "classifier_weights" else NETWORKS[layout]
    hint = f"Give weights of {network.title}, as `python -m pipeline weights fetch` writes them."
    try:
        found = tensor_shapes(path)
    except ValueError as error:
        raise ConfigError(f"{where} is not a file of safetensors ({error})", hint) from error
    for name, shape in network.shapes.items():
        if name not in found:
            raise ConfigError(f"{where} is not of {network.title}: it has no {name}", hint)
        if found[name] != shape:
            raise ConfigError(f"{where} is not of {network.title}: {name} has shape {found[name]}, not {shape}", hint)


def _check_package(use: Use, where: str) -> None:
    """ConfigError unless the file is the very one of the Python package: metrics have the network's name."""
    name, entry = next((name, entry) for name, entry in CATALOGUE.items() if entry.layout == "efficientnet_lite0")
    if use.file.sha256 != entry.package_sha256:
        raise ConfigError(
            f"{where} is not the file of the package {entry.publisher}: its sha256 is {use.file.sha256}, not "
            f"{entry.package_sha256}",
            f"Set {use.section}.{use.field}={name}.",
        )


def tensor_shapes(path: Path) -> Shapes:
    """Names and shapes in a safetensors file, by its header. ValueError if it is none, or not whole."""
    size = path.stat().st_size
    with open(path, "rb") as handle:
        start = handle.read(_LENGTH)
        length = struct.unpack("<Q", start)[0] if len(start) == _LENGTH else 0
        if not 0 < length <= min(_LARGEST_HEADER, size - _LENGTH):
            raise ValueError("it has no header")
        header: Any = json.loads(handle.read(length))  # a JSONDecodeError or UnicodeDecodeError is a ValueError
    try:
        tensors = {name: about for name, about in header.items() if name != "__metadata__"}
        end = max((int(about["data_offsets"][1]) for about in tensors.values()), default=0)
        shapes = {name: [int(side) for side in about["shape"]] for name, about in tensors.items()}
    except (AttributeError, KeyError, TypeError, IndexError, ValueError, ArithmeticError) as error:
        raise ValueError("its header does not describe tensors") from error
    if size != _LENGTH + length + end:
        raise ValueError(f"it has {size:,} bytes, not {_LENGTH + length + end:,}")
    return shapes
