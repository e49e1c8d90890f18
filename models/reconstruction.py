"""The tokenizer's objective: d(D(S_l(z)), G_l(x)) of Eq. 2, its terms, and the regularizers that choose S and G.

A step's randomness is drawn on the CPU for the global batch and sliced for each rank, so that it does not depend on
the number of workers. Shapes: B batch, C channels, H W pixels, D latent channels, h w latent grid.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.discriminator import generator_hinge
from models.resize import resize
from models.spectral import LEVELS, ImageBlur, LatentFilter, Mask
from models.tokenizer import DiagonalGaussian


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


def make_regularizer(
    kind: Literal["spectral", "equivariance", "none"],
    grid: int,
    *,
    mask: Mask = "gain",
    keep: float = 0.5,
    per_sample: bool = False,
    smallest_side: int = 1,
) -> Regularizer:
    """The regularizer of that name for a latent grid; the keywords are the spectral one's, `smallest_side` EQ-VAE's.

    Raises:
        ValueError: see `LatentFilter`.
    """
    if kind == "spectral":
        return SpectralRegularizer(grid, mask, keep, per_sample)
    return EquivarianceRegularizer(grid, smallest_side) if kind == "equivariance" else Regularizer()


@dataclass(frozen=True)
class LossWeights:
    """Weights of the terms of d in Eq. 2."""

    mse: float = 1.0
    perceptual: float = 1.0
    kl: float = 1e-6
    adversarial: float = 0.1


def reconstruction_terms(
    reconstruction_BCHW: Tensor,
    target_BCHW: Tensor,
    posterior: DiagonalGaussian,
    *,
    weights: LossWeights,
    perceptual: Callable[[Tensor, Tensor], Tensor] | None = None,
    fake_logits: Tensor | None = None,
) -> dict[str, Tensor]:
    """The tokenizer's loss, Eq. 2, term by term. All terms are fp32 scalars, whatever the autocast.

    Args:
        reconstruction_BCHW: D(S_l(z)), in the range of the target.
        target_BCHW: G_l(x) in [-1, 1].
        posterior: of x.
        weights: of each term in the total.
        perceptual: distance of two batches as a scalar; None leaves the term out. It runs under the caller's autocast.
        fake_logits: the discriminator's logits of the reconstruction; None before its term starts.

    Returns:
        `mse` (mean over batch, channels and pixels), `kl` (SUM over D, h and w, mean over the batch), where given
        `perceptual` and `adversarial` (-mean logit), and `total`, their weighted sum, which is what to differentiate.
    """
    reconstruction, target = reconstruction_BCHW.float(), target_BCHW.float()
    terms = {"mse": F.mse_loss(reconstruction, target), "kl": posterior.kl().mean()}
    if perceptual is not None:
        terms["perceptual"] = perceptual(reconstruction, target).float()
    if fake_logits is not None:
        terms["adversarial"] = generator_hinge(fake_logits)
    total = torch.stack([getattr(weights, name) * term for name, term in terms.items()]).sum()
    return {**terms, "total": total}


def _on(level: int | Tensor, device: torch.device) -> int | Tensor:
    return level if isinstance(level, int) else level.to(device)


def _scale_and_turn(x_BCHW: Tensor, side: int, quarter_turns: int) -> Tensor:
    if side != x_BCHW.shape[-1]:
        x_BCHW = resize(x_BCHW, side, "bicubic")
    return x_BCHW.rot90(quarter_turns, (2, 3))
