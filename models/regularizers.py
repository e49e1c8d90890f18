"""The regularizers of the tokenizer's latent: the operators S on the latent and G on the image in Eq. 2.

The random draws of a step are made on the CPU for the global batch and sliced per rank, so that they do not depend on
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
    """The random draws of a regularizer in one step, for the global batch or a rank's part of it.

    The defaults are the identity for every regularizer.
    """

    level: int | Tensor = 0
    """Attenuation level: one for the step, or a CPU long tensor (B,) with one per sample."""
    side: int | None = None
    """Side in latent cells to which EQ-VAE scales; None: unchanged."""
    quarter_turns: int = 0
    """EQ-VAE's rotation, in counter-clockwise quarter turns."""

    def slice(self, start: int, stop: int) -> "Draw":
        """The part of samples start to stop (excluded) of the global batch."""
        return self if isinstance(self.level, int) else replace(self, level=self.level[start:stop])


class Regularizer(nn.Module):
    """No regularization, for the plain autoencoder; also the base class of the others. It has no parameters."""

    def draw(self, generator: torch.Generator, batch: int) -> Draw:  # noqa: ARG002
        """The random draws of a step, from a CPU generator, for a global batch of `batch` samples."""
        return Draw()

    def latent(self, z_BDhw: Tensor, draw: Draw) -> Tensor:  # noqa: ARG002
        """The latent that is decoded."""
        return z_BDhw

    def image(self, x_BCHW: Tensor, draw: Draw) -> Tensor:  # noqa: ARG002
        """The target of the decoded image, and the discriminator's real image."""
        return x_BCHW


class SpectralRegularizer(Regularizer):
    """MLSR (Eq. 1-4): S_l on the latent, G_l on the image, l uniform over the levels, per step or per sample.

    Args and errors are those of `LatentFilter`; `per_sample` draws one level per image.
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
    """EQ-VAE (Kouzelis et al. 2025): latent and image are scaled down and rotated alike, with one draw per step.

    The side is uniform from a quarter of the grid (or `smallest_side`, if that is larger) to the whole grid, in whole
    cells, so that the target image has whole patches; both sides are resized by the same antialiased bicubic kernel.
    The decoder must accept other sizes, as `Tokenizer.decode` does, and so must the discriminator.
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
        """The scaled and rotated latent, same dtype."""
        return _scale_and_turn(z_BDhw, draw.side or self.grid, draw.quarter_turns)

    def image(self, x_BCHW: Tensor, draw: Draw) -> Tensor:
        """The scaled and rotated image, same dtype."""
        side = x_BCHW.shape[-1] // self.grid * (draw.side or self.grid)
        return _scale_and_turn(x_BCHW, side, draw.quarter_turns)


@dataclass(frozen=True)
class RegularizerOptions:
    """The options of all regularizers; each uses its own."""

    grid: int
    """Side of the latent."""
    mask: Mask = "gain"
    keep: float = 0.5
    per_sample: bool = False
    """For `SpectralRegularizer`; see also `LatentFilter`."""
    smallest_side: int = 1
    """For EQ-VAE: the smallest side in latent cells that decoder, losses and discriminator accept."""


REGULARIZERS: dict[RegularizerKind, Callable[[RegularizerOptions], Regularizer]] = {
    "spectral": lambda options: SpectralRegularizer(options.grid, options.mask, options.keep, options.per_sample),
    "equivariance": lambda options: EquivarianceRegularizer(options.grid, options.smallest_side),
    "none": lambda options: Regularizer(),  # noqa: ARG005
}


def _on(level: int | Tensor, device: torch.device) -> int | Tensor:
    return level if isinstance(level, int) else level.to(device, non_blocking=True)


def _scale_and_turn(x_BCHW: Tensor, side: int, quarter_turns: int) -> Tensor:
    if side != x_BCHW.shape[-1]:
        x_BCHW = resize(x_BCHW, side, "bicubic")
    return x_BCHW.rot90(quarter_turns, (2, 3))
