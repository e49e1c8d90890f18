"""Spectrum matching by a prior: the spectrum of a latent is drawn to that of its image, flattened by a power.

Shapes: B batch, C channels, H W pixels, D latent channels, h w latent grid, N = h*w, R radius bins.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ..resize import resize
from ..spectral import dct_basis
from .base import Regularizer

BINS = 16
_EPS = 1e-8
_BLUR_SIGMA, _BLUR_RADIUS = 1.2, 3  # pixels
_UNBLURRED_GRID = 32


class SpectrumPrior(Regularizer):
    """ESM, one of the two parts of spectrum matching (Ning et al. 2026, arXiv 2603.14645): an added term,

        L = d(x, D(z)) + ... + w KL(p || q), mean over the batch, with the shares of 16 bins of radius, r = 0 to 15,
        p ~ log(1 + (r + 1)^delta s_x(r)),   q ~ log(1 + s_z(r)),   each with the sum 1.

    s(r) is the mean over the cells (u, v) of bin r = min(floor(16 |(u, v)| / |(h - 1, w - 1)|), 15) of the power P: the
    squared coefficients of the orthonormal DCT-II, mean over channels, with P(0, 0) = 0. s_z is that of z, s_x that of
    the image at the latent's size: by a bicubic kernel without antialiasing, behind a Gaussian of 1.2 pixels (7 x 7,
    zeros outside) but for latents of 32 x 32, as in the published code. An image's power falls by a power of the
    frequency; that of its latent is to fall by delta less. The latent is decoded as it is, to the image as it is.

    w is `LossWeights.spectrum`; published with w = .01, delta = 1 and KL of weight 0, never together with the shared
    masks (`MatchingRegularizer`). On small grids bins without a cell have no share.

    Args:
        grid: side of the latent.
        delta: the power by which the target is flattened; 0 is the image's own spectrum.

    Raises:
        ValueError: the latent is a single cell, which has no spectrum.
    """

    basis: Tensor
    """(h, h) fp32: the DCT of a side, not in the state."""
    bins_NR: Tensor
    """fp32: the weight of each cell in the mean of its bin; 0 for (0, 0), which its bin counts. Not in the state."""
    flattening_R: Tensor
    """fp32: (r + 1)^delta, not in the state."""

    def __init__(self, grid: int, delta: float = 1.0) -> None:
        super().__init__()
        if grid < 2:
            raise ValueError(f"a {grid} x {grid} latent has no spectrum")
        self.grid = grid
        self.register_buffer("basis", dct_basis(grid).float(), persistent=False)
        self.register_buffer("bins_NR", _bins(grid).float(), persistent=False)
        self.register_buffer("flattening_R", torch.arange(1.0, BINS + 1) ** delta, persistent=False)

    def penalties(self, z_BDhw: Tensor, x_BCHW: Tensor) -> dict[str, Tensor]:
        """`spectrum`, in nats: KL(p || q), differentiable in z; computed in fp32, also under autocast."""
        with torch.autocast(z_BDhw.device.type, enabled=False):
            target_BR = _shares(self.flattening_R * self._spectrum(self._at_latent_size(x_BCHW.float())))
            share_BR = _shares(self._spectrum(z_BDhw.float()))
            return {"spectrum": (target_BR * ((target_BR + _EPS).log() - (share_BR + _EPS).log())).sum(1).mean()}

    def _at_latent_size(self, x_BCHW: Tensor) -> Tensor:
        return resize(
            x_BCHW if self.grid == _UNBLURRED_GRID else _blurred(x_BCHW), self.grid, "bicubic", antialias=False
        )

    def _spectrum(self, x_BChw: Tensor) -> Tensor:
        """s, (B, R)."""
        power_Bhw = (self.basis @ x_BChw @ self.basis.mT).square().mean(1)
        return power_Bhw.flatten(1) @ self.bins_NR


def _shares(spectrum_BR: Tensor) -> Tensor:
    logs_BR = spectrum_BR.log1p()
    return logs_BR / (logs_BR.sum(1, keepdim=True) + _EPS)


def _bins(grid: int) -> Tensor:
    """(N, R) fp64, of `SpectrumPrior.bins_NR`."""
    k = torch.arange(grid, dtype=torch.float64)
    radius_hw = torch.hypot(k[:, None], k[None, :])
    bin_N = (BINS * radius_hw / radius_hw[-1, -1]).floor().long().clamp(max=BINS - 1).flatten()
    inside_NR = F.one_hot(bin_N, BINS).double()
    mean_NR = inside_NR / inside_NR.sum(0).clamp(min=1.0)
    mean_NR[0] = 0.0
    return mean_NR


def _blurred(x_BCHW: Tensor) -> Tensor:
    weights = [math.exp(-(offset**2) / (2 * _BLUR_SIGMA**2)) for offset in range(-_BLUR_RADIUS, _BLUR_RADIUS + 1)]
    for axis in (-2, -1):
        size = x_BCHW.shape[axis]
        padding = (0, 0, _BLUR_RADIUS, _BLUR_RADIUS) if axis == -2 else (_BLUR_RADIUS, _BLUR_RADIUS)
        padded = F.pad(x_BCHW, padding)
        parts = [w / sum(weights) * padded.narrow(axis, k, size) for k, w in enumerate(weights)]
        x_BCHW = torch.stack(parts).sum(0)
    return x_BCHW
