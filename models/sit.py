"""SiT, the transformer that predicts the velocity of latents (Ma et al. 2024), with adaLN-Zero as in DiT.

Its loss is in `objective` and `paths`, sampling in `sampler`.
Shapes: B batch, D latent channels, h w latent grid, N tokens, K width, A heads, E head width.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .recomputing import run_block
from .sizes import MLP_RATIO, SIT_SIZES, TIMESTEP_CHANNELS

__all__ = ["SIT_SIZES", "SiT", "sincos_positions", "time_frequencies"]

_NORM_EPS = 1e-6
_MAX_PERIOD = 10_000.0


class SiT(nn.Module):
    """Frozen 2-D sin-cos positions, adaLN-Zero, GELU-tanh MLP of ratio 4; the output is zero at initialisation.

    Args:
        grid: side of the latent, h = w.
        latent_dim: latent channels D.
        classes: labels are 0 to classes - 1; the label `classes` is the null label for guidance.
        width, depth, heads: those of the paper are in SIT_SIZES.
        patch_size: side of a token in latent cells.
        qk_norm: a LayerNorm of each head's queries and keys.
        time_scale: t enters the sinusoids times this; 1 in SiT, REPA and SRA.

    Raises:
        ValueError: the patch does not divide the grid, or `width` is not a multiple of 4 (positions) or of `heads`.
    """

    positions: Tensor
    """(1, N, K) fp32, not in the state dict and not a parameter."""

    def __init__(
        self,
        *,
        grid: int,
        latent_dim: int,
        classes: int,
        width: int,
        depth: int,
        heads: int,
        patch_size: int = 1,
        qk_norm: bool = False,
        time_scale: float = 1.0,
    ) -> None:
        super().__init__()
        if grid % patch_size:
            raise ValueError(f"patch_size {patch_size} does not divide the latent grid {grid}")
        if width % heads or width % 4:
            raise ValueError(f"width {width} is not a multiple of 4 and of heads ({heads})")
        self.grid, self.latent_dim, self.patch_size = grid, latent_dim, patch_size
        self.null_label, self.time_scale = classes, time_scale
        self.recomputes = False  # whether a backward pass computes the blocks' activations again: `recomputing.py`
        patch = latent_dim * patch_size**2
        self.embed = nn.Linear(patch, width)
        self.register_buffer("positions", sincos_positions(grid // patch_size, width), persistent=False)
        self.time_in = nn.Linear(TIMESTEP_CHANNELS, width)
        self.time_out = nn.Linear(width, width)
        self.label_embed = nn.Embedding(classes + 1, width)
        self.blocks = nn.ModuleList(Block(width, heads, qk_norm) for _ in range(depth))
        self.final_modulation = nn.Linear(width, 2 * width)
        self.final_layer = nn.Linear(width, patch)
        self.register_load_state_dict_pre_hook(_with_final_layer)  # type: ignore[no-untyped-call]
        self._initialize()

    def _initialize(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        for weight in (self.label_embed.weight, self.time_in.weight, self.time_out.weight):
            nn.init.normal_(weight, std=0.02)
        modulations = [block.modulation for block in self.blocks if isinstance(block, Block)]
        for layer in (*modulations, self.final_modulation, self.final_layer):
            nn.init.zeros_(layer.weight)

    def forward(
        self, z_BDhw: Tensor, t_B: Tensor, label_B: Tensor, feature_block: int | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        """The prediction (velocity, unless trained for another) at z_t.

        Args:
            z_BDhw: noisy latents.
            t_B: (B,) time in [0, 1]; 0 is data and 1 is noise.
            label_B: (B,) long in [0, classes]; `classes` is the null label.
            feature_block: a block from 1 to depth whose output is returned too.

        Returns:
            velocity_BDhw in fp32; with `feature_block`, (velocity_BDhw, features_BNK after that block).

        Raises:
            ValueError: the block does not exist.
        """
        self._check_block(feature_block)
        tokens_BNK, condition_BK = self._embed(z_BDhw, t_B, label_B)
        features_BNK = tokens_BNK
        for number, block in enumerate(self.blocks, start=1):
            tokens_BNK = run_block(block, tokens_BNK, condition_BK, recomputes=self.recomputes)
            if number == feature_block:
                features_BNK = tokens_BNK
        velocity_BDhw = self._unembed(tokens_BNK, condition_BK)
        return velocity_BDhw if feature_block is None else (velocity_BDhw, features_BNK)

    def features(self, z_BDhw: Tensor, t_B: Tensor, label_B: Tensor, block: int) -> Tensor:
        """features_BNK after `block` (from 1); later blocks are not run. Arguments and errors as in `forward`."""
        self._check_block(block)
        tokens_BNK, condition_BK = self._embed(z_BDhw, t_B, label_B)
        for layer in self.blocks[:block]:
            tokens_BNK = layer(tokens_BNK, condition_BK)
        return tokens_BNK

    def _check_block(self, block: int | None) -> None:
        if block is not None and not 1 <= block <= len(self.blocks):
            raise ValueError(f"block {block} is not among the blocks 1 to {len(self.blocks)} of the SiT")

    def _embed(self, z_BDhw: Tensor, t_B: Tensor, label_B: Tensor) -> tuple[Tensor, Tensor]:
        patches_BPhw = F.pixel_unshuffle(z_BDhw, self.patch_size)
        # The positions are fp32, so under autocast the residual stream stays fp32.
        tokens_BNK = self.embed(patches_BPhw.flatten(2).transpose(1, 2)) + self.positions
        time_BK = self.time_out(F.silu(self.time_in(_sincos_time(t_B, self.time_scale))))
        return tokens_BNK, F.silu(time_BK + self.label_embed(label_B))

    def _unembed(self, tokens_BNK: Tensor, condition_BK: Tensor) -> Tensor:
        shift, scale = self.final_modulation(condition_BK)[:, None].chunk(2, dim=-1)
        patches_BNP = self.final_layer(_modulated_norm(tokens_BNK, shift, scale))
        side = self.grid // self.patch_size
        patches_BPhw = patches_BNP.transpose(1, 2).reshape(len(patches_BNP), -1, side, side)
        velocity_BDhw: Tensor = F.pixel_shuffle(patches_BPhw, self.patch_size)
        return velocity_BDhw.float()


class Block(nn.Module):
    """Attention and MLP on tokens_BNK, each modulated and gated by the condition; the identity at initialisation."""

    def __init__(self, width: int, heads: int, qk_norm: bool) -> None:
        super().__init__()
        self.heads = heads
        self.modulation = nn.Linear(width, 6 * width)
        self.qkv = nn.Linear(width, 3 * width)
        self.q_norm: nn.Module = nn.LayerNorm(width // heads) if qk_norm else nn.Identity()
        self.k_norm: nn.Module = nn.LayerNorm(width // heads) if qk_norm else nn.Identity()
        self.attention_out = nn.Linear(width, width)
        self.mlp_in = nn.Linear(width, MLP_RATIO * width)
        self.mlp_out = nn.Linear(MLP_RATIO * width, width)

    def forward(self, x_BNK: Tensor, condition_BK: Tensor) -> Tensor:
        """`condition_BK` is SiLU(time + label); returns x_BNK."""
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = self.modulation(condition_BK)[:, None].chunk(6, dim=-1)
        x_BNK = x_BNK + gate_a * self._attend(_modulated_norm(x_BNK, shift_a, scale_a))
        hidden = F.gelu(self.mlp_in(_modulated_norm(x_BNK, shift_m, scale_m)), approximate="tanh")
        out_BNK: Tensor = x_BNK + gate_m * self.mlp_out(hidden)
        return out_BNK

    def _attend(self, x_BNK: Tensor) -> Tensor:
        qkv_3BANE = self.qkv(x_BNK).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        q, k, v = qkv_3BANE.unbind(0)
        attended_BANE = F.scaled_dot_product_attention(self.q_norm(q).to(v), self.k_norm(k).to(v), v)
        out_BNK: Tensor = self.attention_out(attended_BANE.transpose(1, 2).flatten(2))
        return out_BNK


def _modulated_norm(x_BNK: Tensor, shift_B1K: Tensor, scale_B1K: Tensor) -> Tensor:
    return F.layer_norm(x_BNK, x_BNK.shape[-1:], eps=_NORM_EPS) * (1 + scale_B1K) + shift_B1K


def _with_final_layer(module: nn.Module, state: dict[str, Tensor], prefix: str, *_: object) -> None:  # noqa: ARG001
    """Renames keys of earlier artifacts and checkpoints, in which the final layer was `last`."""
    for key in [key for key in state if key.startswith((f"{prefix}last.", f"{prefix}last_modulation."))]:
        state[key.replace(f"{prefix}last_", f"{prefix}final_").replace(f"{prefix}last.", f"{prefix}final_layer.")] = (
            state.pop(key)
        )


def time_frequencies(device: torch.device) -> Tensor:
    """(128,) fp32: the geometric frequencies from 1 to 1/10000 at which t is embedded."""
    half = TIMESTEP_CHANNELS // 2
    exponent = torch.arange(half, dtype=torch.float32, device=device) / half
    return torch.exp(-math.log(_MAX_PERIOD) * exponent)


def _sincos_time(t_B: Tensor, scale: float) -> Tensor:
    """(B, 256) fp32: cosines, then sines, of `scale` t at `time_frequencies`."""
    angle = scale * t_B.float()[:, None] * time_frequencies(t_B.device)
    return torch.cat([angle.cos(), angle.sin()], dim=-1)


def sincos_positions(side: int, width: int) -> Tensor:
    """(1, N, K) fp32: half of the channels for the column, half for the row, sines then cosines in each."""
    frequency = _MAX_PERIOD ** -(torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    angle = torch.arange(side, dtype=torch.float64)[:, None] * frequency
    axis = torch.cat([angle.sin(), angle.cos()], dim=-1)
    column = axis[None, :, :].expand(side, side, -1)
    row = axis[:, None, :].expand(side, side, -1)
    return torch.cat([column, row], dim=-1).flatten(0, 1)[None].float()
