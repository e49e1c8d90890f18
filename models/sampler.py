"""Samplers of latents: the probability-flow ODE (Euler, Heun) and the reverse SDE, with classifier-free guidance.

t runs from 1 (noise) to 0 (data) on the linear path of `paths`.
Shapes: B batch, D latent channels, h w latent grid.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from .choices import MINIMUM_STEPS, SamplerMethod

Velocity = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(z_BDhw, t_B, label_B) -> velocity_BDhw."""


@torch.no_grad()
def sample(
    model_velocity: Velocity,
    noise_BDhw: Tensor,
    label_B: Tensor,
    *,
    null_label: int,
    method: SamplerMethod,
    steps: int,
    guidance_scale: float = 1.0,
    guidance_interval: tuple[float, float] = (0.0, 1.0),
    step_noise: Callable[[int], Tensor] | None = None,
    last_step: float = 0.04,
) -> Tensor:
    """Integrate latents from t = 1 to t = 0 in fp32.

    Args:
        model_velocity: the network, its prediction converted to a velocity.
        noise_BDhw: standard normal, the latents at t = 1.
        label_B: (B,) long.
        null_label: the label of no class.
        method: `euler`; `heun` (two evaluations per step); `sde`, Euler-Maruyama on the reverse SDE with diffusion
            w(t) = 2 t, whose last step, from t = `last_step`, adds no noise.
        steps: number of equal steps; for `sde` it includes the last one, and the others divide [last_step, 1].
        guidance_scale: w in v(null) + w (v(label) - v(null)), on all channels; 1: no guidance, at no cost.
        guidance_interval: [low, high]; there is no guidance if the t of an evaluation is outside of it.
        step_noise: standard normal like `noise_BDhw` for step i from 0, required only by `sde`.
        last_step: see `method`.

    Returns:
        z_BDhw at t = 0, fp32.

    Raises:
        ValueError: too few steps, or `sde` without `step_noise`.
    """
    if steps < MINIMUM_STEPS[method]:
        raise ValueError(f"{steps} steps are too few for {method}")

    def velocity(z_BDhw: Tensor, t: float) -> Tensor:
        return _guided(model_velocity, z_BDhw, t, label_B, null_label, guidance_scale, guidance_interval)

    return SAMPLERS[method](velocity, noise_BDhw.float(), steps, step_noise, last_step)


def image_noise(
    seed: int, indices: Sequence[int], shape: Sequence[int], device: torch.device | str, stream: int = 0
) -> Tensor:
    """Standard normal noise, fp32 (len(indices), *shape), one draw per image.

    An image's noise depends only on (seed, its index, stream), not on its batch or the device. Streams separate the
    initial noise (0) from the steps of an SDE (e.g. i + 1). None of the three may be negative.
    """
    draws = [
        np.random.Generator(np.random.Philox(np.random.SeedSequence((seed, stream, index)))).standard_normal(
            tuple(shape), dtype=np.float32
        )
        for index in indices
    ]
    return torch.from_numpy(np.stack(draws)).to(device)


def _guided(
    model_velocity: Velocity,
    z_BDhw: Tensor,
    t: float,
    label_B: Tensor,
    null_label: int,
    scale: float,
    interval: tuple[float, float],
) -> Tensor:
    t_B = torch.full((z_BDhw.shape[0],), t, dtype=torch.float32, device=z_BDhw.device)
    if scale == 1.0 or not interval[0] <= t <= interval[1]:
        return model_velocity(z_BDhw, t_B, label_B).float()
    labels = torch.cat([label_B, torch.full_like(label_B, null_label)])
    both = model_velocity(torch.cat([z_BDhw, z_BDhw]), torch.cat([t_B, t_B]), labels)
    conditional, unconditional = both.float().chunk(2)
    return unconditional + scale * (conditional - unconditional)


StepNoise = Callable[[int], Tensor] | None
Guided = Callable[[Tensor, float], Tensor]
"""(z_BDhw, t) -> velocity_BDhw, guidance included."""


def _euler(velocity: Guided, z: Tensor, steps: int, step_noise: StepNoise, last_step: float) -> Tensor:  # noqa: ARG001
    for t, t_next in _equal_steps(steps):
        z = z + (t_next - t) * velocity(z, t)
    return z


def _heun(velocity: Guided, z: Tensor, steps: int, step_noise: StepNoise, last_step: float) -> Tensor:  # noqa: ARG001
    for t, t_next in _equal_steps(steps):
        v = velocity(z, t)
        v = 0.5 * (v + velocity(z + (t_next - t) * v, t_next))
        z = z + (t_next - t) * v
    return z


def _equal_steps(steps: int) -> Iterator[tuple[float, float]]:
    return itertools.pairwise([*(1.0 - i / steps for i in range(steps)), 0.0])


def _euler_maruyama(velocity: Guided, z: Tensor, steps: int, step_noise: StepNoise, last_step: float) -> Tensor:
    """dz = (v - w/2 score) dt + sqrt(w) dW, backwards in time.

    On the linear path the noise is n = z + (1 - t) v and the score -n / t, so that with w = 2 t the drift is v + n.
    """
    if step_noise is None:
        raise ValueError("the method sde requires step_noise")
    length = (1.0 - last_step) / (steps - 1)
    for i in range(steps - 1):
        t = 1.0 - i * length
        v = velocity(z, t)
        drift = v + z + (1.0 - t) * v
        z = z - length * drift + (2.0 * t * length) ** 0.5 * step_noise(i).to(z)
    v = velocity(z, last_step)
    return z - last_step * (v + z + (1.0 - last_step) * v)


SAMPLERS: dict[SamplerMethod, Callable[[Guided, Tensor, int, StepNoise, float], Tensor]] = {
    "euler": _euler,
    "heun": _heun,
    "sde": _euler_maruyama,
}
