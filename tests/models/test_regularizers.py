"""The regularizers: what each draws, and what it does to the latent and the image; resizing on the way."""

import pytest
import torch
import torch.nn.functional as F

from models.discriminator import PatchDiscriminator
from models.reconstruction import LossWeights, reconstruction_terms
from models.regularizers import REGULARIZERS, Draw, RegularizerOptions
from models.resize import resize
from models.spectral import ImageBlur, LatentFilter
from models.tokenizers.vit import Tokenizer


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_spectral_draws_every_level_and_repeats_by_seed():
    regularizer = REGULARIZERS["spectral"](RegularizerOptions(8))
    g = generator()
    levels = [regularizer.draw(g, 4).level for _ in range(400)]
    assert all(isinstance(level, int) for level in levels)
    assert all(levels.count(level) > 70 for level in range(4))
    g = generator()
    assert [regularizer.draw(g, 9).level for _ in range(400)] == levels  # the batch size does not matter


def test_spectral_is_the_matched_pair_of_operators():
    regularizer = REGULARIZERS["spectral"](RegularizerOptions(8, mask="dct", keep=0.3))
    z, x = torch.randn(2, 3, 8, 8), torch.randn(2, 3, 32, 32)
    for level in range(4):
        draw = Draw(level=level)
        assert torch.equal(regularizer.latent(z, draw), LatentFilter(8, "dct", 0.3)(z, level))
        assert torch.equal(regularizer.image(x, draw), ImageBlur()(x, level))


def test_levels_by_sample_are_sliced_for_a_rank():
    regularizer = REGULARIZERS["spectral"](RegularizerOptions(8, per_sample=True))
    draw = regularizer.draw(generator(), 6)
    z, x = torch.randn(6, 3, 8, 8), torch.randn(6, 3, 32, 32)
    for operator, value in ((regularizer.latent, z), (regularizer.image, x)):
        parts = [operator(value[i : i + 3], draw.slice(i, i + 3)) for i in (0, 3)]
        torch.testing.assert_close(torch.cat(parts), operator(value, draw))
    assert Draw(level=2).slice(0, 1) == Draw(level=2)


def test_equivariance_turns_latent_and_image_alike():
    regularizer = REGULARIZERS["equivariance"](RegularizerOptions(4))
    z, x = torch.randn(1, 2, 4, 4), torch.randn(1, 3, 16, 16)
    turned = regularizer.image(x, Draw(quarter_turns=3))
    assert torch.equal(turned, x.rot90(3, (2, 3)))
    assert torch.equal(regularizer.latent(z, Draw(side=4)), z)
    draw = Draw(side=2, quarter_turns=1)
    assert regularizer.latent(z, draw).shape == (1, 2, 2, 2)
    assert regularizer.image(x, draw).shape == (1, 3, 8, 8)
    flat = torch.full((1, 3, 16, 16), 0.4)
    torch.testing.assert_close(regularizer.image(flat, draw), torch.full((1, 3, 8, 8), 0.4))
    g = generator()
    draws = [regularizer.draw(g, 2) for _ in range(200)]
    assert {draw.side for draw in draws} == {1, 2, 3, 4}
    assert {draw.quarter_turns for draw in draws} == {0, 1, 2, 3}


def test_equivariance_resizes_as_torch_does():
    x = torch.randn(1, 3, 16, 16)
    resized = REGULARIZERS["equivariance"](RegularizerOptions(4)).image(x, Draw(side=3))
    expected = torch.nn.functional.interpolate(x, (12, 12), mode="bicubic", antialias=True)
    torch.testing.assert_close(resized, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("mode", "side"), [("bilinear", 9), ("bicubic", 9), ("bilinear", 40)])
def test_resizing_by_matrices_is_torchs_own(mode, side):
    x_BCHW = torch.randn(2, 3, 20, 28, requires_grad=True)
    expected = F.interpolate(x_BCHW, (side, side), mode=mode, antialias=True, align_corners=False)
    torch.testing.assert_close(resize(x_BCHW, side, mode), expected, rtol=1e-5, atol=1e-5)


def test_equivariance_leaves_enough_for_the_discriminator():
    """At 32 pixels a quarter of the grid is less than a PatchGAN of two layers takes."""
    discriminator = PatchDiscriminator(3, 16, 2)
    regularizer = REGULARIZERS["equivariance"](
        RegularizerOptions(8, smallest_side=-(-discriminator.smallest_image // 4))
    )
    x_BCHW = torch.randn(1, 3, 32, 32)
    for seed in range(40):
        draw = regularizer.draw(torch.Generator().manual_seed(seed), 1)
        assert torch.isfinite(discriminator(regularizer.image(x_BCHW, draw))).all()


def test_none_changes_nothing():
    regularizer = REGULARIZERS["none"](RegularizerOptions(1))
    z = torch.randn(1, 2, 4, 4)
    draw = regularizer.draw(generator(), 1)
    assert draw == Draw()
    assert regularizer.latent(z, draw) is z
    assert regularizer.image(z, draw) is z


@pytest.mark.parametrize("kind", REGULARIZERS)
def test_every_regularizer_trains_a_tokenizer(kind):
    torch.manual_seed(0)
    model = Tokenizer(image_size=16, patch_size=4, latent_dim=3, width=16, depth=1, heads=2, hidden=24)
    regularizer, g = REGULARIZERS[kind](RegularizerOptions(4)), generator(3)
    assert not regularizer.state_dict()
    x = torch.rand(2, 3, 16, 16) * 2 - 1
    for _ in range(3):
        draw = regularizer.draw(g, 2)
        reconstruction, posterior = model(x, torch.randn(2, 3, 4, 4), lambda z, draw=draw: regularizer.latent(z, draw))
        terms = reconstruction_terms(reconstruction, regularizer.image(x, draw), posterior, weights=LossWeights())
        terms["total"].backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
