"""The ViT autoencoder of the paper: images to the moments of a latent, latents to images.

The architecture is DeTok-BB (Yang et al. 2025) without its masking and noise; `detok.py` reads its public weights.
Losses are in `reconstruction`.
Shapes: B batch, C channels, H W pixels, D latent channels, h w latent grid, N = h*w tokens, K width, A heads, E head
width, P values of a patch.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..recomputing import run_block
from .base import DiagonalGaussian, TokenizerNetwork

_RGB = 3
_NORM_EPS = 1e-6
_ROPE_TURNS = (7.0, 7e-4)  # full turns across the latent's side: of the fastest and of the slowest channel


class Tokenizer(TokenizerNetwork):
    """ViT encoder and decoder: pre-norm RMSNorm, SwiGLU, learned positions with 2-D RoPE, a bias on every layer.

    Each half has a norm before its first block and one behind its last.

    Args:
        image_size: side of the training images in pixels.
        patch_size: side of a patch, the downsampling factor f.
        latent_dim: latent channels d.
        width, heads, hidden: of each block; `hidden` is the inner width of SwiGLU.
        depth: blocks in the encoder, and in the decoder.
        channels: image channels.

    Raises:
        ValueError: the patch does not divide the image, or `width` is not a multiple of 4 x `heads` (2-D RoPE).
    """

    rope_N2E: Tensor
    """`rotary_table` of the training grid, not in the state dict."""

    def __init__(
        self,
        *,
        image_size: int,
        patch_size: int,
        latent_dim: int,
        width: int,
        depth: int,
        heads: int,
        hidden: int,
        channels: int = _RGB,
    ) -> None:
        network = {
            "image_size": image_size,
            "patch_size": patch_size,
            "latent_dim": latent_dim,
            "width": width,
            "depth": depth,
            "heads": heads,
            "hidden": hidden,
        }
        super().__init__("vit", network if channels == _RGB else {**network, "channels": channels})
        if width % (4 * heads):
            raise ValueError(f"width {width} is not a multiple of 4 x heads ({4 * heads}), which 2-D RoPE requires")
        self.patch_size, self.heads = patch_size, heads
        patch = channels * patch_size**2
        # Convolutions with stride equal to kernel size, and 1x1 convolutions over tokens, are written as Linear layers.
        self.patch_embed = nn.Linear(patch, width)
        self.encoder_positions = nn.Parameter(torch.empty(1, self.grid**2, width))
        self.encoder_input_norm = nn.RMSNorm(width, eps=_NORM_EPS)
        self.encoder_blocks = nn.ModuleList(Block(width, heads, hidden) for _ in range(depth))
        self.encoder_norm = nn.RMSNorm(width, eps=_NORM_EPS)
        self.moments_head = nn.Linear(width, 2 * latent_dim)
        self.latent_embed = nn.Linear(latent_dim, width)
        self.decoder_positions = nn.Parameter(torch.empty(1, self.grid**2, width))
        self.decoder_input_norm = nn.RMSNorm(width, eps=_NORM_EPS)
        self.decoder_blocks = nn.ModuleList(Block(width, heads, hidden) for _ in range(depth))
        self.decoder_norm = nn.RMSNorm(width, eps=_NORM_EPS)
        self.pixel_head = nn.Linear(width, patch)
        self.pixel_conv = nn.Conv2d(channels, channels, 3, padding=1)
        rope_N2E = rotary_table(self.grid, self.grid, width // heads)
        self.register_buffer("rope_N2E", rope_N2E, persistent=False)
        self._initialize()

    def _initialize(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        for table in (self.encoder_positions, self.decoder_positions):
            nn.init.trunc_normal_(table, std=0.02)

    def encode(self, x_BCHW: Tensor) -> DiagonalGaussian:
        """Images in [-1, 1], sides multiples of the patch, to fp32 moments (the head runs in fp32 under autocast)."""
        h, w = (side // self.patch_size for side in x_BCHW.shape[-2:])
        tokens_BNK = self.patch_embed(_patches(x_BCHW, self.patch_size))
        tokens_BNK = self._transform(
            tokens_BNK, self.encoder_positions, self.encoder_input_norm, self.encoder_blocks, h, w
        )
        with torch.autocast(x_BCHW.device.type, enabled=False):
            moments_BNM = self.moments_head(self.encoder_norm(tokens_BNK.float()))
        return DiagonalGaussian.of(*_image(moments_BNM, h, w).chunk(2, dim=1))

    def decode(self, z_BDhw: Tensor) -> Tensor:
        """Latents of any grid to images in fp32, nominally in [-1, 1] but not clamped."""
        h, w = z_BDhw.shape[-2:]
        tokens_BNK = self.latent_embed(_tokens(z_BDhw))
        tokens_BNK = self._transform(
            tokens_BNK, self.decoder_positions, self.decoder_input_norm, self.decoder_blocks, h, w
        )
        patches_BNP = self.pixel_head(self.decoder_norm(tokens_BNK))
        x_BCHW: Tensor = self.pixel_conv(F.pixel_shuffle(_image(patches_BNP, h, w), self.patch_size))
        return x_BCHW.float()

    def _transform(
        self, tokens_BNK: Tensor, positions: Tensor, norm: nn.Module, blocks: nn.ModuleList, h: int, w: int
    ) -> Tensor:
        rope_N2E = self.rope_N2E
        if (h, w) != (self.grid, self.grid):
            positions = _resize_positions(positions, self.grid, h, w)
            rope_N2E = rotary_table(h, w, rope_N2E.shape[-1]).to(rope_N2E.device, non_blocking=True)
        tokens_BNK = norm(tokens_BNK + positions)  # fp32 from here on: autocast does not change the residual stream
        for block in blocks:
            tokens_BNK = run_block(block, tokens_BNK, rope_N2E, recomputes=self.recomputes)
        return tokens_BNK


class Block(nn.Module):
    """x + attention(norm(x)), then x + SwiGLU(norm(x)), on tokens_BNK, with rotary positions on queries and keys."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.RMSNorm(width, eps=_NORM_EPS)
        self.qkv = nn.Linear(width, 3 * width)
        self.attention_out = nn.Linear(width, width)
        self.mlp_norm = nn.RMSNorm(width, eps=_NORM_EPS)
        self.mlp_in = nn.Linear(width, 2 * hidden)
        self.mlp_out = nn.Linear(hidden, width)

    def forward(self, x_BNK: Tensor, rope_N2E: Tensor) -> Tensor:
        """`rope_N2E` from `rotary_table`; returns x_BNK."""
        x_BNK = x_BNK + self._attend(self.attention_norm(x_BNK), rope_N2E)
        gate, value = self.mlp_in(self.mlp_norm(x_BNK)).chunk(2, dim=-1)
        mlp_BNK: Tensor = self.mlp_out(F.silu(gate) * value)
        return x_BNK + mlp_BNK

    def _attend(self, x_BNK: Tensor, rope_N2E: Tensor) -> Tensor:
        qkv_3BANE = self.qkv(x_BNK).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        q, k, v = qkv_3BANE.unbind(0)
        attended_BANE = F.scaled_dot_product_attention(_rotate(q, rope_N2E), _rotate(k, rope_N2E), v)
        out_BNK: Tensor = self.attention_out(attended_BANE.transpose(1, 2).flatten(2))
        return out_BNK


def rotary_table(h: int, w: int, head_width: int) -> Tensor:
    """(N, 2, E) fp32: cosines and sines of DeTok's 2-D RoPE, for `_rotate`.

    A row or column lies at a position from 0 to 1 along its side, whatever the grid. The first half of the channels
    turns with the row, the second with the column: channel i of a half by 2 pi f_i radians over the whole side, with
    f_i falling geometrically from 7 to 7e-4 over a quarter of the head, and again over the next. So the two channels of
    a pair turn by different angles, unlike those of Su et al. 2021, and the product of a query and a key does not
    depend on their distance alone.
    """
    fastest, slowest = _ROPE_TURNS
    turns = fastest * (fastest / slowest) ** torch.linspace(0, -1, head_width // 4, dtype=torch.float64)
    angle = 2 * math.pi * turns.repeat(2)
    y = torch.linspace(0, 1, h, dtype=torch.float64)[:, None, None] * angle
    x = torch.linspace(0, 1, w, dtype=torch.float64)[None, :, None] * angle
    angle_NE = torch.cat([y.expand(h, w, -1), x.expand(h, w, -1)], dim=-1).flatten(0, 1)
    return torch.stack([angle_NE.cos(), angle_NE.sin()], dim=1).float()


def _rotate(x_BANE: Tensor, rope_N2E: Tensor) -> Tensor:
    """Rotate channel 2i with channel 2i + 1, each by its own angle."""
    cos_NE, sin_NE = rope_N2E.unbind(1)
    first, second = x_BANE.view(*x_BANE.shape[:-1], -1, 2).unbind(-1)
    turned_BANE = torch.stack([-second, first], dim=-1).flatten(-2)
    return (x_BANE * cos_NE + turned_BANE * sin_NE).to(x_BANE.dtype)


def _resize_positions(positions_1NK: Tensor, grid: int, h: int, w: int) -> Tensor:
    table = F.interpolate(_image(positions_1NK, grid, grid), (h, w), mode="bilinear", align_corners=False)
    return _tokens(table)


def _patches(x_BCHW: Tensor, patch: int) -> Tensor:
    """Patches (B, N, P), with P ordered as by `F.pixel_unshuffle`, which takes three times as long on a CPU."""
    B, C, H, W = x_BCHW.shape
    split_BChpwp = x_BCHW.reshape(B, C, H // patch, patch, W // patch, patch)
    return split_BChpwp.permute(0, 2, 4, 1, 3, 5).reshape(B, -1, C * patch**2)


def _tokens(x_BChw: Tensor) -> Tensor:
    return x_BChw.flatten(2).transpose(1, 2)


def _image(x_BNC: Tensor, h: int, w: int) -> Tensor:
    return x_BNC.transpose(1, 2).reshape(x_BNC.shape[0], x_BNC.shape[2], h, w)
