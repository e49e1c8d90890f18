"""The tokenizers: networks between images and latents, all with the interface `base.Autoencoder`."""

from .base import Autoencoder, DiagonalGaussian
from .vit import Tokenizer

__all__ = ["Autoencoder", "DiagonalGaussian", "Tokenizer"]
