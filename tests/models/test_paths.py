import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.paths import (
    PATHS,
    TIMES,
    diffusion_loss_B,
    drop_labels,
    ends,
    interpolate,
    t_bin_means,
    target,
    to_velocity,
)

z, noise = torch.randn(2, 4, 3, 2, 2, generator=torch.Generator().manual_seed(0)).unbind(0)
every_path = pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)


@every_path
def test_ends_of_the_path(path):
    torch.testing.assert_close(interpolate(path, z, noise, torch.zeros(4)), z, atol=1e-6, rtol=0)
    signal = 0.0 if path is not PATHS["vp"] else math.exp(-19.9 / 4 - 0.05)
    expected = signal * z + math.sqrt(1 - signal**2) * noise
    torch.testing.assert_close(interpolate(path, z, noise, torch.ones(4)), expected, atol=1e-6, rtol=1e-6)


def test_the_coefficients_are_the_published_ones():
    """SiT's: GVP by sines, VP by the integral of a rate of noise from .1 to 20; both keep alpha^2 + sigma^2 = 1."""
    t = torch.linspace(0, 1, 101, dtype=torch.float64)
    assert torch.equal(PATHS["linear"](t).alpha, 1 - t)
    rate = 0.1 + t * 19.9
    integral = torch.cumulative_trapezoid(rate, t)
    torch.testing.assert_close(PATHS["vp"](t).alpha[1:], (-integral / 2).exp())
    for name in ("vp", "cosine"):
        at = PATHS[name](t)
        torch.testing.assert_close(at.alpha**2 + at.sigma**2, torch.ones_like(t))
    torch.testing.assert_close(PATHS["cosine"](t).sigma, torch.sin(t * math.pi / 2))


@every_path
def test_rates_are_the_derivatives(path):
    t = torch.linspace(0.05, 0.95, 19, dtype=torch.float64, requires_grad=True)
    at = path(t)
    for value, rate in ((at.alpha, at.alpha_rate), (at.sigma, at.sigma_rate)):
        torch.testing.assert_close(torch.autograd.grad(value.sum(), t, retain_graph=True)[0], rate.detach())


@settings(max_examples=60)
@given(st.floats(0.01, 0.99), st.sampled_from(["velocity", "noise", "data"]), st.sampled_from(list(PATHS.values())))
def test_every_prediction_means_the_paths_velocity(time, prediction, path):
    t = torch.full((4,), time)
    zt = interpolate(path, z, noise, t)
    velocity = to_velocity(path, target(path, z, noise, t, prediction), zt, t, prediction)
    torch.testing.assert_close(velocity, target(path, z, noise, t, "velocity"), atol=2e-3, rtol=1e-3)
    for found, true in zip(ends(path, velocity, zt, time), (z, noise), strict=True):
        torch.testing.assert_close(found, true, atol=2e-3, rtol=2e-3)


@every_path
@pytest.mark.parametrize("prediction", ["velocity", "noise", "data"])
@pytest.mark.parametrize("time", [0.0, 1.0])
def test_velocities_and_targets_stay_finite_at_both_ends(path, prediction, time):
    t = torch.full((4,), time)
    assert to_velocity(path, z, noise, t, prediction).isfinite().all()
    assert target(path, z, noise, t, prediction).isfinite().all()


def test_velocity_of_the_linear_path_is_its_slope():
    t = torch.full((4,), 0.3)
    path = PATHS["linear"]
    difference = (interpolate(path, z, noise, t + 0.25) - interpolate(path, z, noise, t)) / 0.25
    torch.testing.assert_close(difference, target(path, z, noise, t, "velocity"), atol=1e-5, rtol=1e-4)
    assert torch.equal(target(path, z, noise, t, "velocity"), noise - z)


def test_times_have_their_distribution():
    uniform = torch.rand(100_000, generator=torch.Generator().manual_seed(0))
    assert TIMES["uniform"](uniform) is uniform
    t = TIMES["logit_normal"](uniform)
    logits = torch.logit(t.double())
    assert logits.mean().item() == pytest.approx(0, abs=0.02)
    assert logits.std().item() == pytest.approx(1, abs=0.02)
    edges = TIMES["logit_normal"](torch.tensor([0.0, 0.5, 1 - 2**-24]))
    assert edges[:2].tolist() == [0.0, 0.5]
    assert edges[2] < 1


def test_loss_is_the_mean_of_each_sample():
    loss = diffusion_loss_B(z.bfloat16(), z.bfloat16() + 2)
    assert loss.shape == (4,)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(diffusion_loss_B(z, z + 2), torch.full((4,), 4.0))


def test_bins_of_t():
    sums, counts = t_bin_means(torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.tensor([0.0, 0.24, 0.5, 1.0]))
    assert sums.tolist() == [3, 0, 3, 4]
    assert counts.tolist() == [2, 0, 1, 1]


def test_label_dropout():
    label, uniform = torch.arange(1000), torch.rand(1000, generator=torch.Generator().manual_seed(0))
    dropped = drop_labels(label, uniform, 0.1, 1000)
    assert torch.equal(dropped == 1000, uniform < 0.1)
    assert torch.equal(dropped[uniform >= 0.1], label[uniform >= 0.1])
    assert torch.equal(drop_labels(label, uniform, 0.0, 1000), label)
    assert bool((drop_labels(label, uniform, 1.0, 1000) == 1000).all())
