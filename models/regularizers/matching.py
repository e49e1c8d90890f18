"""Spectrum matching by shared masks: the same high frequencies are removed from latent and image.

Shapes: B batch, C channels, H W pixels, D latent channels, h w latent grid, K cuts, N = 64 values of a block.
"""

import torch
from torch import Tensor

from ..sizes import MATCHED_BLOCK, check_matching
from ..spectral import dct_basis
from .base import Draw, Regularizer

CUTS = (8, 10, 12)  # diagonals of 15; they leave 28, 15 and 6 of the 64 coefficients


class MatchingRegularizer(Regularizer):
    """DSM, one of the two parts of spectrum matching (Ning et al. 2026, arXiv 2603.14645), a near relative of MLSR:

        L = d(M_k x, D(M_k z)) + ...,   k = 0, 8, 10 or 12, with equal chance, drawn once per step.

    M_k acts on each block of 8 x 8 cells of the latent, and of 8 x 8 pixels of the image, channel by channel: the
    orthonormal DCT-II, in which coefficients (u, v) with u + v >= 15 - k become zero, and its inverse. M_0 is the
    identity. All terms are of M_k x, the discriminator's real image too.

    It is published with KL of weight 0 and without the prior on the spectrum (`SpectrumPrior`), which is published
    without it. Latents of other than whole blocks are refused. Blocks are not scaled to the grid: one of 8 x 8 has a
    single block, so that M_k is a low pass of the whole latent, against one of every 8 x 8 pixels of the image.

    Raises:
        ValueError: the latent's side is not a multiple of 8.
    """

    projections: Tensor
    """(K, N, N) fp32, symmetric: M_k of a flattened block for each of CUTS, not in the state dict."""

    def __init__(self, grid: int) -> None:
        super().__init__()
        check_matching(grid)
        self.register_buffer("projections", torch.stack([_projection(cut) for cut in CUTS]).float(), persistent=False)

    def draw(self, generator: torch.Generator, batch: int) -> Draw:  # noqa: ARG002
        """k."""
        return Draw(cut=(0, *CUTS)[int(torch.randint(len(CUTS) + 1, (), generator=generator))])

    def latent(self, z_BDhw: Tensor, draw: Draw) -> Tensor:
        """M_k z, same dtype; computed in fp32, also under autocast."""
        return self._masked(z_BDhw, draw.cut)

    def image(self, x_BCHW: Tensor, draw: Draw) -> Tensor:
        """M_k x, same dtype; computed in fp32, also under autocast."""
        return self._masked(x_BCHW, draw.cut)

    def _masked(self, x_BCHW: Tensor, cut: int) -> Tensor:
        if cut == 0:
            return x_BCHW
        B, C, H, W = x_BCHW.shape
        rows, columns, side = H // MATCHED_BLOCK, W // MATCHED_BLOCK, MATCHED_BLOCK
        blocks = x_BCHW.float().reshape(B, C, rows, side, columns, side).transpose(3, 4).reshape(-1, side * side)
        with torch.autocast(x_BCHW.device.type, enabled=False):
            masked = blocks @ self.projections[CUTS.index(cut)]
        return masked.reshape(B, C, rows, columns, side, side).transpose(3, 4).reshape(B, C, H, W).to(x_BCHW.dtype)


def _projection(cut: int) -> Tensor:
    """(N, N) fp64: transform, mask and inverse of a block."""
    basis, diagonal = dct_basis(MATCHED_BLOCK), torch.arange(MATCHED_BLOCK)
    kept = (diagonal[:, None] + diagonal[None, :] < 2 * MATCHED_BLOCK - 1 - cut).double()
    transform = torch.kron(basis, basis)
    return transform.T @ (kept.flatten()[:, None] * transform)
