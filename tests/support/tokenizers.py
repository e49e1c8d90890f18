"""Tiny tokenizers of every kind, for 32-pixel images, with random weights."""

from pathlib import Path
from typing import Any

import torch

from models.choices import TokenizerKind
from models.tokenizers import TokenizerNetwork, build, save

_DC_HALF: dict[str, Any] = {
    "block_types": ["ResBlock", "EfficientViTBlock", "EfficientViTBlock"],
    "block_out_channels": [8, 16, 16],
    "layers_per_block": [0, 1, 1],
    "qkv_multiscales": [[], [], [5]],
}
NETWORKS: dict[TokenizerKind, dict[str, Any]] = {
    "vit": {
        "image_size": 32, "patch_size": 4, "latent_dim": 3, "width": 16, "depth": 1, "heads": 2, "hidden": 24,
    },
    "sd-vae": {
        "image_size": 32, "block_out_channels": [8, 16, 16], "layers_per_block": 1, "latent_channels": 3,
        "norm_num_groups": 4,
    },
    "dc-ae": {
        "image_size": 32, "latent_channels": 4, "attention_head_dim": 4,
        **{f"{half}_{name}": value for half in ("encoder", "decoder") for name, value in _DC_HALF.items()},
    },
}  # fmt: skip
SD_VAE_SETS = [
    "tokenizer.kind=sd-vae", "tokenizer.latent_dim=3", "tokenizer.block_out_channels=[8,16,16]",
    "tokenizer.layers_per_block=1", "tokenizer.norm_num_groups=4", "tokenizer.width=null", "tokenizer.depth=null",
    "tokenizer.heads=null", "tokenizer.hidden=null",
]  # fmt: skip


def random_tokenizer(kind: TokenizerKind, **changes: Any) -> TokenizerNetwork:
    """In eval mode."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build(kind, {**NETWORKS[kind], **changes}).eval().requires_grad_(False)


def saved_tokenizer(folder: Path, kind: TokenizerKind, **changes: Any) -> TokenizerNetwork:
    """One that has been saved to a folder."""
    network = random_tokenizer(kind, **changes)
    save(folder, kind, network.network, network.state_dict())
    return network


def some_images(count: int = 2, size: int = 32) -> torch.Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(1)) * 2 - 1
