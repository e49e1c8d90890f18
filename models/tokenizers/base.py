"""The interface of all tokenizers: images to moments, latents to images. Each network is in its own file.

Shapes: B batch, C channels, H W pixels, D latent channels, h w latent grid.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from ..choices import TokenizerKind
from ..conv_sizes import TokenizerSizes
from ..sizes import tokenizer_shape, tokenizer_sizes

LEAST_LOGVAR = -30.0  # a standard deviation of 3e-7: of a latent that is not random


class DiagonalGaussian(NamedTuple):
    """The posterior q(z|x): independent normals, in fp32."""

    mean_BDhw: Tensor
    logvar_BDhw: Tensor
    """Log-variance, clamped to [-30, 20]."""

    @staticmethod
    def of(mean_BDhw: Tensor, logvar_BDhw: Tensor) -> "DiagonalGaussian":
        """From a network's outputs of any floating dtype."""
        return DiagonalGaussian(mean_BDhw.float(), logvar_BDhw.float().clamp(LEAST_LOGVAR, 20.0))

    def sample(self, noise_BDhw: Tensor) -> Tensor:
        """mean + std * noise, fp32; `noise_BDhw` is standard normal."""
        return self.mean_BDhw + torch.exp(0.5 * self.logvar_BDhw) * noise_BDhw.float()

    def kl(self) -> Tensor:
        """KL(q(z|x) || N(0, I)) in nats, SUMMED over D, h and w: (B,) fp32, also under autocast."""
        with torch.autocast(self.mean_BDhw.device.type, enabled=False):
            mean, logvar = self.mean_BDhw.float(), self.logvar_BDhw.float()
            return 0.5 * (mean.square() + logvar.exp() - 1.0 - logvar).sum((1, 2, 3))


class Autoencoder(Protocol):
    """A trained tokenizer, for code that only encodes images and decodes latents."""

    @property
    def grid(self) -> int:
        """Side of the latent of a training-sized image, h = w."""

    @property
    def factor(self) -> int:
        """By which a latent's sides are smaller than the image's: f."""

    @property
    def channels(self) -> int:
        """Latent channels D."""

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(D, h, w) of the latent of one training-sized image."""

    @property
    def sizes(self) -> TokenizerSizes:
        """Parameters, and GFLOPs for one training-sized image."""

    def encode(self, x_BCHW: Tensor) -> DiagonalGaussian:
        """Images in [-1, 1], sides multiples of the factor, to fp32 moments."""

    def decode(self, z_BDhw: Tensor) -> Tensor:
        """Latents of any grid to images in fp32, nominally in [-1, 1] but not clamped.

        A latent is what `encode` gives, not scaled: who needs it at unit variance normalises it with statistics of his
        own (`generator.LatentStatistics`), whatever `scaling_factor` a public config recommends.
        """


class TokenizerNetwork(nn.Module, ABC):
    """What all tokenizers are made of; an `Autoencoder`. A subclass encodes and decodes.

    Args:
        kind: of the network.
        network: all arguments that build it, `image_size` among them, as manifests hold them.

    Raises:
        ValueError: the factor does not divide the image.
    """

    def __init__(self, kind: TokenizerKind, network: Mapping[str, Any]) -> None:
        super().__init__()
        self.kind, self.network = kind, dict(network)
        self.factor, self.channels = tokenizer_shape(kind, network)
        if network["image_size"] % self.factor:
            raise ValueError(f"the factor {self.factor} does not divide image_size {network['image_size']}")
        self.grid: int = network["image_size"] // self.factor
        self.recomputes = False  # whether a backward pass computes the blocks' activations again: `recomputing.py`

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(D, h, w) of the latent of one training-sized image."""
        return self.channels, self.grid, self.grid

    @property
    def sizes(self) -> TokenizerSizes:
        """Parameters, and GFLOPs for one training-sized image."""
        return tokenizer_sizes(self.kind, self.network)

    @abstractmethod
    def encode(self, x_BCHW: Tensor) -> DiagonalGaussian:
        """Images in [-1, 1], sides multiples of the factor, to fp32 moments."""

    @abstractmethod
    def decode(self, z_BDhw: Tensor) -> Tensor:
        """Latents of any grid to images in fp32, nominally in [-1, 1] but not clamped."""

    def forward(
        self,
        x_BCHW: Tensor,
        noise_BDhw: Tensor,
        latent_transform: Callable[[Tensor], Tensor],
        *added_transforms: Callable[[Tensor], Tensor],
    ) -> tuple[Tensor, DiagonalGaussian, *tuple[Tensor, ...]]:
        """One training pass of Eq. 2: D(latent_transform(z)) with z drawn from the posterior of x.

        All that a step decodes is decoded in this one call, since DDP exchanges gradients once for each.

        Args:
            x_BCHW: images in [-1, 1].
            noise_BDhw: standard normal, fp32.
            latent_transform: the regularizer's operator on z_BDhw, e.g. S_l.
            added_transforms: others, whose results are decoded too.

        Returns:
            (reconstruction_BCHW, posterior of x, a reconstruction for each of `added_transforms`), all reconstructions
            in fp32, unclamped.
        """
        posterior = self.encode(x_BCHW)
        z_BDhw = posterior.sample(noise_BDhw)
        reconstruction_BCHW, *added = (self.decode(to(z_BDhw)) for to in (latent_transform, *added_transforms))
        return reconstruction_BCHW, posterior, *added
