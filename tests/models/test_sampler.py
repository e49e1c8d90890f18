import pytest
import torch

from models.sampler import image_noise, sample

MEAN, STD, NULL = 1.5, 0.5, 9
LABEL = torch.zeros(4096, dtype=torch.long)


def gaussian_velocity(z, t_B, label_B):
    """The exact E[noise - data | z_t] for data N(MEAN, STD^2)."""
    t = t_B[:, None, None, None]
    variance = (1 - t) ** 2 * STD**2 + t**2
    centred = z - (1 - t) * MEAN
    return (t - (1 - t) * STD**2) / variance * centred - MEAN


def noise(seed=0):
    return torch.randn(4096, 1, 2, 2, generator=torch.Generator().manual_seed(seed))


def run(velocity=gaussian_velocity, label=LABEL, start=None, **options):
    options = {"null_label": NULL, "method": "euler", "steps": 10, **options}
    start = noise()[: len(label)] if start is None else start
    return sample(velocity, start, label, **options)


@pytest.mark.parametrize(("method", "steps"), [("euler", 200), ("heun", 25), ("sde", 250)])
def test_recovers_an_analytic_gaussian(method, steps):
    z = run(method=method, steps=steps, step_noise=lambda i: noise(i + 1))
    assert z.mean().item() == pytest.approx(MEAN, abs=0.02)
    assert z.std().item() == pytest.approx(STD, rel=0.03)


def test_heun_is_of_second_order():
    exact = MEAN + STD * noise()
    errors = {
        (method, steps): (run(method=method, steps=steps) - exact).abs().mean().item()
        for method in ("euler", "heun")
        for steps in (20, 40)
    }
    assert errors["euler", 20] / errors["euler", 40] == pytest.approx(2, abs=0.5)
    assert errors["heun", 20] / errors["heun", 40] == pytest.approx(4, abs=1)


def test_integrates_a_constant_velocity_exactly():
    start = noise()[:2].double()
    for method in ("euler", "heun"):
        z = run(lambda z, t, c: torch.full_like(z, 2.0), LABEL[:2], start, method=method, steps=3)
        torch.testing.assert_close(z, start.float() - 2, atol=1e-6, rtol=1e-6)
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
        run(steps=0)
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
