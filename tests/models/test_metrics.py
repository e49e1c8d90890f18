import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.metrics import (
    FeatureMoments,
    FrechetReference,
    frechet_distance,
    from_uint8,
    inception_score,
    precision_recall,
    psnr_B,
    resample_counts,
    ssim_B,
    to_uint8,
)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def pair(batch=3, size=24):
    x = torch.randint(256, (batch, 3, size, size), generator=generator(), dtype=torch.uint8)
    noise = torch.randint(-20, 21, x.shape, generator=generator(1))
    return x, (x.int() + noise).clamp(0, 255).to(torch.uint8)


def test_bytes_survive_the_round_trip_and_the_rule_rounds():
    every = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    assert torch.equal(to_uint8(from_uint8(every)), every)
    assert to_uint8(torch.tensor([-9.0, -1.0, 0.0, 1.0, 9.0])).tolist() == [0, 0, 128, 255, 255]


def test_psnr():
    from torchmetrics.functional.image import peak_signal_noise_ratio  # seconds, of every process that collects

    x, y = pair()
    expected = peak_signal_noise_ratio(y.double(), x.double(), 255.0, reduction="none", dim=(1, 2, 3))
    torch.testing.assert_close(psnr_B(x, y), expected.double(), atol=1e-4, rtol=1e-5)
    off_by_one = torch.full((1, 3, 8, 8), 7, dtype=torch.uint8)
    assert psnr_B(off_by_one, off_by_one + 1).item() == pytest.approx(20 * math.log10(255))
    assert psnr_B(x, x).isfinite().all()


def test_ssim():
    from torchmetrics.functional.image import structural_similarity_index_measure

    x, y = pair()
    expected = structural_similarity_index_measure(y.double(), x.double(), data_range=255.0, reduction="none")
    torch.testing.assert_close(ssim_B(x, y), expected, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(ssim_B(x, x), torch.ones(3, dtype=torch.float64))
    with pytest.raises(ValueError, match="6 pixels"):
        ssim_B(x[..., :5], y[..., :5])


@settings(max_examples=25)
@given(st.lists(st.tuples(st.floats(-3, 3), st.floats(0.1, 3), st.floats(0.1, 3)), min_size=1, max_size=5))
def test_frechet_distance_of_commuting_gaussians(axes):
    shift, a, b = torch.tensor(axes, dtype=torch.float64).unbind(1)
    turn = torch.linalg.qr(torch.randn(len(axes), len(axes), dtype=torch.float64, generator=generator()))[0]
    cov_a, cov_b = turn @ torch.diag(a**2) @ turn.T, turn @ torch.diag(b**2) @ turn.T
    expected = (shift**2).sum() + ((a - b) ** 2).sum()
    distance = frechet_distance(torch.zeros_like(shift), cov_a, shift, cov_b)
    assert distance == pytest.approx(float(expected), abs=1e-6)


def test_frechet_distance_agrees_with_sqrtm_and_vanishes():
    from scipy.linalg import sqrtm

    x, y = torch.randn(500, 6, generator=generator()), torch.randn(400, 6, generator=generator(1)) @ torch.rand(6, 6)
    (mean_a, cov_a), (mean_b, cov_b) = feature_moments(x), feature_moments(y)
    root = torch.from_numpy(sqrtm((cov_a @ cov_b).numpy()).real)
    expected = (mean_a - mean_b).square().sum() + (cov_a + cov_b - 2 * root).trace()
    assert frechet_distance(mean_a, cov_a, mean_b, cov_b) == pytest.approx(float(expected), abs=1e-6)
    assert frechet_distance(mean_a, cov_a, mean_a, cov_a) == pytest.approx(0, abs=1e-8)
    flat = torch.zeros(6, 6, dtype=torch.float64)  # fewer samples than features: singular
    assert frechet_distance(mean_a, flat, mean_a, flat) == 0


def test_moments_in_batches():
    x = torch.randn(100, 5, generator=generator()) + 3
    moments = FeatureMoments(5)
    for part in x.split(33):
        moments.update(part)
    mean, cov = moments.result()
    torch.testing.assert_close(mean, x.double().mean(0))
    torch.testing.assert_close(cov, x.double().T.cov())
    with pytest.raises(ValueError, match="two samples"):
        feature_moments(x[:1])


def feature_moments(features_NF: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    moments = FeatureMoments(features_NF.shape[1])
    moments.update(features_NF)
    return moments.result()


def test_precision_and_recall():
    real = torch.randn(300, 4, generator=generator())
    assert precision_recall(real, real) == (1.0, 1.0)
    assert precision_recall(real, real + 100) == (0.0, 0.0)
    narrow = real[:150] * 0.1
    precision, recall = precision_recall(real, narrow, chunk=64)
    assert precision > 0.95
    assert recall < 0.2
    with pytest.raises(ValueError, match="more than 3"):
        precision_recall(real[:3], real)


def test_precision_counts_balls_to_the_third_neighbour():
    line = torch.tensor([[0.0], [1.0], [3.0], [6.0], [10.0]])  # radii 6, 5, 3, 5, 9 with k = 3
    assert precision_recall(line, torch.tensor([[-6.0], [-6.5], [19.0], [19.5]]))[0] == 0.5


def test_inception_score():
    assert inception_score(torch.zeros(100, 10)) == pytest.approx(1)
    certain = 1000 * torch.eye(10).repeat(10, 1)
    assert inception_score(certain) == pytest.approx(10, rel=1e-6)
    assert inception_score(certain, split_size=10) == pytest.approx(10, rel=1e-6)


@pytest.mark.parametrize(("samples", "features"), [(40, 6), (12, 30)])
def test_distances_of_resamples_are_those_of_their_moments(samples, features):
    """With more samples than features and with fewer, where the smaller of two products is taken."""
    g = torch.Generator().manual_seed(0)
    real = (
        torch.randn(200, features, generator=g, dtype=torch.float64)
        @ torch.randn(features, features, generator=g).double()
    )
    fake = 0.5 + torch.randn(samples, features, generator=g)
    ours = fake.double().mean(0), fake.double().T.cov()
    reference = FrechetReference(real.mean(0), real.T.cov())
    counts = resample_counts(samples, 5, seed=3)
    assert counts.sum(1).tolist() == [samples] * 5
    assert not torch.equal(counts[0], counts[1])
    assert torch.equal(counts, resample_counts(samples, 5, seed=3))
    whole = torch.ones(1, samples, dtype=torch.long)
    found = reference.resampled(fake, torch.cat([counts, whole]))
    for value, count in zip(found, [*counts, whole[0]], strict=True):
        drawn = fake.repeat_interleave(count, 0).double()
        assert value.item() == pytest.approx(reference.distance(drawn.mean(0), drawn.T.cov()), rel=1e-8)
    assert found[-1].item() == pytest.approx(frechet_distance(real.mean(0), real.T.cov(), *ours))
