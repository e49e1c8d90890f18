"""EQ-VAE's regularizer: latent and image are scaled and turned alike.

Shapes: B batch, C channels, H W pixels, D latent channels, h w latent grid.
"""

import torch
from torch import Tensor

from ..resize import resize
from ..sizes import EQUIVARIANT_SHARE, SMALL_SHARE, equivariant_sides
from .base import Draw, Regularizer


class EquivarianceRegularizer(Regularizer):
    """EQ-VAE (Kouzelis et al. 2025), as its code draws: one of three kinds of step.

    * 1/2: d(tau x, D(tau z)), tau being a scaling down and 1 to 3 quarter turns, of latent and image alike;
    * 1/8: d(s x, D(E(s x))): an image scaled down by s is encoded, so that small images keep latents of their own;
    * 3/8: d(x, D(z)), the plain autoencoder.

    Scaled is by a bilinear kernel without antialiasing, to sides that are uniform from a quarter of the grid (or
    `smallest_side`, if that is larger) to all of it but one cell. Theirs are s/32 with s in 8 to 31, of a grid of 32;
    where the grid is smaller, only those of whole cells are left, since the target image needs whole patches.
    The tokenizer must accept other sizes, as `vit.Tokenizer` does, and so must the discriminator.

    Raises:
        ValueError: no side is left between `smallest_side` and the grid.
    """

    def __init__(self, grid: int, smallest_side: int = 1) -> None:
        super().__init__()
        self.grid, self.sides = grid, equivariant_sides(grid, smallest_side)
        if not self.sides:
            raise ValueError(f"a {grid} x {grid} latent leaves no smaller side of {self.sides.start} cells or more")

    def draw(self, generator: torch.Generator, batch: int) -> Draw:  # noqa: ARG002
        """The kind of step, a side and a number of quarter turns."""
        kind = float(torch.rand((), generator=generator))
        side = int(torch.randint(self.sides.start, self.sides.stop, (), generator=generator))
        turns = int(torch.randint(1, 4, (), generator=generator))
        if kind < EQUIVARIANT_SHARE:
            return Draw(side=side, quarter_turns=turns)
        return Draw(side=side, encodes_small=True) if kind < EQUIVARIANT_SHARE + SMALL_SHARE else Draw()

    def source(self, x_BCHW: Tensor, draw: Draw) -> Tensor:
        """The image, or the scaled one."""
        return self.image(x_BCHW, draw) if draw.encodes_small else x_BCHW

    def latent(self, z_BDhw: Tensor, draw: Draw) -> Tensor:
        """The scaled and rotated latent, same dtype."""
        return z_BDhw if draw.encodes_small else _scale_and_turn(z_BDhw, draw.side or self.grid, draw.quarter_turns)

    def image(self, x_BCHW: Tensor, draw: Draw) -> Tensor:
        """The scaled and rotated image, same dtype."""
        side = x_BCHW.shape[-1] // self.grid * (draw.side or self.grid)
        return _scale_and_turn(x_BCHW, side, draw.quarter_turns)


def _scale_and_turn(x_BCHW: Tensor, side: int, quarter_turns: int) -> Tensor:
    if side != x_BCHW.shape[-1]:
        x_BCHW = resize(x_BCHW, side, "bilinear", antialias=False)
    return x_BCHW.rot90(quarter_turns, (2, 3))
