import itertools

import pytest
import torch

from models.choices import EVALUATIONS
from models.paths import PATHS, to_velocity
from models.sampler import image_noise, sample

MEAN, STD, NULL = 1.5, 0.5, 9
LABEL = torch.zeros(4096, dtype=torch.long)
METHODS = {"euler": 400, "heun": 40, "ddim": 200, "dopri5": 2, "sde": 500}


def gaussian(path, prediction="velocity", mean=MEAN):
    """The exact velocity of data N(mean, STD^2) on a path, by way of a prediction: its posterior mean given z_t."""

    def velocity(z, t_B, label_B):
        at = path(t_B[:, None, None, None])
        shift = z - at.alpha * mean
        variance = at.alpha**2 * STD**2 + at.sigma**2
        data, noise = mean + at.alpha * STD**2 / variance * shift, at.sigma / variance * shift
        if prediction == "velocity":
            return at.alpha_rate * data + at.sigma_rate * noise
        return to_velocity(path, data if prediction == "data" else noise, z, t_B, prediction)

    return velocity


def mixture(path, prediction="velocity", means=(-2.0, 2.0), std=0.25):
    """The exact velocity of an equal mixture of two Gaussians in each coordinate, by way of a prediction."""

    def velocity(z, t_B, label_B):
        at = path(t_B[:, None, None, None])
        variance = at.alpha**2 * std**2 + at.sigma**2
        shifts = torch.stack([z - at.alpha * mean for mean in means])
        share = torch.softmax(-(shifts**2) / (2 * variance), 0)
        mean = torch.stack([mean + at.alpha * std**2 / variance * s for mean, s in zip(means, shifts, strict=True)])
        data, noise = (share * mean).sum(0), (share * at.sigma / variance * shifts).sum(0)
        if prediction == "velocity":
            return at.alpha_rate * data + at.sigma_rate * noise
        return to_velocity(path, data if prediction == "data" else noise, z, t_B, prediction)

    return velocity


gaussian_velocity = gaussian(PATHS["linear"])


def noise(seed=0):
    return torch.randn(4096, 1, 2, 2, generator=torch.Generator().manual_seed(seed))


def run(velocity=gaussian_velocity, label=LABEL, start=None, **options):
    options = {"null_label": NULL, "method": "euler", "steps": 11, **options}
    start = noise()[: len(label)] if start is None else start
    return sample(velocity, start, label, **options)


def recovered(velocity, path, method):
    options = {"steps": METHODS[method], "step_noise": lambda i: noise(i + 1), "last_step": 0.01}
    return run(velocity, method=method, path=PATHS[path], **options)


@pytest.mark.parametrize(
    ("path", "prediction", "method"), itertools.product(PATHS, ("velocity", "noise", "data"), METHODS)
)
def test_recovers_an_analytic_gaussian(path, prediction, method):
    exact = gaussian(PATHS[path], prediction)
    z = recovered(exact, path, method)
    assert z.mean().item() == pytest.approx(MEAN, abs=0.02)
    assert z.std().item() == pytest.approx(STD, rel=0.04)


@pytest.mark.parametrize(
    ("path", "prediction", "method"), itertools.product(PATHS, ("velocity", "noise", "data"), METHODS)
)
def test_recovers_an_analytic_mixture(path, prediction, method):
    exact = mixture(PATHS[path], prediction)
    z = recovered(exact, path, method)
    upper = z > 0
    assert upper.float().mean().item() == pytest.approx(0.5, abs=0.02)
    for part, mean in ((z[upper], 2.0), (z[~upper], -2.0)):
        assert part.mean().item() == pytest.approx(mean, abs=0.03)
        assert part.std().item() == pytest.approx(0.25, rel=0.08)


def test_heun_is_of_second_order():
    exact = MEAN + STD * noise()
    errors = {
        (method, steps): (run(method=method, steps=steps + 1) - exact).abs().mean().item()
        for method in ("euler", "heun")
        for steps in (20, 40)
    }
    assert errors["euler", 20] / errors["euler", 40] == pytest.approx(2, abs=0.5)
    assert errors["heun", 20] / errors["heun", 40] == pytest.approx(4, abs=1)


def public_heun(velocity, z, intervals):
    """REPA's: the last interval is an Euler step."""
    times = torch.linspace(1, 0, intervals + 1, dtype=torch.float64).tolist()
    for number, (t, t_next) in enumerate(itertools.pairwise(times)):
        slope = velocity(z, torch.full((len(z),), t), None)
        ahead = z + (t_next - t) * slope
        if number < intervals - 1:
            ahead = z + (t_next - t) * (slope + velocity(ahead, torch.full((len(z),), t_next), None)) / 2
        z = ahead
    return z


def test_heun_ends_as_the_public_samplers_do():
    """50 points in time are 49 intervals, as SiT counts."""
    torch.testing.assert_close(
        run(method="heun", steps=50), public_heun(gaussian_velocity, noise(), 49), atol=1e-5, rtol=1e-5
    )


def test_ddim_on_the_linear_path_is_euler():
    torch.testing.assert_close(run(method="ddim", steps=9), run(method="euler", steps=9), atol=2e-5, rtol=1e-5)


def test_dopri5_comes_within_its_tolerances():
    exact = MEAN + STD * noise()
    loose, tight = (
        (run(method="dopri5", tolerances=pair) - exact).abs().max().item() for pair in ((1e-2, 1e-1), (1e-7, 1e-6))
    )
    assert tight < 2e-3 < loose


def test_integrates_a_constant_velocity_exactly():
    start = noise()[:2].double()
    for method in ("euler", "heun", "ddim", "dopri5"):
        z = run(lambda z, t, c: torch.full_like(z, 2.0), LABEL[:2], start, method=method, steps=4)
        torch.testing.assert_close(z, start.float() - 2, atol=1e-5, rtol=1e-5)
        assert z.dtype == torch.float32


class Recorder:
    """v = label at every position, and a record of each call."""

    def __init__(self):
        self.calls = []

    def __call__(self, z, t_B, label_B):
        assert len(z) == len(t_B) == len(label_B)
        self.calls.append((t_B[0].item(), len(z)))
        return label_B.float()[:, None, None, None].expand_as(z)


def test_scale_1_is_unguided_at_no_cost():
    recorder = Recorder()
    z = run(recorder, LABEL[:2] + 3, guidance_scale=1.0)
    assert {batch for _, batch in recorder.calls} == {2}
    torch.testing.assert_close(z, noise()[:2] - 3, atol=1e-5, rtol=1e-5)


def test_guidance_moves_all_channels_away_from_null():
    z = run(Recorder(), LABEL[:2] + 3, noise()[:2].repeat(1, 5, 1, 1), guidance_scale=2.0)
    guided = NULL + 2.0 * (3 - NULL)
    torch.testing.assert_close(z, noise()[:2].repeat(1, 5, 1, 1) - guided, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("method", [method for method in METHODS if method != "dopri5"])
def test_evaluations_are_as_counted(method):
    recorder = Recorder()
    run(recorder, LABEL[:2], method=method, steps=7, step_noise=lambda i: noise()[:2])
    assert len(recorder.calls) == EVALUATIONS[method](7)


def test_heun_asks_the_interval_once_a_step():
    recorder = Recorder()
    run(recorder, LABEL[:2] + 3, method="heun", guidance_scale=2.0, guidance_interval=(0.25, 0.7))
    sizes = [batch for _, batch in recorder.calls]
    assert len(sizes) == 19
    assert sizes[0:18:2] == sizes[1:18:2]  # the second evaluation of a step goes with its first
    assert [round(t, 1) for t, batch in recorder.calls if batch == 4] == [
        0.7,
        0.6,
        0.6,
        0.5,
        0.5,
        0.4,
        0.4,
        0.3,
        0.3,
        0.2,
    ]


def test_guidance_outside_its_interval_costs_nothing():
    recorder = Recorder()
    run(recorder, LABEL[:2] + 3, guidance_scale=2.0, guidance_interval=(0.25, 0.7))
    assert {batch for t, batch in recorder.calls if 0.25 <= t <= 0.7} == {4}
    assert {batch for t, batch in recorder.calls if t > 0.71 or t < 0.24} == {2}
    assert [round(t, 1) for t, _ in recorder.calls] == [1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1]


def test_sde_asks_at_its_last_step_and_draws_no_noise_there():
    recorder, drawn = Recorder(), []

    def step_noise(i):
        drawn.append(i)
        return torch.zeros(2, 1, 2, 2)

    run(recorder, LABEL[:2], method="sde", steps=5, step_noise=step_noise, last_step=0.1)
    assert [round(t, 3) for t, _ in recorder.calls] == [1.0, 0.775, 0.55, 0.325, 0.1]
    assert drawn == [0, 1, 2, 3]


def test_what_cannot_be_sampled_is_refused():
    with pytest.raises(ValueError, match="too few"):
        run(steps=1)
    with pytest.raises(ValueError, match="too few"):
        run(method="sde", steps=1, step_noise=lambda i: noise())
    with pytest.raises(ValueError, match="step_noise"):
        run(method="sde")


def test_noise_belongs_to_the_image():
    whole = image_noise(3, range(10), (4, 2, 2), "cpu")
    assert torch.equal(image_noise(3, [7, 2], (4, 2, 2), "cpu"), whole[[7, 2]])
    assert not torch.equal(image_noise(4, range(10), (4, 2, 2), "cpu"), whole)
    assert not torch.equal(image_noise(3, range(10), (4, 2, 2), "cpu", stream=1), whole)
    assert len(whole.flatten().unique()) == whole.numel()


def test_noise_is_standard_normal():
    values = image_noise(0, range(200), (4, 8, 8), "cpu")
    assert values.dtype == torch.float32
    assert values.mean().item() == pytest.approx(0, abs=0.02)
    assert values.std().item() == pytest.approx(1, abs=0.02)
