"""SD-VAE (Rombach et al. 2022): diffusers' AutoencoderKL, with our interface and its own names of weights.

Shapes: B batch, C channels, H W pixels, D latent channels, h w latent grid, K width.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..recomputing import run_block
from .base import DiagonalGaussian, TokenizerNetwork
from .from_diffusers import diffusers_network

_LEGACY = re.compile(r"(.*\.attentions\.\d+)\.(query|key|value|proj_attn)\.(weight|bias)")
_NOW = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


class KLAutoencoder(TokenizerNetwork):
    """A convolutional encoder and decoder, with attention between all positions in the middle of each.

    Args:
        image_size: side of the training images in pixels.
        block_out_channels: of each resolution; f is 2 to the power of their number less one.
        layers_per_block: residual blocks of a resolution in the encoder; the decoder has one more.
        latent_channels: d.
        norm_num_groups: of every GroupNorm.
        act_fn, use_quant_conv, use_post_quant_conv, mid_block_add_attention: as in diffusers.

    Raises:
        ValueError: diffusers is missing or refuses the arguments, or the factor does not divide the image.
    """

    def __init__(
        self,
        *,
        image_size: int,
        block_out_channels: Sequence[int],
        layers_per_block: int,
        latent_channels: int,
        norm_num_groups: int = 32,
        **others: Any,
    ) -> None:
        arguments = {
            "block_out_channels": list(block_out_channels),
            "layers_per_block": layers_per_block,
            "latent_channels": latent_channels,
            "norm_num_groups": norm_num_groups,
            **others,
        }
        super().__init__("sd-vae", {"image_size": image_size, **arguments})
        network: Any = diffusers_network("AutoencoderKL", arguments | _blocks(len(block_out_channels)))
        self.encoder, self.decoder = network.encoder, network.decoder
        self.quant_conv: nn.Module | None = network.quant_conv
        self.post_quant_conv: nn.Module | None = network.post_quant_conv

    def encode(self, x_BCHW: Tensor) -> DiagonalGaussian:
        """Images in [-1, 1], sides multiples of f, to fp32 moments (the last layers run in fp32 under autocast)."""
        x_BKHW = self.encoder.conv_in(x_BCHW)
        for block in (*self.encoder.down_blocks, self.encoder.mid_block):
            x_BKHW = run_block(block, x_BKHW, recomputes=self.recomputes)
        with torch.autocast(x_BCHW.device.type, enabled=False):
            moments = _head(self.encoder, x_BKHW.float())
            if self.quant_conv is not None:
                moments = self.quant_conv(moments)
        return DiagonalGaussian.of(*moments.chunk(2, dim=1))

    def decode(self, z_BDhw: Tensor) -> Tensor:
        """Latents of any grid to images in fp32, nominally in [-1, 1] but not clamped."""
        x_BKhw = z_BDhw if self.post_quant_conv is None else self.post_quant_conv(z_BDhw)
        x_BKhw = self.decoder.conv_in(x_BKhw)
        for block in (self.decoder.mid_block, *self.decoder.up_blocks):
            x_BKhw = run_block(block, x_BKhw, recomputes=self.recomputes)
        return _head(self.decoder, x_BKhw).float()


def _head(half: Any, x_BKhw: Tensor) -> Tensor:
    out: Tensor = half.conv_out(half.conv_act(half.conv_norm_out(x_BKhw)))
    return out


def _blocks(count: int) -> dict[str, list[str]]:
    return {"down_block_types": ["DownEncoderBlock2D"] * count, "up_block_types": ["UpDecoderBlock2D"] * count}


def public_config(network: Mapping[str, Any]) -> dict[str, Any]:
    """diffusers' config.json of a `KLAutoencoder` with these arguments."""
    arguments = {name: value for name, value in network.items() if name != "image_size"}
    return {
        "_class_name": "AutoencoderKL",
        **_blocks(len(network["block_out_channels"])),
        **arguments,
        "sample_size": network["image_size"],
        "scaling_factor": 1.0,
    }


def from_public(theirs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of `KLAutoencoder` for one of diffusers. Older files have other names in the attention."""
    ours = {}
    for name, tensor in theirs.items():
        legacy = _LEGACY.fullmatch(name)
        ours[f"{legacy[1]}.{_NOW[legacy[2]]}.{legacy[3]}" if legacy else name] = tensor
    return ours
