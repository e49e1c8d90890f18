"""The tokenizers: networks between images and latents, all with the interface `base.Autoencoder`.

`load(folder)` opens one that was exported or published.
"""

from .base import Autoencoder, DiagonalGaussian, TokenizerNetwork
from .folder import TOKENIZERS, build, load, save
from .vit import Tokenizer

__all__ = ["TOKENIZERS", "Autoencoder", "DiagonalGaussian", "Tokenizer", "TokenizerNetwork", "build", "load", "save"]
