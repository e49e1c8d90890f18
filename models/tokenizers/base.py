"""The interface of all tokenizers: images to moments, latents to images. Each network is in its own file.

Shapes: B batch, C channels, H W pixels, D latent channels, h w latent grid.
"""

from typing import NamedTuple, Protocol

import torch
from torch import Tensor


class DiagonalGaussian(NamedTuple):
    """The posterior q(z|x): independent normals, in fp32."""

    mean_BDhw: Tensor
    logvar_BDhw: Tensor
    """Log-variance, clamped to [-30, 20]."""

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

    grid: int
    """Side of the latent of a training-sized image, h = w."""

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(D, h, w) of the latent of one training-sized image."""

    def encode(self, x_BCHW: Tensor) -> DiagonalGaussian:
        """Images in [-1, 1] to fp32 moments."""

    def decode(self, z_BDhw: Tensor) -> Tensor:
        """Latents to images in fp32, nominally in [-1, 1] but not clamped."""
