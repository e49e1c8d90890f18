"""The terms of the tokenizer's loss, Eq. 2."""

import pytest
import torch

from models.reconstruction import LossWeights, reconstruction_terms
from models.tokenizers.vit import DiagonalGaussian


def test_terms_and_their_sum():
    """Images of -1 and 1 are 0 and 1 to the pixel terms."""
    x, y = torch.full((2, 3, 4, 4), -1.0), torch.full((2, 3, 4, 4), 2.0)
    posterior = DiagonalGaussian(torch.ones(2, 3, 2, 2), torch.zeros(2, 3, 2, 2))
    weights = LossWeights(mse=1.0, perceptual=2.0, kl=0.5, adversarial=0.1)
    terms = reconstruction_terms(x, y, posterior, weights=weights)
    assert set(terms) == {"mse", "kl", "total"}
    assert terms["mse"].item() == 2.25  # mean over everything
    assert terms["kl"].item() == 6  # 12 values, each 1/2, summed; mean over the batch
    assert terms["total"].item() == 2.25 + 0.5 * 6
    terms = reconstruction_terms(
        x,
        y,
        posterior,
        weights=LossWeights(mse=0.0, l1=4.0, perceptual=2.0, kl=0.5, adversarial=0.1),
        perceptual=lambda a, b: (a - b).abs().mean(),
        fake_logits=torch.tensor([3.0]),
    )
    assert terms["mse"].item() == 2.25, "known, whatever its weight"
    assert terms["l1"].item() == 1.5
    assert terms["perceptual"].item() == 3, "of images in [-1, 1]"
    assert terms["adversarial"].item() == -3
    assert terms["total"].item() == pytest.approx(4 * 1.5 + 2 * 3 + 0.5 * 6 - 0.3)


def test_mse_is_that_of_psnr():
    """10 log10(1 / mse) is the PSNR of images in [0, 1], as DeTok logs it."""
    target, output = torch.rand(2, 2, 3, 8, 8).unbind(0)
    posterior = DiagonalGaussian(torch.zeros(2, 1, 1, 1), torch.zeros(2, 1, 1, 1))
    terms = reconstruction_terms(2 * output - 1, 2 * target - 1, posterior, weights=LossWeights())
    torch.testing.assert_close(terms["mse"], (output - target).square().mean())


def test_terms_are_fp32_under_bf16():
    x = torch.randn(1, 3, 4, 4)
    posterior = DiagonalGaussian(torch.randn(1, 3, 2, 2), torch.randn(1, 3, 2, 2))
    plain = reconstruction_terms(x, 2 * x, posterior, weights=LossWeights())
    with torch.autocast("cpu", torch.bfloat16):
        cast = reconstruction_terms(x, 2 * x, posterior, weights=LossWeights())
    assert all(term.dtype == torch.float32 and torch.equal(term, plain[name]) for name, term in cast.items())


def test_the_perceptual_term_is_taken_in_fp32_under_bf16():
    """As in DeTok's code: its networks' features, and so its gradient, would else be those of bf16."""
    convolution, seen = torch.nn.Conv2d(3, 3, 3), []

    def distance(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        seen.append(convolution(a).dtype)
        return (convolution(a) - convolution(b)).square().mean()

    image, target = torch.rand(2, 2, 3, 8, 8).bfloat16()
    posterior = DiagonalGaussian(torch.zeros(2, 4, 2, 2), torch.zeros(2, 4, 2, 2))
    with torch.autocast("cpu", torch.bfloat16):
        terms = reconstruction_terms(image, target, posterior, weights=LossWeights(), perceptual=distance)
    assert seen == [torch.float32]
    assert terms["perceptual"].dtype == torch.float32
