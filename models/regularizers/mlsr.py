"""MLSR, the paper's multi-level spectral regularization. Its operators are in `models.spectral`.

Shapes: B batch, C channels, H W pixels, D latent channels, h w latent grid.
"""

import torch
from torch import Tensor

from ..choices import DEFAULT_KEEP, DEFAULT_MASK, UNIFORM, Mask
from ..spectral import ImageBlur, LatentFilter
from .base import Draw, Regularizer


class SpectralRegularizer(Regularizer):
    """MLSR (Eq. 1-4): the latent without part of its high frequencies is decoded to the image without part of its own,

        L = d(G_l x, D(S_l z)) + ...,   l ~ p over the levels 0 to 3, drawn once per step or per sample.

    Args:
        grid, mask, keep: those of `LatentFilter`, with its errors.
        per_sample: draws one level per image.
        probabilities: of the levels, which sum to 1; uniform in Eq. 1.
    """

    def __init__(
        self,
        grid: int,
        mask: Mask = DEFAULT_MASK,
        keep: float = DEFAULT_KEEP,
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


def _on(level: int | Tensor, device: torch.device) -> int | Tensor:
    return level if isinstance(level, int) else level.to(device, non_blocking=True)
