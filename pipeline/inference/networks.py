"""Loads networks from artifacts: builds modules in eval mode from a trainer's manifest and weights.

For Ray tasks and actors: a process caches the networks it has loaded, since Ray reuses idle workers.
"""

from functools import lru_cache
from pathlib import Path

import torch
from safetensors.torch import load_file

from models.generator import ImageGenerator, LatentStatistics
from models.sit import SiT
from models.spectral import LatentFilter
from models.tokenizers import TokenizerNetwork, build
from pipeline.artifacts import Manifest, local_copies
from pipeline.inference.details import sit_details, sit_weights
from pipeline.storage import Storage, cache_folder, open_storage


def task_device() -> torch.device:
    """The device of this Ray task or actor: the GPU it was given, or the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def load_tokenizer(storage: Storage, manifest: Manifest, device: torch.device) -> tuple[TokenizerNetwork, LatentFilter]:
    """The tokenizer of a train-tokenizer artifact (of a trained one the EMA), in eval mode, and S_l with its mask."""
    return _tokenizer(storage.root, manifest.model_dump_json(), str(device))


@lru_cache(maxsize=2)
def _tokenizer(root: str, manifest_json: str, device: str) -> tuple[TokenizerNetwork, LatentFilter]:
    manifest = Manifest.model_validate_json(manifest_json)
    network = build(manifest.details["kind"], manifest.details["network"])
    network.load_state_dict(load_file(_local(root, manifest, "weights.safetensors")))
    latent_filter = LatentFilter(network.grid, **manifest.details["filter"])
    return network.eval().requires_grad_(False).to(device), latent_filter.to(device)


def load_sit(
    storage: Storage,
    manifest: Manifest,
    device: torch.device,
    decay: float | None = None,
    milestone: int | None = None,
) -> SiT:
    """The generator of a train-sit artifact, in eval mode: its average of this decay, the first for None.

    It is that of the last step, or of a milestone. ContractError if it has no such average.
    """
    return _sit(storage.root, manifest.model_dump_json(), str(device), sit_weights(manifest, decay, milestone))


@lru_cache(maxsize=2)
def _sit(root: str, manifest_json: str, device: str, weights: str) -> SiT:
    manifest = Manifest.model_validate_json(manifest_json)
    network = SiT(**sit_details(manifest)["network"])
    network.load_state_dict(load_file(_local(root, manifest, weights)))
    return network.eval().requires_grad_(False).to(device)


def load_generator(
    storage: Storage,
    inputs: dict[str, Manifest],
    device: torch.device,
    decay: float | None,
    milestone: int | None = None,
) -> ImageGenerator:
    """An image generator from labels: SiT, the statistics that normalise its latents, the tokenizer's decoder.

    `decay`, `milestone` and errors as of `load_sit`.
    """
    tokenizer, _ = load_tokenizer(storage, inputs["train-tokenizer"], device)
    sit = load_sit(storage, inputs["train-sit"], device, decay, milestone)
    details = sit_details(inputs["train-sit"])
    statistics = LatentStatistics(**details["statistics"])
    return ImageGenerator(tokenizer, sit, statistics, details["prediction"], details["path"]).to(device)


def _local(root: str, manifest: Manifest, name: str) -> Path:
    return local_copies(open_storage(root), manifest, [name], cache_folder() / "weights")[name]
