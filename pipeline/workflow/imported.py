"""Tokenizers that were not trained here: an artifact of public weights in the place of a trained tokenizer's.

Its fingerprint is a digest of what was imported; a config that gives it as `tokenizer.imported` has the artifact as the
result of train-tokenizer. torch is imported when something is imported.
"""

import json
import re
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from models.choices import DEFAULT_KEEP, DEFAULT_MASK, Mask
from models.sizes import check_filter_size, check_mask, tokenizer_shape
from pipeline.artifacts import SHORT, Manifest, broken_files, hash_file, read_manifest
from pipeline.config import Config
from pipeline.errors import ConfigError, ContractError, PipelineError
from pipeline.storage import Storage, open_storage, split_uri
from pipeline.workflow.importing import check_finite, committed_import, import_fingerprint, local_file, refused
from pipeline.workflow.preflight import check_packages

if TYPE_CHECKING:
    from models.tokenizers import TokenizerNetwork

SourceKind = Literal["vit", "sd-vae", "dc-ae", "detok"]

_STAGE = "train-tokenizer"
_CONFIG, _INDEX = "config.json", "model_index.json"
_WEIGHTS = ("model.safetensors", "diffusion_pytorch_model.safetensors")
_PICKLES = (".bin", ".pth", ".pt", ".ckpt", ".pkl", ".pickle")
_LISTED = 1000  # files that are looked at for what a folder has instead
_SAFE = "Convert it to safetensors where you trust it: nothing is unpickled here."


@dataclass(frozen=True)
class ImportUse:
    """How an imported tokenizer is used, which counts in its fingerprint: the images, and the mask of S_l."""

    image_size: int
    mask: Mask = DEFAULT_MASK
    keep: float = DEFAULT_KEEP


# --- at use ---


def import_faults(config: Config, made: Manifest | None) -> Iterator[PipelineError]:
    """What is wrong with the imported tokenizer of this config, if it has one; `made`: the artifact, if it is there."""
    own = config.tokenizer
    if own.imported is None:
        return
    if made is None:
        yield ContractError(
            f"tokenizer.imported {own.imported[:SHORT]} is not at {config.root}",
            f"Run `python -m pipeline import tokenizer {own.kind} URI` with the same --root, and set what it prints.",
        )
        return
    kind, network, used = made.details["kind"], made.details["network"], made.details["filter"]
    factor, channels = tokenizer_shape(kind, network)
    expected: dict[str, tuple[Any, Any]] = {
        "tokenizer.kind": (own.kind, kind),
        "tokenizer.patch_size": (own.patch_size, factor),
        "tokenizer.latent_dim": (own.latent_dim, channels),
        "tokenizer.mask": (own.mask, used["mask"]),
        "tokenizer.keep": (own.keep, used["keep"]),
        "data.image_size": (config.data.image_size, network["image_size"]),
    }
    for field, (given, known) in expected.items():
        if given != known:
            yield ContractError(
                f"{field} is {given}, but {made.name} was imported with {known}",
                f"Set {field}={known}, or import it again for another use.",
            )


# --- the import ---


def import_tokenizer(
    root: str, kind: SourceKind, uri: str, use: ImportUse, say: Callable[[str], None] = lambda _: None
) -> Manifest:
    """Make an artifact of the weights at `uri`: a folder with a config, or one file of safetensors.

    Whole files of an earlier import of the same stay. ConfigError if they are not of this kind or not safe to read.
    """
    storage = open_storage(root)
    check_packages("vit" if kind == "detok" else kind)
    with tempfile.TemporaryDirectory(prefix="dvae-import-") as folder:
        source = _fetched(uri, Path(folder))
        with refused(uri, "Give the folder or file of a tokenizer of this kind."):
            network = _opened(source, kind, use, uri)
        with refused(uri, "Choose another --mask, a larger --keep, or larger images (--image-size)."):
            check_mask(network.grid, use.mask, use.keep)
        with refused(uri, "Choose smaller images (--image-size)."):
            check_filter_size(network.grid)
        details = {
            "kind": network.kind,
            "network": network.network,
            "filter": {"mask": use.mask, "keep": use.keep},
            "source": {"kind": kind, "uri": source.uri, "sha256": hash_file(source.weights).sha256},
        }
        fingerprint = import_fingerprint(_STAGE, details)
        made = read_manifest(storage, _STAGE, fingerprint)
        if made is not None and not broken_files(storage, made):
            say(f"# {made.name} is there already")
            return made
        config = _config_of(fingerprint, details)
        return committed_import(storage, _STAGE, config, network.state_dict(), details, Path(folder))


@dataclass(frozen=True)
class _Source:
    """Local copies of what is imported."""

    weights: Path
    config: dict[str, Any] | None
    uri: str
    """Where they are from, from whatever folder it is read."""


def _fetched(uri: str, folder: Path) -> _Source:
    """ConfigError if there is nothing to import, or a pickle."""
    if uri.lower().endswith(_PICKLES):
        raise ConfigError(f"{uri} is a pickle, which can run code when it is read", _SAFE)
    if uri.endswith(".safetensors"):
        storage, name = split_uri(uri)
    else:
        storage = open_storage(uri)
        name = _weights_in(storage, uri)
    local = local_file(storage, name, folder, uri, "Give a folder, or a file of safetensors.")
    place = name if uri.endswith(".safetensors") else ""
    return _Source(local, _config_in(storage, uri), storage.uri(place))


def _weights_in(storage: Storage, uri: str) -> str:
    """The name of the weights in a folder."""
    for name in _WEIGHTS:
        if storage.exists(name):
            return name
    if storage.exists(_INDEX):
        raise ConfigError(
            f"{uri} is a whole pipeline of diffusers", f"Give the folder of its VAE: {uri.rstrip('/')}/vae."
        )
    names = [entry.path for entry in islice(storage.list(), _LISTED) if "/" not in entry.path]
    if parts := [name for name in names if re.search(r"-\d+-of-\d+\.safetensors$", name)]:
        raise ConfigError(f"{uri} has its weights in parts, the first is {parts[0]}", "Give one file of safetensors.")
    lacks = f"{uri} has no file {' or '.join(_WEIGHTS)}"
    if others := [name for name in names if name.endswith(".safetensors")]:
        raise ConfigError(f"{lacks}, but {', '.join(others)}", f"Give the file: {uri.rstrip('/')}/{others[0]}.")
    if pickles := [name for name in names if name.lower().endswith(_PICKLES)]:
        raise ConfigError(f"{uri} has {pickles[0]} alone, a pickle, which can run code when it is read", _SAFE)
    raise ConfigError(lacks, "Give the folder of a tokenizer, or one file.")


def _config_in(storage: Storage, uri: str) -> dict[str, Any] | None:
    try:
        config = json.loads(storage.read(_CONFIG))
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{storage.uri(_CONFIG)} is not JSON ({error})", "Correct the file.") from error
    if not isinstance(config, dict):
        raise ConfigError(f"{storage.uri(_CONFIG)} is not the config of a tokenizer", f"Look at what {uri} holds.")
    return config


def _opened(source: _Source, kind: SourceKind, use: ImportUse, uri: str) -> "TokenizerNetwork":
    """The network of the source's weights, in fp32. ValueError if they are of no such tokenizer, or a ConfigError."""
    from models.tensor_files import read_tensors
    from models.tokenizers.detok import detok_network, from_detok
    from models.tokenizers.folder import Described, described, restored

    weights = read_tensors(source.weights)
    if kind == "detok":
        weights = from_detok(weights)
        found = Described("vit", detok_network(weights))
    else:
        size = None if kind == "vit" else use.image_size  # a ViT has its own
        found = described(source.config if source.config is not None else _assumed(kind), size)
    if kind not in (found.kind, "detok"):
        raise ConfigError(
            f"{uri}: it is a {found.kind}, no {kind}", f"Run `python -m pipeline import tokenizer {found.kind} {uri}`."
        )
    factor, _ = tokenizer_shape(found.kind, found.network)
    if use.image_size % factor:
        raise ConfigError(
            f"{uri}: the factor {factor} does not divide image_size {use.image_size}",
            f"Give an --image-size that is a multiple of {factor}.",
        )
    if found.network["image_size"] != use.image_size:
        raise ConfigError(
            f"{uri}: it is for images of {found.network['image_size']} pixels, not {use.image_size}",
            f"Give --image-size {found.network['image_size']}.",
        )
    network = restored(found, weights, source.weights.name)
    check_finite(network.state_dict())
    return network


def _assumed(kind: SourceKind) -> dict[str, Any]:
    """The config of a file that comes without one: that of every public SD-VAE of f8d4."""
    from models.conv_sizes import SD_VAE

    if kind != "sd-vae":
        raise ValueError(f"there is no {_CONFIG} beside it")
    return {"_class_name": "AutoencoderKL", **SD_VAE}


def _config_of(fingerprint: str, details: dict[str, Any]) -> Config:
    """A config that uses the import; its other fields have their defaults."""
    factor, channels = tokenizer_shape(details["kind"], details["network"])
    own = {"kind": details["kind"], "imported": fingerprint, "patch_size": factor, "latent_dim": channels}
    size = details["network"]["image_size"]
    return Config.model_validate({"data": {"image_size": size}, "tokenizer": {**own, **details["filter"]}})


def preset_lines(manifest: Manifest) -> str:
    """The lines of a preset that use an imported tokenizer."""
    factor, channels = tokenizer_shape(manifest.details["kind"], manifest.details["network"])
    used = manifest.details["filter"]
    lines = [
        f"data: {{image_size: {manifest.details['network']['image_size']}}}",
        "tokenizer:",
        f"  kind: {manifest.details['kind']}",
        f"  imported: {manifest.fingerprint}",
        f"  patch_size: {factor}",
        f"  latent_dim: {channels}",
        f"  mask: {used['mask']}",
        f"  keep: {used['keep']}",
    ]
    return "\n".join(lines)
