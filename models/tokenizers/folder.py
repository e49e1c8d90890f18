"""Tokenizers in folders: config.json and one file of safetensors, in our layout or in that of diffusers.

The registered model and the pipeline build them by `build`; nothing here unpickles.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..choices import TokenizerKind
from ..tensor_files import read_tensors, write_tensors
from . import sd_vae
from .base import TokenizerNetwork
from .dc_ae import DCAutoencoder
from .sd_vae import KLAutoencoder
from .vit import Tokenizer

CONFIG = "config.json"
OWN_WEIGHTS, PUBLIC_WEIGHTS = "model.safetensors", "diffusion_pytorch_model.safetensors"

TOKENIZERS: dict[TokenizerKind, type[TokenizerNetwork]] = {
    "vit": Tokenizer,
    "sd-vae": KLAutoencoder,
    "dc-ae": DCAutoencoder,
}
_CLASSES: dict[str, TokenizerKind] = {"AutoencoderKL": "sd-vae", "AutoencoderDC": "dc-ae"}
# Fields of diffusers' configs that change neither an encoding nor a decoding here.
_UNUSED = {
    "sample_size", "scaling_factor", "shift_factor", "latents_mean", "latents_std", "force_upcast", "in_channels",
    "out_channels", "down_block_types", "up_block_types",
}  # fmt: skip
# What every config has of each kind: a number from 1, or several.
_NUMBERS: dict[TokenizerKind, tuple[str, ...]] = {
    "vit": ("patch_size", "latent_dim", "width", "depth", "heads", "hidden"),
    "sd-vae": ("block_out_channels", "layers_per_block", "latent_channels", "norm_num_groups"),
    "dc-ae": ("encoder_block_out_channels", "decoder_block_out_channels", "latent_channels"),
}
_LARGEST = 1 << 16  # which no width or depth exceeds
_SIZE = "_image_size"  # of a DC-AE; diffusers passes over names that begin so
# What a config may leave out, with diffusers' defaults.
_DEFAULTS: dict[str, dict[str, Any]] = {
    "sd-vae": {"act_fn": "silu", "use_quant_conv": True, "use_post_quant_conv": True, "mid_block_add_attention": True},
    "dc-ae": {
        "attention_head_dim": 32,
        "downsample_block_type": "pixel_unshuffle",
        "upsample_block_type": "pixel_shuffle",
        "decoder_norm_types": "rms_norm",
        "decoder_act_fns": "silu",
        "encoder_out_shortcut": True,
        "decoder_in_shortcut": True,
        "decoder_conv_act_fn": "relu",
    },
}
_BLOCKS = {"down_block_types": "DownEncoderBlock2D", "up_block_types": "UpDecoderBlock2D"}


class Described(NamedTuple):
    """What builds a tokenizer."""

    kind: TokenizerKind
    network: dict[str, Any]
    """The arguments, `image_size` among them."""


def build(kind: TokenizerKind, network: Mapping[str, Any]) -> TokenizerNetwork:
    """A tokenizer with random weights, in training mode.

    Raises:
        ValueError: a package or an argument is missing, or an argument is wrong.
    """
    try:
        return TOKENIZERS[kind](**network)
    except TypeError as error:
        raise ValueError(f"the arguments of a {kind} are wrong: {error}") from error


def described(config: Mapping[str, Any], image_size: int | None = None) -> Described:
    """What a config.json describes, ours or diffusers'.

    `image_size` is that of the images to come, for a network that takes any; else it is the config's.

    Raises:
        ValueError: the config is of no tokenizer, or of one that cannot be used here.
    """
    name = config.get("_class_name")
    own_kind, own_network = config.get("kind"), config.get("network")
    if name is None and own_kind in list(TOKENIZERS) and isinstance(own_network, dict):
        return _checked(own_kind, dict(own_network), image_size)
    if name not in list(_CLASSES):  # which may be anything that JSON can hold
        raise ValueError(f"it is {f'a {name}' if name else 'not described'}, no {' or '.join(_CLASSES)}")
    kind = _CLASSES[name]
    if any(config.get(field, 3) != 3 for field in ("in_channels", "out_channels")):
        raise ValueError("its images do not have three channels")
    for field, only in _BLOCKS.items():
        blocks = config.get(field, [only])
        if kind == "sd-vae" and not (isinstance(blocks, list) and all(block == only for block in blocks)):
            raise ValueError(f"its {field} are not all {only}")
    network = {field: value for field, value in config.items() if field not in _UNUSED and not field.startswith("_")}
    # Older configs leave out what newer ones say: both describe the same network, and do so in the same words here.
    if network.get("downsample_block_type") == "Conv":
        network["downsample_block_type"] = "conv"
    network = {field: value for field, value in network.items() if _DEFAULTS[kind].get(field) != value}
    if kind == "sd-vae":
        network.setdefault("norm_num_groups", 32)
    return _checked(kind, {"image_size": config.get("sample_size", config.get(_SIZE)), **network}, image_size)


def _checked(kind: TokenizerKind, network: dict[str, Any], image_size: int | None) -> Described:
    if kind == "vit" and image_size not in (None, network.get("image_size")):
        raise ValueError(f"it is a ViT for images of {network.get('image_size')} pixels, not {image_size}")
    network["image_size"] = image_size or network.get("image_size")
    if network["image_size"] is None:
        raise ValueError("its config names no image size; give one")
    if not _is_size(network["image_size"]):
        raise ValueError(f"its config has image_size {network['image_size']!r}")
    for field in _NUMBERS[kind]:
        if field not in network:
            raise ValueError(f"its config lacks {field}")
        values = network[field] if field.endswith("_out_channels") else [network[field]]
        if not isinstance(values, list) or not values or not all(map(_is_size, values)):
            raise ValueError(f"its config has {field} {network[field]!r}")
    return Described(kind, network)


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= _LARGEST


def read_config(path: Path) -> dict[str, Any]:
    """The content of a config.json. ValueError if it is none."""
    try:
        config = json.loads(path.read_text())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON ({error})") from error
    if not isinstance(config, dict):
        raise ValueError(f"{path} is not the config of a tokenizer")
    return config


def load(folder: str | Path, image_size: int | None = None) -> TokenizerNetwork:
    """The tokenizer of a folder, in eval mode and without gradients, on the CPU.

    It opens what `save` writes, and diffusers' folders of an AutoencoderKL or AutoencoderDC.

    Args:
        folder: has a config.json and one file of weights.
        image_size: side of the images to come, which determines `grid`; None: as the config says.

    Raises:
        ValueError: a file is missing or wrong, or a package.
    """
    place = Path(folder)
    config_path = place / CONFIG
    if not config_path.is_file():
        raise ValueError(f"{place} has no {CONFIG}")
    try:
        found = described(read_config(config_path), image_size)
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from error
    files = [place / name for name in (OWN_WEIGHTS, PUBLIC_WEIGHTS) if (place / name).is_file()]
    if len(files) != 1:
        raise ValueError(f"{place} has {len(files)} files of weights; it needs {OWN_WEIGHTS} or {PUBLIC_WEIGHTS}")
    return restored(found, read_tensors(files[0]), str(files[0])).eval().requires_grad_(False)


def restored(found: Described, weights: Mapping[str, Tensor], source: str) -> TokenizerNetwork:
    """The network with these weights, of any floating dtype.

    Raises:
        ValueError: it cannot be built, or the weights are not its own; `source` is named.
    """
    if found.kind == "sd-vae":
        weights = sd_vae.from_public(weights)
    with torch.device("meta"):  # no memory for what a wrong config describes
        _check_weights(build(*found), weights, source)
    network = build(*found)
    network.load_state_dict(dict(weights))
    return network


def _check_weights(network: TokenizerNetwork, weights: Mapping[str, Tensor], source: str) -> None:
    own = network.state_dict()
    if missing := sorted(own.keys() - weights.keys()):
        raise ValueError(f"{source} lacks {len(missing)} tensors of a {network.kind}, the first is {missing[0]}")
    if strange := sorted(weights.keys() - own.keys()):
        raise ValueError(f"{source} has {len(strange)} tensors that a {network.kind} lacks, the first is {strange[0]}")
    for name, tensor in weights.items():
        if tensor.shape != own[name].shape:
            raise ValueError(f"{source}: {name} has shape {list(tensor.shape)}, not {list(own[name].shape)}")
        if tensor.is_floating_point() != own[name].is_floating_point():
            raise ValueError(f"{source}: {name} is of {tensor.dtype}, not {own[name].dtype}")


def save(
    folder: str | Path, kind: TokenizerKind, network: Mapping[str, Any], weights: Mapping[str, Tensor]
) -> list[Path]:
    """Write a tokenizer that `load` opens, and diffusers too if the network is its own; returns the files.

    diffusers' `scaling_factor` is written as 1: latents are as they are encoded (`Autoencoder.decode`).
    """
    place = Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    if kind == "vit":
        config, name = {"kind": kind, "network": dict(network)}, OWN_WEIGHTS
    elif kind == "sd-vae":
        config, name = sd_vae.public_config(network), PUBLIC_WEIGHTS
    else:
        arguments = {field: value for field, value in network.items() if field != "image_size"}
        config, name = {"_class_name": "AutoencoderDC", **arguments, _SIZE: network["image_size"]}, PUBLIC_WEIGHTS
    write_tensors(place / name, weights, {"format": "pt"})
    (place / CONFIG).write_text(json.dumps(config, indent=1) + "\n")
    return [place / CONFIG, place / name]
