"""What all regularizers have in common: the draws of a step, and the operators and terms that an objective asks for.

The random draws of a step are made on the CPU for the global batch and sliced per rank, so that they do not depend on
the number of workers. Shapes: B batch, C channels, H W pixels, D latent channels, h w latent grid.
"""

from dataclasses import dataclass, replace
from typing import Optional

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Draw:
    """The random draws of a regularizer in one step, for the global batch or a rank's part of it.

    The defaults are the identity for every regularizer.
    """

    level: int | Tensor = 0
    """MLSR's attenuation level: one for the step, or a CPU long tensor (B,) with one per sample."""
    side: int | None = None
    """Side in latent cells to which EQ-VAE and scale equivariance scale; None: unchanged."""
    quarter_turns: int = 0
    """EQ-VAE's rotation of latent and image, in counter-clockwise quarter turns."""
    encodes_small: bool = False
    """Whether EQ-VAE encodes the image of `side`, rather than scaling the latent of the whole one."""
    cut: int = 0
    """The diagonals that spectrum matching removes from the DCT of each block of latent and image; 0: none."""
    added: Optional["Draw"] = None
    """That of a second reconstruction of the same latent, which adds the term `scale`; None: there is none."""

    def slice(self, start: int, stop: int) -> "Draw":
        """The part of samples start to stop (excluded) of the global batch."""
        level = self.level if isinstance(self.level, int) else self.level[start:stop]
        return replace(self, level=level, added=self.added and self.added.slice(start, stop))


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

    def penalties(self, z_BDhw: Tensor, x_BCHW: Tensor) -> dict[str, Tensor]:  # noqa: ARG002
        """Terms of the latent itself, by the name of their weight in `LossWeights`: fp32 scalars, means over the batch.

        Args:
            z_BDhw: the latent of `source`, before `latent`, fp32.
            x_BCHW: `source`, in [-1, 1].
        """
        return {}
