"""Normalisation and its inverse, and pictures that depend on nothing but their own seed and label."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from models.generator import ImageGenerator, LatentStatistics, Sampling, drawn_ahead
from models.metrics import to_uint8
from models.sampler import image_noise
from models.sit import SiT
from models.tokenizers.vit import Tokenizer

CLASSES = 5


@pytest.fixture(scope="module")
def generator() -> ImageGenerator:
    """Tiny networks with random weights, SiT's zero layers included."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        tokenizer = Tokenizer(image_size=16, patch_size=4, latent_dim=3, width=16, depth=1, heads=2, hidden=24)
        sit = SiT(grid=4, latent_dim=3, classes=CLASSES, width=16, depth=1, heads=2)
        for parameter in sit.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
    statistics = LatentStatistics(mean=[0.5, -1.0, 0.0], std=[2.0, 0.3, 1.0])
    return ImageGenerator(tokenizer, sit, statistics, "velocity").eval()


def pictures(generator: ImageGenerator, labels, indices, **changes):
    sampling = replace(Sampling("heun", steps=3, guidance=1.5, seed=7), **changes)
    return generator.draw(torch.tensor(labels), indices, sampling)


channel = st.tuples(st.floats(-10, 10), st.floats(0.01, 100))


@given(st.lists(channel, min_size=1, max_size=6), st.integers(0, 2**31))
def test_denormalise_undoes_normalise(channels, seed):
    mean, std = zip(*channels, strict=True)
    statistics = LatentStatistics(mean, std)
    raw = torch.randn(2, len(mean), 3, 3, generator=torch.Generator().manual_seed(seed))
    raw = raw * statistics.std_D[:, None, None] + statistics.mean_D[:, None, None]
    torch.testing.assert_close(statistics.denormalise(statistics.normalise(raw)), raw, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(statistics.normalise(statistics.denormalise(raw)), raw, rtol=1e-4, atol=1e-3)


def test_normalise_gives_zero_mean_and_unit_std():
    raw = torch.randn(64, 2, 8, 8, generator=torch.Generator().manual_seed(0)) * 3.0 + 5.0
    mean, std = raw.mean((0, 2, 3)), raw.std((0, 2, 3))
    normalised = LatentStatistics(mean.tolist(), std.tolist()).normalise(raw)
    torch.testing.assert_close(normalised.mean((0, 2, 3)), torch.zeros(2), rtol=0, atol=1e-5)
    torch.testing.assert_close(normalised.std((0, 2, 3)), torch.ones(2), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("mean", "std"), [([0.0], [1.0, 1.0]), ([0.0], [0.0]), ([0.0], [float("nan")])])
def test_impossible_statistics_are_refused(mean, std):
    with pytest.raises(ValueError, match="standard deviations"):
        LatentStatistics(mean, std)


@pytest.mark.parametrize("method", ["euler", "heun", "ddim", "sde"])
def test_a_picture_depends_on_its_own_seed_and_label_only(generator, method):
    together = pictures(generator, [0, 3, 3, 1], [4, 9, 2, 9], method=method)
    alone = torch.cat(
        [pictures(generator, [label], [i], method=method) for label, i in ((0, 4), (3, 9), (3, 2), (1, 9))]
    )
    assert together.dtype == torch.uint8
    assert together.shape == (4, 3, 16, 16)
    assert (together.int() - alone.int()).abs().max() <= 1  # sums over another batch may round otherwise
    assert not torch.equal(together[1], together[2])  # another seed
    assert not torch.equal(together[1], together[3])  # another label


def test_the_same_call_gives_the_same_bytes(generator):
    assert torch.equal(pictures(generator, [1, 2], [0, 1]), pictures(generator, [1, 2], [0, 1]))
    assert not torch.equal(pictures(generator, [1, 2], [0, 1]), pictures(generator, [1, 2], [0, 1], seed=8))


def test_the_sampled_latent_is_denormalised_before_it_is_decoded(generator):
    """A velocity of zero leaves the noise as it was."""
    still = SiT(grid=4, latent_dim=3, classes=CLASSES, width=16, depth=1, heads=2)
    drawn = pictures(ImageGenerator(generator.tokenizer, still, generator.statistics, "velocity"), [2], [5])
    noise = image_noise(7, [5], (3, 4, 4), "cpu")
    with torch.no_grad():
        assert torch.equal(drawn, to_uint8(generator.tokenizer.decode(generator.statistics.denormalise(noise))))


@pytest.mark.parametrize(("labels", "indices"), [([CLASSES], [0]), ([-1], [0]), ([0, 1], [0]), ([[0]], [0])])
def test_labels_out_of_range_or_number_are_refused(generator, labels, indices):
    with pytest.raises(ValueError, match=r"labels|indices"):
        pictures(generator, labels, indices)


def test_noise_is_drawn_ahead_in_turn_and_only_as_far_as_it_is_wanted():
    seen = []

    def draw(stream):
        seen.append(stream)
        return torch.tensor(stream)

    assert [int(drawn) for drawn in drawn_ahead(draw, range(1, 5))] == [1, 2, 3, 4]
    assert seen == [1, 2, 3, 4]
    started = drawn_ahead(draw, range(1, 5))
    assert seen == [1, 2, 3, 4]  # an ODE asks for none
    assert int(next(started)) == 1
    started.close()
    assert seen == [1, 2, 3, 4, 1, 2]


def test_what_fails_in_drawing_ahead_is_raised():
    def draw(stream):
        if stream == 2:
            raise MemoryError
        return torch.zeros(1)

    ahead = drawn_ahead(draw, range(1, 4))
    next(ahead)
    with pytest.raises(MemoryError):
        next(ahead)
