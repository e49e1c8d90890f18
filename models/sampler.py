"""Samplers of latents with classifier-free guidance: the probability-flow ODE, DDIM, and the reverse SDE.

t runs from 1 (noise) to 0 (data) on a path of `paths`. `steps` counts points in time, both ends included, as SiT does:
its "50 steps" are 49 intervals. Every ODE ends as the public samplers do, at the data that the last velocity stands
for, which on the linear path is an Euler step.
Shapes: B batch, D latent channels, h w latent grid.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .choices import MINIMUM_STEPS, SamplerMethod
from .paths import PATHS, Path, ends

Velocity = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(z_BDhw, t_B, label_B) -> velocity_BDhw."""

_ADAPTIVE_END = 1e-3  # dopri5 stops here, before velocities that are singular at t = 0


class Solver(NamedTuple):
    """What the methods read of the arguments of `sample`."""

    path: Path
    steps: int
    step_noise: Callable[[int], Tensor] | None
    last_step: float
    tolerances: tuple[float, float]


class Guided(NamedTuple):
    """The guided velocity as a function of z and t."""

    model_velocity: Velocity
    label_B: Tensor
    null_label: int
    scale: float
    interval: tuple[float, float]

    def __call__(self, z_BDhw: Tensor, t: float, asked_at: float | None = None) -> Tensor:
        """velocity_BDhw in fp32. `asked_at`: the time that has to be in the interval for guidance; t by default."""
        t_B = torch.full((z_BDhw.shape[0],), t, dtype=torch.float32, device=z_BDhw.device)
        low, high = self.interval
        if self.scale == 1.0 or not low <= (t if asked_at is None else asked_at) <= high:
            return self.model_velocity(z_BDhw, t_B, self.label_B).float()
        labels = torch.cat([self.label_B, torch.full_like(self.label_B, self.null_label)])
        both = self.model_velocity(torch.cat([z_BDhw, z_BDhw]), torch.cat([t_B, t_B]), labels)
        conditional, unconditional = both.float().chunk(2)
        return unconditional + self.scale * (conditional - unconditional)


@torch.no_grad()
def sample(
    model_velocity: Velocity,
    noise_BDhw: Tensor,
    label_B: Tensor,
    *,
    null_label: int,
    method: SamplerMethod,
    steps: int,
    path: Path = PATHS["linear"],
    guidance_scale: float = 1.0,
    guidance_interval: tuple[float, float] = (0.0, 1.0),
    step_noise: Callable[[int], Tensor] | None = None,
    last_step: float = 0.04,
    tolerances: tuple[float, float] = (1e-6, 1e-3),
) -> Tensor:
    """Integrate latents from t = 1 to t = 0 in fp32.

    Args:
        model_velocity: the network, its prediction converted to a velocity.
        noise_BDhw: standard normal, the latents at t = 1.
        label_B: (B,) long.
        null_label: the label of no class.
        method: `euler`; `heun`, two evaluations for each interval but the last; `ddim`, which on the linear path is
            `euler`; `dopri5`, torchdiffeq's, which chooses its steps; `sde`, Euler-Maruyama on the reverse SDE with
            diffusion w(t) = 2 sigma(t), whose last step, from t = `last_step`, adds no noise.
        steps: equal ones, counted as above; `sde` divides [last_step, 1] and evaluates the network at each of them.
        path: the one that the network was trained on.
        guidance_scale: w in v(null) + w (v(label) - v(null)), on all channels; 1: no guidance, at no cost.
        guidance_interval: [low, high]; there is no guidance in a step whose first t is outside of it.
        step_noise: standard normal like `noise_BDhw` for step i from 0, required only by `sde`.
        last_step: see `method`. At .04, which is REPA's, samples are a little narrower than the data: of a Gaussian of
            standard deviation .5, .49 at 250 steps, and .50 at .01.
        tolerances: absolute and relative, of `dopri5`. It bounds the error over the batch, so an image depends on its
            batch within them.

    Returns:
        z_BDhw at t = 0, fp32.

    Raises:
        ValueError: too few steps, or `sde` without `step_noise`.
    """
    if steps < MINIMUM_STEPS:
        raise ValueError(f"{steps} steps are too few for {method}")
    guided = Guided(model_velocity, label_B, null_label, guidance_scale, guidance_interval)
    return SAMPLERS[method](guided, noise_BDhw.float(), Solver(path, steps, step_noise, last_step, tolerances))


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


def _intervals(steps: int) -> Iterator[tuple[float, float]]:
    """(t, next t) of every interval but the last, which begins at `_last_time`."""
    return itertools.pairwise(1.0 - i / (steps - 1) for i in range(steps - 1))


def _last_time(steps: int) -> float:
    return 1.0 - (steps - 2) / (steps - 1)


def _data(velocity: Guided, z: Tensor, own: Solver, t: float) -> Tensor:
    """The data that the velocity at t stands for."""
    return ends(own.path, velocity(z, t), z, t)[0]


def _euler(velocity: Guided, z: Tensor, own: Solver) -> Tensor:
    for t, t_next in _intervals(own.steps):
        z = z + (t_next - t) * velocity(z, t)
    return _data(velocity, z, own, _last_time(own.steps))


def _heun(velocity: Guided, z: Tensor, own: Solver) -> Tensor:
    for t, t_next in _intervals(own.steps):
        v = velocity(z, t)
        v = 0.5 * (v + velocity(z + (t_next - t) * v, t_next, asked_at=t))
        z = z + (t_next - t) * v
    return _data(velocity, z, own, _last_time(own.steps))


def _ddim(velocity: Guided, z: Tensor, own: Solver) -> Tensor:
    """Song et al. 2021: z_s = alpha(s) z + sigma(s) noise, of the data and the noise that the velocity stands for."""
    for t, t_next in _intervals(own.steps):
        data, noise = ends(own.path, velocity(z, t), z, t)
        at = own.path(torch.tensor(t_next, dtype=torch.float64))
        z = at.alpha * data + at.sigma * noise
    return _data(velocity, z, own, _last_time(own.steps))


def _dopri5(velocity: Guided, z: Tensor, own: Solver) -> Tensor:
    from torchdiffeq import odeint

    absolute, relative = own.tolerances
    times = torch.tensor([1.0, _ADAPTIVE_END], device=z.device)
    z = odeint(lambda t, at: velocity(at, float(t)), z, times, method="dopri5", atol=absolute, rtol=relative)[-1]
    return _data(velocity, z, own, _ADAPTIVE_END)


def _euler_maruyama(velocity: Guided, z: Tensor, own: Solver) -> Tensor:
    """dz = (v - w/2 score) dt + sqrt(w) dW, backwards in time.

    The score is -noise / sigma, so that with w = 2 sigma the drift is v + noise.
    """
    if own.step_noise is None:
        raise ValueError("the method sde requires step_noise")
    length = (1.0 - own.last_step) / (own.steps - 1)
    for i in range(own.steps - 1):
        t = 1.0 - i * length
        v = velocity(z, t)
        w = 2.0 * float(own.path(torch.tensor(t, dtype=torch.float64)).sigma)
        z = z - length * (v + ends(own.path, v, z, t)[1]) + (w * length) ** 0.5 * own.step_noise(i).to(z)
    v = velocity(z, own.last_step)
    return z - own.last_step * (v + ends(own.path, v, z, own.last_step)[1])


SAMPLERS: dict[SamplerMethod, Callable[[Guided, Tensor, Solver], Tensor]] = {
    "euler": _euler,
    "heun": _heun,
    "ddim": _ddim,
    "dopri5": _dopri5,
    "sde": _euler_maruyama,
}
