import math
import subprocess
import sys

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
    kid,
    paired_kid,
    precision_recall,
    psnr_B,
    resample_counts,
    resampled_inception_score,
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


@pytest.mark.parametrize("samples", [1500, 70])
def test_distances_of_resamples_are_those_of_all_rows_at_once(samples):
    """In blocks, with a last one that is smaller; and of few samples, which are taken whole."""
    g, features = torch.Generator().manual_seed(0), 40
    real = (
        torch.randn(200, features, generator=g, dtype=torch.float64)
        @ torch.rand(features, features, generator=g).double()
    )
    fake = (3 + torch.randn(samples, features, generator=g)) @ torch.rand(features, features, generator=g)
    counts = resample_counts(samples, 8, seed=0)
    found = FrechetReference(real.mean(0), real.T.cov()).resampled(fake, counts)
    values, vectors = torch.linalg.eigh(real.T.cov())
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    for value, count in zip(found, counts, strict=True):
        weight = count.double() / samples
        centred = (fake.double() - weight @ fake.double()) * (count.double() / (samples - 1)).sqrt()[:, None]
        trace = torch.linalg.svdvals(centred @ root).sum()
        apart = (weight @ fake.double() - real.mean(0)).square().sum()
        expected = apart + real.T.cov().trace() + centred.square().sum() - 2 * trace
        assert value.item() == pytest.approx(expected.item(), rel=1e-9)


def test_precision_and_recall_do_not_depend_on_the_chunks():
    real, fake = torch.randn(150, 4, generator=generator()), 0.4 + torch.randn(130, 4, generator=generator(1))
    radius = torch.cdist(real.double(), real.double()).kthvalue(4, dim=1).values
    precision = (torch.cdist(fake.double(), real.double()) <= radius).any(1).double().mean().item()
    assert 0.1 < precision < 1
    for chunk in (3, 64, 1024):
        assert precision_recall(real, fake, chunk=chunk)[0] == precision_recall(fake, real, chunk=chunk)[1] == precision


_PEAK = """
import resource
import torch
from models.metrics import FrechetReference, inception_score, kid, precision_recall, resample_counts
torch.set_num_threads(1)
features = torch.rand(6000, 1024)
real, counts = features[:200], resample_counts(6000, 2, 0)
reference = FrechetReference(torch.zeros(1024), torch.eye(1024))
reference.resampled(features[:3000], counts[:1, :3000]), kid(real, real), precision_recall(real, real)  # loads them
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
reference.resampled(features, counts)
kid(features, real, block=256)
precision_recall(real, features, chunk=512)
inception_score(features, split_size=500)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 / features.nbytes)
"""


def test_memory_beside_the_features_is_that_of_blocks():
    """About the fp32 features once more, of so few; a copy in fp64 is two of them, and there used to be several."""
    done = subprocess.run([sys.executable, "-c", _PEAK], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 1.5


def kernel(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return (a.double() @ b.double().T / a.shape[1] + 1) ** 3


def test_kid_is_the_unbiased_estimator_in_blocks():
    x, y = torch.randn(37, 5, generator=generator()), torch.randn(50, 5, generator=generator(1)) + 0.3
    xx, yy, xy = kernel(x, x), kernel(y, y), kernel(x, y)
    expected = (xx.sum() - xx.trace()) / (37 * 36) + (yy.sum() - yy.trace()) / (50 * 49) - 2 * xy.mean()
    for block in (7, 2048):
        assert kid(x, y, block).value == pytest.approx(float(expected), rel=1e-12)
    with pytest.raises(ValueError, match="three samples"):
        kid(x[:2], y)


def test_kid_does_not_depend_on_the_number_of_samples():
    """Between equal distributions its mean is 0 for few and many, where a Frechet distance grows as samples go."""

    def draws(count: int) -> torch.Tensor:
        pairs = [torch.randn(2 * count, 4, generator=generator(seed)).split(count) for seed in range(300)]
        return torch.tensor([kid(x, y).value for x, y in pairs])

    few, many = draws(5), draws(40)
    for values in (few, many):
        assert abs(values.mean()) < 3 * values.std() / 300**0.5
    assert few.min() < 0


def test_kid_of_torch_fidelity():
    """With one subset of all samples theirs is ours."""
    from torch_fidelity.metric_kid import kernel_poly, mmd2

    x, y = torch.randn(60, 8, generator=generator()), torch.randn(60, 8, generator=generator(1)) + 0.2
    a, b = x.double().numpy(), y.double().numpy()
    settings = {"kid_kernel_poly_degree": 3, "kid_kernel_poly_gamma": None, "kid_kernel_poly_coef0": 1}
    theirs = mmd2(kernel_poly(a, a, **settings), kernel_poly(a, b, **settings), kernel_poly(b, b, **settings))
    assert kid(x, y).value == pytest.approx(float(theirs), rel=1e-9)


def test_the_error_of_kid_is_a_jackknife():
    x, y = torch.randn(20, 4, generator=generator()), torch.randn(30, 4, generator=generator(1)) + 0.5
    without = torch.tensor([kid(x[torch.arange(20) != i], y).value for i in range(20)], dtype=torch.float64)
    expected = ((19 / 20) * (without - without.mean()).square().sum()).sqrt()
    assert kid(x, y).error == pytest.approx(float(expected), rel=1e-6)


def test_kid_of_pairs_leaves_out_the_same_image():
    x = torch.randn(40, 6, generator=generator())
    assert paired_kid(x, x).value == pytest.approx(0, abs=1e-12)
    assert kid(x, x).value < -1e-3, "which an image with itself makes too small"
    moved = x + 0.3
    xx, yy, xy = kernel(x, x), kernel(moved, moved), kernel(x, moved)
    off = [float(matrix.sum() - matrix.trace()) / (40 * 39) for matrix in (xx, yy, xy)]
    assert paired_kid(x, moved, 16).value == pytest.approx(off[0] + off[1] - 2 * off[2], rel=1e-9)
    kept = [torch.arange(40) != i for i in range(40)]
    without = torch.tensor([paired_kid(x[k], moved[k]).value for k in kept], dtype=torch.float64)
    expected = ((39 / 40) * (without - without.mean()).square().sum()).sqrt()
    assert paired_kid(x, moved).error == pytest.approx(float(expected), rel=1e-6)
    with pytest.raises(ValueError, match="40 and 39"):
        paired_kid(x, moved[1:])


def test_inception_scores_of_resamples_are_those_of_the_images_drawn():
    logits = torch.randn(50, 6, generator=generator())
    found = resampled_inception_score(logits, 4, seed=3, split_size=30)
    assert found.shape == (4,)
    first, second = resample_counts(30, 4, 3), resample_counts(20, 4, 4)
    for value, one, other in zip(found, first, second, strict=True):
        drawn = [logits[:30].repeat_interleave(one, 0), logits[30:].repeat_interleave(other, 0)]
        expected = sum(inception_score(part) for part in drawn) / 2
        assert value.item() == pytest.approx(expected, rel=1e-10)
