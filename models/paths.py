"""The linear path between data and noise, the predictions a network can make on it, and the training loss (Eq. 5).

t = 0 is data and t = 1 is noise. The paper's Eq. 5 predicts noise, SiT predicts velocity; both are available.
Shapes: B batch, D latent channels, h w latent grid.
"""

import torch
from torch import Tensor

from .choices import Prediction

_SMALLEST_DIVISOR = 1e-3


def _as_column(t_B: Tensor) -> Tensor:
    return t_B.float()[:, None, None, None]


def interpolate(z_BDhw: Tensor, noise_BDhw: Tensor, t_B: Tensor) -> Tensor:
    """z_t = (1 - t) z + t noise, for t_B (B,) in [0, 1]."""
    t = _as_column(t_B)
    return (1 - t) * z_BDhw + t * noise_BDhw


def target(z_BDhw: Tensor, noise_BDhw: Tensor, prediction: Prediction) -> Tensor:
    """The target of the network: the velocity dz_t/dt = noise - z, the noise, or the data z."""
    if prediction == "velocity":
        return noise_BDhw - z_BDhw
    return noise_BDhw if prediction == "noise" else z_BDhw


def to_velocity(predicted_BDhw: Tensor, zt_BDhw: Tensor, t_B: Tensor, prediction: Prediction) -> Tensor:
    """The velocity that corresponds to a prediction at z_t.

    Noise gives (noise - z_t) / (1 - t), singular at t = 1; data gives (z_t - z) / t, singular at t = 0. Divisors are
    clamped to at least 1e-3.
    """
    if prediction == "velocity":
        return predicted_BDhw
    t = _as_column(t_B)
    if prediction == "noise":
        return (predicted_BDhw - zt_BDhw) / (1 - t).clamp(min=_SMALLEST_DIVISOR)
    return (zt_BDhw - predicted_BDhw) / t.clamp(min=_SMALLEST_DIVISOR)


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
