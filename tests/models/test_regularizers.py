"""The regularizers: what each draws, and what it does to the latent and the image; resizing on the way."""

import pytest
import torch
import torch.nn.functional as F

from models.discriminator import PatchDiscriminator
from models.reconstruction import LossWeights, TokenizerDraws, TokenizerObjective
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


@pytest.mark.parametrize("per_sample", [False, True])
def test_levels_are_drawn_with_their_probabilities(per_sample):
    options = RegularizerOptions(8, per_sample=per_sample, probabilities=(0.5, 0.3, 0.2, 0.0))
    regularizer, g = REGULARIZERS["spectral"](options), generator()
    levels = torch.cat([torch.as_tensor(regularizer.draw(g, 20).level).view(-1) for _ in range(2000)])
    shares = levels.bincount(minlength=4) / len(levels)
    torch.testing.assert_close(shares, torch.tensor([0.5, 0.3, 0.2, 0.0]), atol=0.04, rtol=0)
    assert shares[3] == 0


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
    assert regularizer.source(x, draw) is x
    assert regularizer.latent(z, draw).shape == (1, 2, 2, 2)
    assert regularizer.image(x, draw).shape == (1, 3, 8, 8)
    flat = torch.full((1, 3, 16, 16), 0.4)
    torch.testing.assert_close(regularizer.image(flat, draw), torch.full((1, 3, 8, 8), 0.4))


def test_equivariance_encodes_small_images_too():
    """Source and target are the small image; its latent is decoded as it is."""
    regularizer, draw = REGULARIZERS["equivariance"](RegularizerOptions(4)), Draw(side=3, encodes_small=True)
    x, z = torch.randn(1, 3, 16, 16), torch.randn(1, 2, 3, 3)
    assert regularizer.source(x, draw).shape == (1, 3, 12, 12)
    assert torch.equal(regularizer.source(x, draw), regularizer.image(x, draw))
    assert regularizer.latent(z, draw) is z


def test_equivariance_draws_as_eq_vae_does():
    """The shares of its three kinds of step, its sides of a grid of 32 and its turns."""
    regularizer, g = REGULARIZERS["equivariance"](RegularizerOptions(32)), generator()
    draws = [regularizer.draw(g, 2) for _ in range(4000)]
    kinds = {
        "latent": [draw for draw in draws if draw.quarter_turns],
        "image": [draw for draw in draws if draw.encodes_small],
        "plain": [draw for draw in draws if draw == Draw()],
    }
    assert sum(map(len, kinds.values())) == 4000
    shares = {kind: len(drawn) / 4000 for kind, drawn in kinds.items()}
    assert shares == pytest.approx({"latent": 0.5, "image": 0.125, "plain": 0.375}, abs=0.025)  # 3 deviations
    assert {draw.quarter_turns for draw in kinds["latent"]} == {1, 2, 3}
    for kind in ("latent", "image"):
        assert {draw.side for draw in kinds[kind]} == set(range(8, 32))


def test_equivariance_needs_a_smaller_side():
    with pytest.raises(ValueError, match="leaves no smaller side"):
        REGULARIZERS["equivariance"](RegularizerOptions(4, smallest_side=4))


@pytest.mark.parametrize("side", [3, 5, 7])
def test_equivariance_resizes_as_eq_vae_does(side):
    """Bilinear by a factor, without antialiasing."""
    regularizer = REGULARIZERS["equivariance"](RegularizerOptions(8))
    x, z = torch.randn(1, 3, 32, 32), torch.randn(1, 2, 8, 8)
    for resized, whole in ((regularizer.image(x, Draw(side=side)), x), (regularizer.latent(z, Draw(side=side)), z)):
        expected = F.interpolate(whole, scale_factor=side / 8, mode="bilinear", align_corners=False)
        torch.testing.assert_close(resized, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize(("mode", "side"), [("bilinear", 9), ("bicubic", 9), ("bilinear", 40)])
def test_resizing_by_matrices_is_torchs_own(mode, side, antialias):
    x_BCHW = torch.randn(2, 3, 20, 28, requires_grad=True)
    expected = F.interpolate(x_BCHW, (side, side), mode=mode, antialias=antialias, align_corners=False)
    torch.testing.assert_close(resize(x_BCHW, side, mode, antialias=antialias), expected, rtol=1e-5, atol=1e-5)


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


def test_scale_draws_a_half_and_a_quarter_for_the_added_reconstruction_alone():
    regularizer, g = REGULARIZERS["scale"](RegularizerOptions(16)), generator()
    draws = [regularizer.draw(g, 2) for _ in range(400)]
    half, quarter = Draw(added=Draw(side=8)), Draw(added=Draw(side=4))
    assert draws.count(half) + draws.count(quarter) == 400
    assert 160 < draws.count(half) < 240


@pytest.mark.parametrize(("grid", "smallest", "sides"), [(16, 1, (8, 4)), (8, 4, (4,)), (14, 1, (7,)), (4, 2, (2,))])
def test_scale_leaves_out_what_the_grid_does_not_allow(grid, smallest, sides):
    assert REGULARIZERS["scale"](RegularizerOptions(grid, smallest_perceptual_side=smallest)).sides == sides


@pytest.mark.parametrize(("grid", "smallest"), [(7, 1), (1, 1), (8, 5)])
def test_scale_needs_a_half_or_a_quarter(grid, smallest):
    with pytest.raises(ValueError, match=f"a {grid} x {grid} latent has no half or quarter"):
        REGULARIZERS["scale"](RegularizerOptions(grid, smallest_perceptual_side=smallest))


@pytest.mark.parametrize("side", [4, 2])
def test_scale_is_the_mean_of_cells_and_of_their_pixels(side):
    regularizer, draw = REGULARIZERS["scale"](RegularizerOptions(8)), Draw(side=side)
    z, x = torch.randn(2, 3, 8, 8), torch.randn(2, 3, 32, 32)
    for scaled, whole in ((regularizer.latent(z, draw), z), (regularizer.image(x, draw), x)):
        torch.testing.assert_close(scaled, F.avg_pool2d(whole, 8 // side))


def test_a_draw_is_sliced_with_the_added_one():
    part = Draw(level=torch.arange(4), added=Draw(level=torch.arange(4).flip(0))).slice(1, 3)
    assert part.added is not None
    assert torch.equal(torch.as_tensor(part.level), torch.tensor([1, 2]))
    assert torch.equal(torch.as_tensor(part.added.level), torch.tensor([2, 1]))
    assert Draw(added=Draw(side=2)).slice(0, 1) == Draw(added=Draw(side=2))


@pytest.mark.parametrize("kind", REGULARIZERS)
def test_the_identity_draw_changes_nothing(kind):
    regularizer, z, x = REGULARIZERS[kind](RegularizerOptions(8)), torch.randn(1, 2, 8, 8), torch.randn(1, 3, 32, 32)
    assert torch.equal(regularizer.latent(z, Draw()), z)
    assert torch.equal(regularizer.image(x, Draw()), x)
    assert regularizer.source(x, Draw()) is x
    if kind in ("none", "spectrum_prior"):
        assert regularizer.draw(generator(), 1) == Draw()


@pytest.mark.parametrize("kind", REGULARIZERS)
def test_draws_repeat_by_seed_and_parts_of_the_batch_are_parts_of_the_whole(kind):
    regularizer = REGULARIZERS[kind](RegularizerOptions(8, per_sample=True))
    z, x = torch.randn(4, 2, 8, 8), torch.randn(4, 3, 32, 32)
    for seed in range(6):
        drawn, again = (regularizer.draw(generator(seed), 4) for _ in range(2))
        draw, again = drawn.added or drawn, again.added or again
        for operator, value in ((regularizer.latent, z), (regularizer.image, x)):
            parts = [operator(value[i : i + 2], again.slice(i, i + 2)) for i in (0, 2)]
            torch.testing.assert_close(torch.cat(parts), operator(value, draw))
    for name, whole in regularizer.penalties(z, x).items():
        halves = [regularizer.penalties(z[i : i + 2], x[i : i + 2])[name] for i in (0, 2)]
        torch.testing.assert_close(torch.stack(halves).mean(), whole)


@pytest.mark.parametrize("kind", REGULARIZERS)
def test_every_regularizer_trains_a_tokenizer(kind):
    torch.manual_seed(0)
    model = Tokenizer(image_size=32, patch_size=4, latent_dim=3, width=16, depth=1, heads=2, hidden=24)
    regularizer, g = REGULARIZERS[kind](RegularizerOptions(8)), generator(3)
    assert not regularizer.state_dict()
    objective = TokenizerObjective(model, regularizer, LossWeights(), None, PatchDiscriminator(3, 8, 1))
    x = torch.rand(2, 3, 32, 32) * 2 - 1
    for _ in range(12):
        draws = TokenizerDraws(torch.randn(2, 3, 8, 8), regularizer.draw(g, 2))
        made = objective(x, draws, uses_discriminator=False)
        assert made.output_BCHW.shape == made.target_BCHW.shape
        made.terms["total"].backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
