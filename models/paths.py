"""Paths between data and noise, what a network can predict on them, the times of training, and its loss (Eq. 5).

t = 0 is data and t = 1 is noise; on every path z_t = alpha(t) z + sigma(t) noise. The paper's Eq. 5 and 6 are the path
`vp` with sqrt(alpha-bar_t) = alpha(t) and prediction `noise`; SiT is `linear` with prediction `velocity`.
Shapes: B batch, D latent channels, h w latent grid.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from .choices import PathKind, Prediction, TimeDistribution

_SMALLEST_DIVISOR = 1e-3
_BETA_FIRST, _BETA_LAST = 0.1, 20.0  # of the rate of noise on `vp`, linear in t (Song et al. 2021)


class Coefficients(NamedTuple):
    """Of a path at times t: each has the shape of t."""

    alpha: Tensor
    sigma: Tensor
    alpha_rate: Tensor
    """d alpha / dt."""
    sigma_rate: Tensor
    """d sigma / dt."""


Path = Callable[[Tensor], Coefficients]
"""From times t in [0, 1], of any shape."""


def _linear(t: Tensor) -> Coefficients:
    return Coefficients(1 - t, t, -torch.ones_like(t), torch.ones_like(t))


def _cosine(t: Tensor) -> Coefficients:
    """SiT's GVP: alpha = cos(pi t / 2), sigma = sin(pi t / 2)."""
    quarter = math.pi / 2
    alpha, sigma = torch.cos(quarter * t), torch.sin(quarter * t)
    return Coefficients(alpha, sigma, -quarter * sigma, quarter * alpha)


def _variance_preserving(t: Tensor) -> Coefficients:
    """alpha = exp(-(t^2 (20 - .1) / 4 + t .1 / 2)), sigma^2 = 1 - alpha^2; alpha(1) is .0066.

    The rate of sigma, infinite at t = 0, is that of 1e-5 there, SiT's smallest time.
    """
    span = _BETA_LAST - _BETA_FIRST
    log_alpha = -0.25 * t.square() * span - 0.5 * t * _BETA_FIRST
    alpha, sigma = log_alpha.exp(), (-torch.expm1(2 * log_alpha)).sqrt()
    alpha_rate = -0.5 * (t * span + _BETA_FIRST) * alpha
    return Coefficients(alpha, sigma, alpha_rate, -alpha * alpha_rate / sigma.clamp(min=_SMALLEST_DIVISOR))


PATHS: dict[PathKind, Path] = {"linear": _linear, "vp": _variance_preserving, "cosine": _cosine}

TIMES: dict[TimeDistribution, Callable[[Tensor], Tensor]] = {
    "uniform": lambda uniform_B: uniform_B,
    "logit_normal": lambda uniform_B: torch.sigmoid(torch.special.ndtri(uniform_B)),  # Esser et al. 2024: N(0, 1)
}
"""Times of training in [0, 1] from draws that are uniform in [0, 1), in fp32."""


def _column(path: Path, t_B: Tensor) -> Coefficients:
    return path(t_B.float()[:, None, None, None])


def interpolate(path: Path, z_BDhw: Tensor, noise_BDhw: Tensor, t_B: Tensor) -> Tensor:
    """z_t = alpha(t) z + sigma(t) noise, for t_B (B,) in [0, 1]."""
    at = _column(path, t_B)
    return at.alpha * z_BDhw + at.sigma * noise_BDhw


def target(path: Path, z_BDhw: Tensor, noise_BDhw: Tensor, t_B: Tensor, prediction: Prediction) -> Tensor:
    """The target of the network: the velocity dz_t/dt = alpha' z + sigma' noise, the noise, or the data z."""
    if prediction == "velocity":
        at = _column(path, t_B)
        return at.alpha_rate * z_BDhw + at.sigma_rate * noise_BDhw
    return noise_BDhw if prediction == "noise" else z_BDhw


def to_velocity(path: Path, predicted_BDhw: Tensor, zt_BDhw: Tensor, t_B: Tensor, prediction: Prediction) -> Tensor:
    """The velocity that corresponds to a prediction at z_t.

    From noise the data are (z_t - sigma noise) / alpha, singular on `linear` and `cosine` at t = 1; from data the noise
    is (z_t - alpha z) / sigma, singular at t = 0. Divisors are clamped to at least 1e-3.
    """
    if prediction == "velocity":
        return predicted_BDhw
    at = _column(path, t_B)
    if prediction == "noise":
        noise_BDhw = predicted_BDhw
        z_BDhw = (zt_BDhw - at.sigma * noise_BDhw) / at.alpha.clamp(min=_SMALLEST_DIVISOR)
    else:
        z_BDhw = predicted_BDhw
        noise_BDhw = (zt_BDhw - at.alpha * z_BDhw) / at.sigma.clamp(min=_SMALLEST_DIVISOR)
    return at.alpha_rate * z_BDhw + at.sigma_rate * noise_BDhw


def ends(path: Path, velocity_BDhw: Tensor, zt_BDhw: Tensor, t: float) -> tuple[Tensor, Tensor]:
    """(z_BDhw, noise_BDhw): the data and the noise for which the path through z_t has this velocity at t."""
    at = path(torch.tensor(t, dtype=torch.float64))
    determinant = at.alpha * at.sigma_rate - at.sigma * at.alpha_rate
    z_BDhw = (at.sigma_rate * zt_BDhw - at.sigma * velocity_BDhw) / determinant
    noise_BDhw = (at.alpha * velocity_BDhw - at.alpha_rate * zt_BDhw) / determinant
    return z_BDhw, noise_BDhw


def diffusion_loss_B(predicted_BDhw: Tensor, target_BDhw: Tensor) -> Tensor:
    """Squared error, mean over D, h and w, per sample: (B,) fp32."""
    return (predicted_BDhw.float() - target_BDhw.float()).square().mean((1, 2, 3))


def t_bin_means(loss_B: Tensor, t_B: Tensor, bins: int = 4) -> tuple[Tensor, Tensor]:
    """Sums and counts of a loss in equal bins of t, detached, for logging: (sum (bins,), count (bins,)), both fp32.

    A mean over workers or steps is the sum of sums over the sum of counts; an empty bin has count 0.
    """
    bin_B = (t_B.float() * bins).long().clamp(0, bins - 1)
    member_bB = (bin_B == torch.arange(bins, device=t_B.device)[:, None]).float()
    return (member_bB * loss_B.detach().float()).sum(1), member_bB.sum(1)


def drop_labels(label_B: Tensor, uniform_B: Tensor, probability: float, null_label: int) -> Tensor:
    """Labels with `null_label` where `uniform_B`, uniform in [0, 1), is below `probability`."""
    return torch.where(uniform_B < probability, torch.full_like(label_B, null_label), label_B)
