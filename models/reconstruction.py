"""The tokenizer's objective: d(D(S_l(z)), G_l(x)) of Eq. 2 and its terms, and the discriminator's loss.

The regularizer determines S and G (`regularizers`). The random draws of a step are arguments.
Shapes: B batch, C channels, H W pixels, D latent channels, h w latent grid.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .discriminator import discriminator_hinge, generator_hinge
from .regularizers import Draw, Regularizer
from .tokenizers import DiagonalGaussian


@dataclass(frozen=True)
class LossWeights:
    """Weights of the terms of d in Eq. 2; DeTok's, on images in [0, 1]. L1 of weight 0 is left out."""

    mse: float = 1.0
    l1: float = 0.0
    perceptual: float = 1.0
    kl: float = 1e-6
    adversarial: float = 0.1
    scale: float = 0.25
    """Of the second reconstruction of scale equivariance."""
    spectrum: float = 0.01
    """Of the prior on the latent's spectrum."""


def distance_terms(
    reconstruction_BCHW: Tensor,
    target_BCHW: Tensor,
    *,
    weights: LossWeights,
    perceptual: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> dict[str, Tensor]:
    """The terms that compare two batches of images in [-1, 1]: `mse` and, as below, `l1` and `perceptual`."""
    reconstruction, target = reconstruction_BCHW.float(), target_BCHW.float()
    terms = {"mse": F.mse_loss(to_unit(reconstruction), to_unit(target))}
    if weights.l1:
        terms["l1"] = F.l1_loss(to_unit(reconstruction), to_unit(target))
    if perceptual is not None:
        with torch.autocast(reconstruction.device.type, enabled=False):
            terms["perceptual"] = perceptual(reconstruction, target)
    return terms


def weighted_sum(terms: Mapping[str, Tensor], weights: LossWeights) -> Tensor:
    """The sum of terms by their weights, a fp32 scalar."""
    return torch.stack([getattr(weights, name) * term for name, term in terms.items()]).sum()


def reconstruction_terms(
    reconstruction_BCHW: Tensor,
    target_BCHW: Tensor,
    posterior: DiagonalGaussian,
    *,
    weights: LossWeights,
    perceptual: Callable[[Tensor, Tensor], Tensor] | None = None,
    fake_logits: Tensor | None = None,
    added: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """The tokenizer's loss, Eq. 2, term by term. All terms are fp32 scalars, also under autocast.

    Args:
        reconstruction_BCHW: D(S_l(z)), nominally in [-1, 1].
        target_BCHW: G_l(x) in [-1, 1].
        posterior: of x.
        weights: of each term in the total.
        perceptual: distance between two batches as a scalar; None omits the term. It runs in fp32, as DeTok's does.
        fake_logits: the discriminator's logits of the reconstruction; None before its term starts.
        added: the regularizer's own terms, by the names of their weights: fp32 scalars.

    Returns:
        `mse` and, if weighted, `l1` (of images in [0, 1]: mean over batch, channels and pixels), `kl` (SUM over D, h
        and w, mean over the batch), where given `perceptual`, `adversarial` (-mean logit) and those of `added`, and
        `total`, their weighted sum, to differentiate.
    """
    distance = distance_terms(reconstruction_BCHW, target_BCHW, weights=weights, perceptual=perceptual)
    terms = {"mse": distance["mse"], "kl": posterior.kl().mean(), **distance}
    if fake_logits is not None:
        terms["adversarial"] = generator_hinge(fake_logits)
    terms |= added or {}
    return {**terms, "total": weighted_sum(terms, weights)}


def to_unit(x: Tensor) -> Tensor:
    """From [-1, 1], which networks take, to [0, 1], in which the pixel terms and the discriminator see images."""
    return 0.5 * x + 0.5


class TokenizerDraws(NamedTuple):
    """The random draws of one step, for this rank's part of the batch."""

    noise_BDhw: Tensor
    """Standard normal: the noise of the posterior sample."""
    regularizer: Draw

    def part(self, rows: slice) -> "TokenizerDraws":
        """Those of some rows of this part of the batch."""
        return TokenizerDraws(self.noise_BDhw[rows], self.regularizer.slice(rows.start, rows.stop))


class Reconstruction(NamedTuple):
    """The result of one call of the objective."""

    terms: dict[str, Tensor]
    """From `reconstruction_terms`; differentiate `total`."""
    target_BCHW: Tensor
    """G_l(x): the discriminator's real image."""
    output_BCHW: Tensor
    """D(S_l(z)), with gradient: the discriminator's fake image."""


class TokenizerObjective:
    """The loss of a batch with a regularizer, as a function of (images, draws).

    Args:
        tokenizer: a `Tokenizer`, possibly wrapped in DDP.
        regularizer: determines S and G, and the terms that it adds.
        weights: of the terms.
        perceptual: distance between two batches as a scalar; None omits the term.
        discriminator: for the adversarial term. Its weights get no gradient here.
    """

    def __init__(
        self,
        tokenizer: nn.Module,
        regularizer: Regularizer,
        weights: LossWeights,
        perceptual: Callable[[Tensor, Tensor], Tensor] | None,
        discriminator: nn.Module,
    ) -> None:
        self.tokenizer, self.regularizer, self.weights = tokenizer, regularizer, weights
        self.perceptual, self.discriminator = perceptual, discriminator

    def __call__(self, x_BCHW: Tensor, draws: TokenizerDraws, *, uses_discriminator: bool) -> Reconstruction:
        """Eq. 2 for images in [-1, 1]. Call it under autocast; the terms are fp32 in any case."""
        draw = draws.regularizer
        target_BCHW = self.regularizer.image(x_BCHW, draw)
        source_BCHW = self.regularizer.source(x_BCHW, draw)
        noise_BDhw = _of_size(draws, source_BCHW, x_BCHW)
        decoded = [draw] if draw.added is None else [draw, draw.added]
        transforms = (partial(self.regularizer.latent, draw=each) for each in decoded)
        output_BCHW, posterior, *second = self.tokenizer(source_BCHW, noise_BDhw, *transforms)
        added = self.regularizer.penalties(posterior.sample(noise_BDhw), source_BCHW)
        if draw.added is not None:
            added["scale"] = self._distance(second[0], self.regularizer.image(x_BCHW, draw.added))
        self.discriminator.requires_grad_(False)
        terms = reconstruction_terms(
            output_BCHW,
            target_BCHW,
            posterior,
            weights=self.weights,
            perceptual=self.perceptual,
            fake_logits=self.discriminator(to_unit(output_BCHW)) if uses_discriminator else None,
            added=added,
        )
        self.discriminator.requires_grad_(True)
        return Reconstruction(terms, target_BCHW, output_BCHW)

    def _distance(self, reconstruction_BCHW: Tensor, target_BCHW: Tensor) -> Tensor:
        """The pixel and perceptual terms of d, weighted as in d: what scale equivariance adds, before its weight."""
        terms = distance_terms(reconstruction_BCHW, target_BCHW, weights=self.weights, perceptual=self.perceptual)
        return weighted_sum(terms, self.weights)


def _of_size(draws: TokenizerDraws, source_BCHW: Tensor, x_BCHW: Tensor) -> Tensor:
    """As much of the noise as the latent of a smaller source needs."""
    sides = zip(draws.noise_BDhw.shape[-2:], source_BCHW.shape[-2:], x_BCHW.shape[-2:], strict=True)
    h, w = (cells * small // whole for cells, small, whole in sides)
    return draws.noise_BDhw[..., :h, :w]


def discriminator_loss(discriminator: nn.Module, real_BCHW: Tensor, fake_BCHW: Tensor) -> Tensor:
    """The hinge loss of D on target images and detached reconstructions, in one forward pass: a fp32 scalar.

    Both in [-1, 1]; D sees them in [0, 1].
    """
    real_logits, fake_logits = discriminator(to_unit(torch.cat([real_BCHW, fake_BCHW]))).float().chunk(2)
    return discriminator_hinge(real_logits, fake_logits)
