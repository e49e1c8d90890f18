"""The terms of the tokenizer's loss, Eq. 2."""

import pytest
import torch

from models.reconstruction import LossWeights, reconstruction_terms
from models.tokenizers.vit import DiagonalGaussian


def test_terms_and_their_sum():
    x, y = torch.zeros(2, 3, 4, 4), torch.full((2, 3, 4, 4), 2.0)
    posterior = DiagonalGaussian(torch.ones(2, 3, 2, 2), torch.zeros(2, 3, 2, 2))
    weights = LossWeights(mse=1.0, perceptual=2.0, kl=0.5, adversarial=0.1)
    terms = reconstruction_terms(x, y, posterior, weights=weights)
    assert set(terms) == {"mse", "kl", "total"}
    assert terms["mse"].item() == 4  # mean over everything
    assert terms["kl"].item() == 6  # 12 values, each 1/2, summed; mean over the batch
    assert terms["total"].item() == 4 + 0.5 * 6
    terms = reconstruction_terms(
        x, y, posterior, weights=weights, perceptual=lambda a, b: (a - b).abs().mean(), fake_logits=torch.tensor([3.0])
    )
    assert terms["perceptual"].item() == 2
    assert terms["adversarial"].item() == -3
    assert terms["total"].item() == pytest.approx(4 + 2 * 2 + 0.5 * 6 - 0.3)


def test_terms_are_fp32_under_bf16():
    x = torch.randn(1, 3, 4, 4)
    posterior = DiagonalGaussian(torch.randn(1, 3, 2, 2), torch.randn(1, 3, 2, 2))
    plain = reconstruction_terms(x, 2 * x, posterior, weights=LossWeights())
    with torch.autocast("cpu", torch.bfloat16):
        cast = reconstruction_terms(x, 2 * x, posterior, weights=LossWeights())
    assert all(term.dtype == torch.float32 and torch.equal(term, plain[name]) for name, term in cast.items())
