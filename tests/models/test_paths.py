import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.paths import diffusion_loss_B, drop_labels, interpolate, t_bin_means, target, to_velocity

z, noise = torch.randn(2, 4, 3, 2, 2, generator=torch.Generator().manual_seed(0)).unbind(0)


def test_ends_of_the_path():
    assert torch.equal(interpolate(z, noise, torch.zeros(4)), z)
    assert torch.equal(interpolate(z, noise, torch.ones(4)), noise)


@settings(max_examples=25)
@given(st.floats(0.01, 0.99), st.sampled_from(["velocity", "noise", "data"]))
def test_every_prediction_means_the_paths_velocity(time, prediction):
    t = torch.full((4,), time)
    velocity = to_velocity(target(z, noise, prediction), interpolate(z, noise, t), t, prediction)
    torch.testing.assert_close(velocity, noise - z, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("prediction", ["velocity", "noise", "data"])
@pytest.mark.parametrize("time", [0.0, 1.0])
def test_the_velocity_stays_finite_at_both_ends(prediction, time):
    assert to_velocity(z, noise, torch.full((4,), time), prediction).isfinite().all()


def test_velocity_is_the_derivative_of_the_path():
    t = torch.full((4,), 0.3)
    difference = (interpolate(z, noise, t + 0.25) - interpolate(z, noise, t)) / 0.25
    torch.testing.assert_close(difference, target(z, noise, "velocity"), atol=1e-5, rtol=1e-4)


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
