"""The regularizers of the tokenizer's latent: S on the latent and G on the image in Eq. 2, or terms that they add.

`REGULARIZERS` has one for each name in `choices.RegularizerKind`; each is in a file of its own.
"""

from collections.abc import Callable
from dataclasses import dataclass

from ..choices import DEFAULT_KEEP, DEFAULT_MASK, UNIFORM, Mask, RegularizerKind
from .base import Draw, Regularizer
from .equivariance import EquivarianceRegularizer
from .matching import MatchingRegularizer
from .mlsr import SpectralRegularizer
from .scale import ScaleRegularizer
from .spectrum_prior import SpectrumPrior

__all__ = [
    "REGULARIZERS",
    "Draw",
    "EquivarianceRegularizer",
    "MatchingRegularizer",
    "Regularizer",
    "RegularizerOptions",
    "ScaleRegularizer",
    "SpectralRegularizer",
    "SpectrumPrior",
]


@dataclass(frozen=True)
class RegularizerOptions:
    """The options of all regularizers; each uses its own."""

    grid: int
    """Side of the latent."""
    mask: Mask = DEFAULT_MASK
    keep: float = DEFAULT_KEEP
    per_sample: bool = False
    probabilities: tuple[float, ...] = UNIFORM
    """For `SpectralRegularizer`."""
    smallest_side: int = 1
    """For EQ-VAE: the smallest side in latent cells that decoder, losses and discriminator accept."""
    smallest_perceptual_side: int = 1
    """For scale equivariance: the smallest side in latent cells that the perceptual term accepts."""
    spectrum_delta: float = 1.0
    """For `SpectrumPrior`."""


REGULARIZERS: dict[RegularizerKind, Callable[[RegularizerOptions], Regularizer]] = {
    "spectral": lambda options: SpectralRegularizer(
        options.grid, options.mask, options.keep, options.per_sample, options.probabilities
    ),
    "equivariance": lambda options: EquivarianceRegularizer(options.grid, options.smallest_side),
    "scale": lambda options: ScaleRegularizer(options.grid, options.smallest_perceptual_side),
    "matching": lambda options: MatchingRegularizer(options.grid),
    "spectrum_prior": lambda options: SpectrumPrior(options.grid, options.spectrum_delta),
    "none": lambda options: Regularizer(),  # noqa: ARG005
}
