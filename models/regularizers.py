"""The regularizers of the tokenizer's latent: the operators S on the latent and G on the image in Eq. 2.

The random draws of a step are made on the CPU for the global batch and sliced per rank, so that they do not depend on
the number of workers. Shapes: B batch, C channels, H W pixels, D latent channels, h w latent grid.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from .choices import UNIFORM, Mask, RegularizerKind
from .resize import resize
from .spectral import ImageBlur, LatentFilter

_EQUIVARIANT, _SMALL = 1 / 2, 1 / 8  # EQ-VAE's shares of the steps


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
    """EQ-VAE's rotation of latent and image, in counter-clockwise quarter turns."""
    encodes_small: bool = False
    """Whether EQ-VAE encodes the image of `side`, rather than scaling the latent of the whole one."""

    def slice(self, start: int, stop: int) -> "Draw":
        """The part of samples start to stop (excluded) of the global batch."""
        return self if isinstance(self.level, int) else replace(self, level=self.level[start:stop])


class Regularizer(nn.Module):
    """No regularization, for the plain autoencoder; also the base class of the others. It has no parameters."""

    def draw(self, generator: torch.Generator, batch: int) -> Draw:  # noqa: ARG002
        """The random draws of a step, from a CPU generator, for a global batch of `batch` samples."""
        return Draw()

    def source(self, x_BCHW: Tensor, draw: Draw) -> Tensor:  # noqa: ARG002
        """The image that is encoded."""
        return x_BCHW

    def latent(self, z_BDhw: Tensor, draw: Draw) -> Tensor:  # noqa: ARG002
        """The latent that is decoded, of that of `source`."""
        return z_BDhw

    def image(self, x_BCHW: Tensor, draw: Draw) -> Tensor:  # noqa: ARG002
        """The target of the decoded image, and the discriminator's real image."""
        return x_BCHW


class SpectralRegularizer(Regularizer):
    """MLSR (Eq. 1-4): S_l on the latent, G_l on the image, with l drawn per step or per sample.

    Args:
        grid, mask, keep: those of `LatentFilter`, with its errors.
        per_sample: draws one level per image.
        probabilities: of the levels, which sum to 1; uniform in Eq. 1.
    """

    def __init__(
        self,
        grid: int,
        mask: Mask = "gain",
        keep: float = 0.5,
        per_sample: bool = False,
        probabilities: tuple[float, ...] = UNIFORM,
    ) -> None:
        super().__init__()
        self.per_sample, self.probabilities = per_sample, torch.tensor(probabilities)
        self.latent_filter = LatentFilter(grid, mask, keep)
        self.image_blur = ImageBlur()

    def draw(self, generator: torch.Generator, batch: int) -> Draw:
        """Eq. 1."""
        drawn = torch.multinomial(self.probabilities, batch if self.per_sample else 1, True, generator=generator)
        return Draw(level=drawn if self.per_sample else int(drawn))

    def latent(self, z_BDhw: Tensor, draw: Draw) -> Tensor:
        """S_l(z)."""
        filtered_BDhw: Tensor = self.latent_filter(z_BDhw, _on(draw.level, z_BDhw.device))
        return filtered_BDhw

    def image(self, x_BCHW: Tensor, draw: Draw) -> Tensor:
        """G_l(x)."""
        blurred_BCHW: Tensor = self.image_blur(x_BCHW, _on(draw.level, x_BCHW.device))
        return blurred_BCHW


class EquivarianceRegularizer(Regularizer):
    """EQ-VAE (Kouzelis et al. 2025), as its code draws: one of three kinds of step.

    * 1/2: tau z is decoded to tau x, tau being a scaling down and 1 to 3 quarter turns, of latent and image alike;
    * 1/8: an image scaled down is encoded and decoded, so that small images keep latents of their own;
    * 3/8: the plain autoencoder.

    Scaled is by a bilinear kernel without antialiasing, to sides that are uniform from a quarter of the grid (or
    `smallest_side`, if that is larger) to all of it but one cell. Theirs are s/32 with s in 8 to 31, of a grid of 32;
    where the grid is smaller, only those of whole cells are left, since the target image needs whole patches.
    The tokenizer must accept other sizes, as `vit.Tokenizer` does, and so must the discriminator.

    Raises:
        ValueError: no side is left between `smallest_side` and the grid.
    """

    def __init__(self, grid: int, smallest_side: int = 1) -> None:
        super().__init__()
        self.grid = grid
        self.smallest_side = max(smallest_side, -(-grid // 4))
        if self.smallest_side >= grid:
            raise ValueError(f"a {grid} x {grid} latent leaves no smaller side of {self.smallest_side} cells or more")

    def draw(self, generator: torch.Generator, batch: int) -> Draw:  # noqa: ARG002
        """The kind of step, a side and a number of quarter turns."""
        kind = float(torch.rand((), generator=generator))
        side = int(torch.randint(self.smallest_side, self.grid, (), generator=generator))
        turns = int(torch.randint(1, 4, (), generator=generator))
        if kind < _EQUIVARIANT:
            return Draw(side=side, quarter_turns=turns)
        return Draw(side=side, encodes_small=True) if kind < _EQUIVARIANT + _SMALL else Draw()

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


@dataclass(frozen=True)
class RegularizerOptions:
    """The options of all regularizers; each uses its own."""

    grid: int
    """Side of the latent."""
    mask: Mask = "gain"
    keep: float = 0.5
    per_sample: bool = False
    probabilities: tuple[float, ...] = UNIFORM
    """For `SpectralRegularizer`."""
    smallest_side: int = 1
    """For EQ-VAE: the smallest side in latent cells that decoder, losses and discriminator accept."""


REGULARIZERS: dict[RegularizerKind, Callable[[RegularizerOptions], Regularizer]] = {
    "spectral": lambda options: SpectralRegularizer(
        options.grid, options.mask, options.keep, options.per_sample, options.probabilities
    ),
    "equivariance": lambda options: EquivarianceRegularizer(options.grid, options.smallest_side),
    "none": lambda options: Regularizer(),  # noqa: ARG005
}


def _on(level: int | Tensor, device: torch.device) -> int | Tensor:
    return level if isinstance(level, int) else level.to(device, non_blocking=True)


def _scale_and_turn(x_BCHW: Tensor, side: int, quarter_turns: int) -> Tensor:
    if side != x_BCHW.shape[-1]:
        x_BCHW = resize(x_BCHW, side, "bilinear", antialias=False)
    return x_BCHW.rot90(quarter_turns, (2, 3))
