"""Generators that were not trained here: an artifact of public weights in the place of a trained generator's.

Its fingerprint is a digest of what was imported; a config that gives it as `sit.imported` has the artifact as the
result of train-sit, and of the section `sit` nothing else is used but the level, which has to be its own. torch is
imported when something is imported.
"""

import re
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from models.choices import PublicSit
from pipeline.artifacts import SHORT, Manifest, broken_files, hash_file, read_manifest
from pipeline.config import Config
from pipeline.errors import ConfigError, ContractError, PipelineError
from pipeline.inference import sit_weights
from pipeline.storage import open_storage, split_uri
from pipeline.workflow.fingerprints import stage_fingerprints
from pipeline.workflow.importing import check_finite, committed_import, import_fingerprint, local_file, refused

if TYPE_CHECKING:
    from torch import Tensor

_STAGE = "train-sit"
_TORCH, _SAFETENSORS = (".pt", ".pth"), ".safetensors"
_NAMES_DIT = re.compile(r"DiT|(?i:(?<![a-z])dit(?![a-z]))")  # but no edit.pt
_AVERAGE = "ema"  # where a checkpoint of the public trainings has the weights that are meant
# Public SiT, REPA and SRA are of the latents of sd-vae, f8d4, times this.
_SD_VAE_FACTOR, _SD_VAE_CHANNELS, _SD_VAE_SCALE = 8, 4, 0.18215


def public_kind(name: str) -> PublicSit:
    """The kind of this name. ConfigError if there is none, or it is no generator of ours."""
    if name == "dit":
        raise ConfigError(
            "a DiT predicts the noise on a discrete schedule of 1000 steps, which is no path of a generator here",
            f"Import one of {', '.join(get_args(PublicSit))}.",
        )
    if name not in get_args(PublicSit):
        raise ConfigError(f"KIND {name} is unknown", f"Use one of {', '.join(get_args(PublicSit))}.")
    kind: PublicSit = name  # type: ignore[assignment]  # checked above
    return kind


def sit_faults(config: Config, made: Manifest | None) -> Iterator[PipelineError]:
    """What is wrong with the imported generator of this config, if it has one; `made`: the artifact, if it is there."""
    if config.sit.imported is None:
        return
    if made is None:
        yield ContractError(
            f"sit.imported {config.sit.imported[:SHORT]} is not at {config.root}",
            "Run `python -m pipeline import sit KIND FILE` with the same --root, and set what it prints.",
        )
        return
    network = made.details["network"]
    if config.grid != network["grid"]:
        factor = config.tokenizer.patch_size
        yield ContractError(
            f"the latent of the tokenizer is {config.grid} x {config.grid}, but {made.name} is for {network['grid']} x "
            f"{network['grid']}",
            f"Set data.image_size={factor * network['grid']}, or another tokenizer.",
        )
    own, theirs = stage_fingerprints(config)["train-tokenizer"], made.inputs.get("train-tokenizer")
    if own is not None and theirs is not None and theirs != own:
        yield ContractError(
            f"{made.name} was trained on latents of train-tokenizer/{theirs[:SHORT]}, and the tokenizer here is "
            f"train-tokenizer/{own[:SHORT]}",
            f"Set tokenizer.imported={theirs}, or train a generator for this one.",
        )
    try:
        sit_weights(made, config.sample.ema_decay)
    except ContractError as error:
        yield error
    expected = {
        "sit.level": (config.sit.level, made.details["level"]),
        "tokenizer.latent_dim": (config.tokenizer.latent_dim, network["latent_dim"]),
        "data.classes": (config.data.classes, network["classes"]),
    }
    for field, (given, known) in expected.items():
        if given not in (None, known):
            yield ContractError(
                f"{field} is {given}, but {made.name} was imported with {known}",
                f"Set {field}={known}, or import another one.",
            )


def import_sit(
    root: str, kind: PublicSit, uri: str, heads: int | None = None, say: Callable[[str], None] = lambda _: None
) -> Manifest:
    """Make an artifact of the file at `uri`: a checkpoint of torch, whose code is not run, or safetensors.

    Whole files of an earlier import of the same stay. `heads`: of a width that no public SiT has. `say`
    receives comments of YAML, a line each, such as a warning where the file's name is a DiT's. ConfigError or
    ContractError if the weights are not of this kind or not safe to read.
    """
    storage = open_storage(root)
    with tempfile.TemporaryDirectory(prefix="dvae-import-") as folder:
        place, name = split_uri(uri)
        if not uri.endswith((*_TORCH, _SAFETENSORS)):
            raise ConfigError(f"{uri} is no weights of a SiT", "Give one file that ends in .pt, .pth or .safetensors.")
        if _NAMES_DIT.search(name):
            say(
                f"# warning: {name} is a DiT's by its name. A DiT's file looks the same, but it predicts noise on a "
                "discrete schedule, and used as a SiT it draws no pictures."
            )
        file = local_file(place, name, Path(folder), uri, "Give one file, of torch or of safetensors.")
        with refused(uri, f"Give a file that {kind} has published or trained, or another KIND."):
            network, tensors = _opened(file, kind, heads)
        details = {
            "network": network,
            "level": 0,
            "path": "linear",
            "prediction": "velocity",
            "statistics": _statistics(uri, network["latent_dim"]),
            "source": {"kind": kind, "uri": place.uri(name), "sha256": hash_file(file).sha256},
        }
        fingerprint = import_fingerprint(_STAGE, details)
        made = read_manifest(storage, _STAGE, fingerprint)
        if made is not None and not broken_files(storage, made):
            say(f"# {made.name} is there already")
            return made
        return committed_import(storage, _STAGE, _config_of(fingerprint, details), tensors, details, Path(folder))


def _opened(file: Path, kind: PublicSit, heads: int | None) -> "tuple[dict[str, Any], dict[str, Tensor]]":
    """The arguments of `models.sit.SiT`, and its weights in fp32. ValueError if they are of no such network."""
    import torch

    from models.public_sit import from_public, public_network
    from models.sit import SiT
    from models.tensor_files import read_tensors
    from pipeline.weights import load_state

    theirs = read_tensors(file) if file.name.endswith(_SAFETENSORS) else load_state(file, _AVERAGE)
    for name, tensor in theirs.items():
        if not tensor.is_floating_point():
            raise ValueError(f"{name} is of {tensor.dtype}, which is no type of weights")
    network = public_network(theirs, heads)
    tensors = {name: tensor.float() for name, tensor in from_public(theirs, kind, network).items()}
    check_finite(tensors)
    with torch.device("meta"):
        SiT(**network)  # which refuses heads that do not divide the width
    return network, tensors


def _statistics(uri: str, channels: int) -> dict[str, list[float]]:
    """Of the normalisation of latents: what public code multiplies them with."""
    if channels != _SD_VAE_CHANNELS:
        raise ConfigError(
            f"{uri} is for latents of {channels} channels, whose scale is not known",
            f"Give one for the latents of sd-vae, which have {_SD_VAE_CHANNELS}.",
        )
    return {"mean": [0.0] * channels, "std": [1 / _SD_VAE_SCALE] * channels}


def _config_of(fingerprint: str, details: dict[str, Any]) -> Config:
    """A config that uses the import; its other fields have their defaults."""
    network = details["network"]
    shape = {name: network[name] for name in ("width", "depth", "heads", "patch_size", "qk_norm", "time_scale")}
    trained = {name: details[name] for name in ("level", "path", "prediction")}
    return Config.model_validate(
        {
            "data": {"image_size": _SD_VAE_FACTOR * network["grid"], "classes": network["classes"]},
            "tokenizer": {"patch_size": _SD_VAE_FACTOR, "latent_dim": network["latent_dim"]},
            "sit": {"imported": fingerprint, "size": "custom", "alignment": "none", **shape, **trained},
        }
    )


def sit_preset_lines(manifest: Manifest) -> str:
    """The lines of a preset that use an imported generator; it has the tokenizer from what it extends."""
    network = manifest.details["network"]
    lines = [
        "extends: imagenet-sd-vae",
        f"data: {{image_size: {_SD_VAE_FACTOR * network['grid']}, classes: {network['classes']}}}",
        f"sit: {{imported: {manifest.fingerprint}, level: {manifest.details['level']}}}",
    ]
    return "\n".join(lines)
