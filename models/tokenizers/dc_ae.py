"""DC-AE (Chen et al. 2025): diffusers' AutoencoderDC, with our interface and its own names of weights.

Shapes: B batch, C channels, H W pixels, D latent channels, h w latent grid.
"""

from typing import Any

import torch
from torch import Tensor

from .base import LEAST_LOGVAR, DiagonalGaussian, TokenizerNetwork
from .from_diffusers import diffusers_network


class DCAutoencoder(TokenizerNetwork):
    """A convolutional encoder and decoder with linear attention at the low resolutions, for large factors.

    Its latent is not random: it has no posterior and no KL term, and DC-AE is trained in three phases at several image
    sizes that are not Eq. 2. So it is not trained here but imported.

    Args:
        image_size: side of the images in pixels.
        arguments: all that diffusers' config names.

    Raises:
        ValueError: diffusers is missing or refuses the arguments, or the factor does not divide the image.
    """

    def __init__(self, *, image_size: int, **arguments: Any) -> None:
        super().__init__("dc-ae", {"image_size": image_size, **arguments})
        network: Any = diffusers_network("AutoencoderDC", arguments)
        self.encoder, self.decoder = network.encoder, network.decoder

    def encode(self, x_BCHW: Tensor) -> DiagonalGaussian:
        """Images in [-1, 1], sides multiples of f, to fp32 moments: the latent, and the least log-variance."""
        mean_BDhw = self.encoder(x_BCHW)
        return DiagonalGaussian.of(mean_BDhw, torch.full_like(mean_BDhw, LEAST_LOGVAR))

    def decode(self, z_BDhw: Tensor) -> Tensor:
        """Latents of any grid to images in fp32, nominally in [-1, 1] but not clamped."""
        x_BCHW: Tensor = self.decoder(z_BDhw)
        return x_BCHW.float()
