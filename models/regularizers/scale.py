"""Scale equivariance: the scaled latent is decoded too, and compared with the scaled image.

Shapes: B batch, C channels, H W pixels, D latent channels, h w latent grid.
"""

import torch
from torch import Tensor

from ..sizes import scaled_sides
from .base import Draw, Regularizer


class ScaleRegularizer(Regularizer):
    """Scale equivariance (Skorokhodov et al. 2025, arXiv 2502.14831): a second reconstruction in every step,

        L = d(x, D(z)) + ... + w d'(s x, D(s z)),   s = 1/2 or 1/4, with equal chance, drawn once per step.

    Both sides are scaled by the mean of 2 x 2 or 4 x 4 cells; the image is encoded once, whole, and both decodings
    have gradients for encoder and decoder. d' has the pixel and perceptual terms of d, with their weights; KL and the
    adversarial term are of the whole image alone. The published code takes this mean or a bilinear kernel.
    w is `LossWeights.scale`: the authors' is not known, the default of 0.25 is that of a reimplementation.

    A scale is left out where it leaves no whole cells, or fewer than `smallest_side`. The tokenizer must decode
    latents of other sizes, as `vit.Tokenizer` does.

    Raises:
        ValueError: no scale is left.
    """

    def __init__(self, grid: int, smallest_side: int = 1) -> None:
        super().__init__()
        self.grid, self.sides = grid, scaled_sides(grid, smallest_side)
        if not self.sides:
            raise ValueError(
                f"a {grid} x {grid} latent has no half or quarter of whole cells, and of {smallest_side} at least"
            )

    def draw(self, generator: torch.Generator, batch: int) -> Draw:  # noqa: ARG002
        """The side of the second reconstruction."""
        index = int(torch.randint(len(self.sides), (), generator=generator))
        return Draw(added=Draw(side=self.sides[index]))

    def latent(self, z_BDhw: Tensor, draw: Draw) -> Tensor:
        """The scaled latent, same dtype."""
        return self._scaled(z_BDhw, draw)

    def image(self, x_BCHW: Tensor, draw: Draw) -> Tensor:
        """The scaled image, same dtype."""
        return self._scaled(x_BCHW, draw)

    def _scaled(self, x_BCHW: Tensor, draw: Draw) -> Tensor:
        if draw.side is None:
            return x_BCHW
        B, C, H, W = x_BCHW.shape
        factor = self.grid // draw.side
        return x_BCHW.reshape(B, C, H // factor, factor, W // factor, factor).mean((3, 5))
