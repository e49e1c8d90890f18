"""The regularizers of the tokenizer's latent: which S acts on the latent and which G on the image in Eq. 2.

A step's randomness is drawn on the CPU for the global batch and sliced for each rank, so that it does not depend on
the number of workers. Shapes: B batch, C channels, H W pixels, D latent channels, h w latent grid.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from .choices import LEVELS, Mask, RegularizerKind
from .resize import resize
from .spectral import ImageBlur, LatentFilter


@dataclass(frozen=True)
class Draw:
    """What a regularizer draws in one step, for the global batch or a rank's part of it.

    The defaults are the identity of every regularizer.
    """

    level: int | Tensor = 0
    """Attenuation level: one for the step, or a CPU long tensor (B,) with one a sample."""
    side: int | None = None
    """Side in latent cells to which EQ-VAE scales; None leaves the size."""
    quarter_turns: int = 0
    """Quarter turns, counter-clockwise, of EQ-VAE."""

    def slice(self, start: int, stop: int) -> "Draw":
        """The part of samples start to stop (excluded) of the global batch."""
        return self if isinstance(self.level, int) else replace(self, level=self.level[start:stop])


class Regularizer(nn.Module):
    """Regularizes nothing: the plain autoencoder, and the face that the others share. Holds no parameters."""

    def draw(self, generator: torch.Generator, batch: int) -> Draw:  # noqa: ARG002
        """What is random in this step, from a CPU generator, for a global batch of `batch` samples."""
        return Draw()

    def latent(self, z_BDhw: Tensor, draw: Draw) -> Tensor:  # noqa: ARG002
        """The latent that is decoded."""
        return z_BDhw

    def image(self, x_BCHW: Tensor, draw: Draw) -> Tensor:  # noqa: ARG002
        """The image that the decoded one is held against, and that the discriminator takes for real."""
        return x_BCHW


class SpectralRegularizer(Regularizer):
    """MLSR (Eq. 1-4): S_l on the latent, G_l on the image, l uniform over the levels, by step or by sample.

    Args and errors are those of `LatentFilter`; `per_sample` draws a level for each image.
    """

    def __init__(self, grid: int, mask: Mask = "gain", keep: float = 0.5, per_sample: bool = False) -> None:
        super().__init__()
        self.per_sample = per_sample
        self.latent_filter = LatentFilter(grid, mask, keep)
        self.image_blur = ImageBlur()

    def draw(self, generator: torch.Generator, batch: int) -> Draw:
        """Eq. 1."""
        if self.per_sample:
            return Draw(level=torch.randint(LEVELS, (batch,), generator=generator))
        return Draw(level=int(torch.randint(LEVELS, (), generator=generator)))

    def latent(self, z_BDhw: Tensor, draw: Draw) -> Tensor:
        """S_l(z)."""
        filtered_BDhw: Tensor = self.latent_filter(z_BDhw, _on(draw.level, z_BDhw.device))
        return filtered_BDhw

    def image(self, x_BCHW: Tensor, draw: Draw) -> Tensor:
        """G_l(x)."""
        blurred_BCHW: Tensor = self.image_blur(x_BCHW, _on(draw.level, x_BCHW.device))
        return blurred_BCHW


class EquivarianceRegularizer(Regularizer):
    """EQ-VAE (Kouzelis et al. 2025): latent and image are scaled down and turned by quarters alike, one draw a step.

    The side is uniform from a quarter of the grid (or `smallest_side`, where that is more) to all of it, in whole
    cells, so that the target image has whole patches; both sides are resized by the same antialiased bicubic kernel.
    The decoder must take other sizes, as `Tokenizer.decode` does, and so must who judges its images.
    """

    def __init__(self, grid: int, smallest_side: int = 1) -> None:
        super().__init__()
        self.grid = grid
        self.smallest_side = min(grid, max(smallest_side, -(-grid // 4)))

    def draw(self, generator: torch.Generator, batch: int) -> Draw:  # noqa: ARG002
        """A side and a number of quarter turns, both uniform."""
        side = int(torch.randint(self.smallest_side, self.grid + 1, (), generator=generator))
        return Draw(side=side, quarter_turns=int(torch.randint(4, (), generator=generator)))

    def latent(self, z_BDhw: Tensor, draw: Draw) -> Tensor:
        """The scaled and turned latent, same dtype."""
        return _scale_and_turn(z_BDhw, draw.side or self.grid, draw.quarter_turns)

    def image(self, x_BCHW: Tensor, draw: Draw) -> Tensor:
        """The image, likewise."""
        side = x_BCHW.shape[-1] // self.grid * (draw.side or self.grid)
        return _scale_and_turn(x_BCHW, side, draw.quarter_turns)


@dataclass(frozen=True)
class RegularizerOptions:
    """What the regularizers are told; each looks at its own."""

    grid: int
    """Side of the latent."""
    mask: Mask = "gain"
    keep: float = 0.5
    per_sample: bool = False
    """The spectral one's, as `LatentFilter` and `SpectralRegularizer` describe them."""
    smallest_side: int = 1
    """EQ-VAE's: the fewest latent cells a side that everything behind the decoder can take."""


REGULARIZERS: dict[RegularizerKind, Callable[[RegularizerOptions], Regularizer]] = {
    "spectral": lambda given: SpectralRegularizer(given.grid, given.mask, given.keep, given.per_sample),
    "equivariance": lambda given: EquivarianceRegularizer(given.grid, given.smallest_side),
    "none": lambda given: Regularizer(),  # noqa: ARG005
}


def _on(level: int | Tensor, device: torch.device) -> int | Tensor:
    return level if isinstance(level, int) else level.to(device)


def _scale_and_turn(x_BCHW: Tensor, side: int, quarter_turns: int) -> Tensor:
    if side != x_BCHW.shape[-1]:
        x_BCHW = resize(x_BCHW, side, "bicubic")
    return x_BCHW.rot90(quarter_turns, (2, 3))
