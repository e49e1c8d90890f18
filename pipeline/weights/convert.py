"""From a publisher's file to safetensors with the names that our networks read. No code in a file is run."""

import argparse
import pickle
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.tensor_files import write_tensors
from pipeline.errors import ContractError
from pipeline.weights.catalogue import Layout

Tensors = dict[str, Tensor]


def convert(source: Path, layout: Layout, target: Path) -> None:
    """Write the tensors of a publisher's file as safetensors, after a check of their names and shapes.

    ContractError if the file holds more than tensors, or tensors of another network.
    """
    if layout == "diffusers":  # safetensors already: as published, an import of it is known by the publisher's sha256
        _check_safetensors(source)
        shutil.copyfile(source, target)
        return
    tensors = _CONVERTERS[layout](load_tensors(source), source.name)
    _check_plain(tensors, source.name)
    write_tensors(target, {name: tensors[name].clone() for name in sorted(tensors)})  # two names may share one


def _check_safetensors(source: Path) -> None:
    """ContractError if the file's header or length is wrong."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(source, framework="pt"):
            pass
    except SafetensorError as error:
        raise ContractError(f"{source.name} is not a safetensors file ({error})", "Fetch it again.") from error


def load_state(source: Path, inside: str) -> Tensors:
    """The state dict that torch has saved: under the name `inside`, if there is that, else all of it.

    ContractError if it is no such file, holds code, or no state dict.
    """
    loaded = load_tensors(source)
    tensors = _state_dict(loaded.get(inside, loaded) if isinstance(loaded, dict) else loaded, source.name)
    _check_plain(tensors, source.name)
    return tensors


def _check_plain(tensors: Tensors, what: str) -> None:
    for name, tensor in tensors.items():
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.device.type != "cpu":
            raise ContractError(f"{what}: {name} is no plain tensor with values", "Take the publisher's file.")


def load_tensors(source: Path) -> Any:
    """What torch has saved: tensors, in whatever tree. ContractError if it is no such file, or holds code.

    Checkpoints have their training's settings beside the weights, as argparse gives them: names with values, no code.
    """
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(source, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # an unpickler meets arbitrary bytes
        why = " ".join(str(error).split())
        if isinstance(error, pickle.UnpicklingError) and "GLOBAL" in why:
            name = re.search(r"GLOBAL (\S+)", why)
            raise ContractError(
                f"{source.name} holds more than tensors, and its code is not run ({name[1] if name else why[:200]})",
                "Take the publisher's own file.",
            ) from error
        raise ContractError(
            f"{source.name} is not a file of torch ({type(error).__name__}: {why[:200]})", "Fetch it again."
        ) from error


def check_tensors(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], what: str) -> None:
    """ContractError, with the first difference, if names and shapes are not the expected ones."""
    for name in sorted({*found, *expected}):
        if name not in expected:
            raise ContractError(f"{what} has a tensor {name}, which the network lacks", "Take the publisher's file.")
        if name not in found:
            raise ContractError(f"{what} lacks {name} {tuple(expected[name].shape)}", "Take the publisher's file.")
        if found[name].shape != expected[name].shape:
            raise ContractError(
                f"{what} has {name} {tuple(found[name].shape)}, not {tuple(expected[name].shape)}",
                "Take the publisher's file.",
            )


def _state_dict(loaded: Any, what: str) -> Tensors:
    if not isinstance(loaded, dict) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in loaded.items()
    ):
        raise ContractError(f"{what} holds no state dict: tensors by name", "Take the publisher's file.")
    return dict(loaded)


def _timm_layout(name: str, **options: Any) -> Tensors:
    """Names and shapes of a network of timm, without memory for its weights."""
    import timm

    with torch.device("meta"):
        return dict(timm.create_model(name, pretrained=False, **options).state_dict())


def _vgg16(loaded: Any, what: str) -> Tensors:
    """torchvision's and timm's names agree below `features`, which is all that LPIPS reads."""
    tensors = {name: value for name, value in _state_dict(loaded, what).items() if name.startswith("features.")}
    expected = {name: value for name, value in _timm_layout("vgg16").items() if name.startswith("features.")}
    check_tensors(tensors, expected, what)
    return tensors


_CONVNEXT_BLOCK = {"0": "conv_dw", "2": "norm", "3": "mlp.fc1", "5": "mlp.fc2"}


def _convnext_small(loaded: Any, what: str) -> Tensors:
    """torchvision's names to timm's; the scale of a layer loses its two sides of 1."""
    tensors = {_convnext_name(name): value for name, value in _state_dict(loaded, what).items()}
    tensors = {name: value.flatten() if name.endswith(".gamma") else value for name, value in tensors.items()}
    check_tensors(tensors, _timm_layout("convnext_small"), what)
    return tensors


def _convnext_name(name: str) -> str:
    """`features.S.B...` has stem and downsamplings at even S, stages at odd ones."""
    parts = name.split(".")
    if parts[0] == "classifier":
        return ".".join([{"0": "head.norm", "2": "head.fc"}.get(parts[1], parts[1]), *parts[2:]])
    if parts[0] != "features" or len(parts) < 4:
        return name
    place, rest = int(parts[1]), parts[2:]
    if place == 0:
        return ".".join(["stem", *rest])
    if place % 2 == 0:
        return ".".join([f"stages.{place // 2}.downsample", *rest])
    block = f"stages.{place // 2}.blocks.{rest[0]}"
    if rest[1] == "layer_scale":
        return f"{block}.gamma"
    return ".".join([block, _CONVNEXT_BLOCK.get(rest[2], rest[2]), *rest[3:]])


def _dinov2(loaded: Any, what: str) -> Tensors:
    """timm's names are Meta's; the mask token is of the training alone."""
    tensors = _state_dict(loaded, what)
    tensors.pop("mask_token", None)
    check_tensors(tensors, _timm_layout("vit_base_patch14_dinov2"), what)
    return tensors


def _inception(loaded: Any, what: str) -> Tensors:
    from models.inception import inception_layout

    tensors = _state_dict(loaded, what)
    check_tensors(tensors, inception_layout(), what)
    return tensors


def _detok(loaded: Any, what: str) -> Tensors:
    """The moving average of the training's file, under its public names."""
    from models.tokenizers.detok import detok_network, from_detok
    from models.tokenizers.vit import Tokenizer

    tensors = _state_dict(loaded.get("model_ema", loaded) if isinstance(loaded, dict) else loaded, what)
    try:
        ours = from_detok(tensors)
        with torch.device("meta"):
            network = Tokenizer(**detok_network(ours))
    except (ValueError, RuntimeError) as error:  # RuntimeError: of a shape that cannot be reordered
        raise ContractError(f"{what}: {error}", "Take the publisher's file.") from error
    check_tensors(ours, network.state_dict(), what)
    return tensors


_CONVERTERS: dict[Layout, Callable[[Any, str], Tensors]] = {
    "vgg16": _vgg16,
    "convnext_small": _convnext_small,
    "dinov2_vitb14": _dinov2,
    "inception": _inception,
    "detok": _detok,
}
