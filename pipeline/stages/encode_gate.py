"""The quality gate of encode: a shard's latents are compared with a second encoding of some of its images.

Which images these are is random, so that no order of the source can make the comparison unfair. Nothing here encodes.
Legend: N rows of the shard, R rows of the reference, D latent channels, h w latent rows and columns.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict

REFERENCE_ROWS = 32
CANARIES = 8  # rows of the reference that are decoded too
# The share of a shard outside of the range of R random rows of it has a Beta distribution, whatever that of the rows:
# for R = 32 it exceeds 0.6 once in 10^11 cases.
_OUTSIDE = 0.6
_LOGVAR_TOLERANCE = 0.25  # rms
_MEAN_TOLERANCE = {"fp32": 0.02, "bf16": 0.25}  # rms, in deviations of the reference
# A deviation counts as at least this share of the means' own size, which roundings go by: latents of images of one
# colour hardly vary. fp16 rounds by .0003 of it, and the tolerance is .0012.
_LEAST_DEVIATION = 1 / 16

Array = npt.NDArray[np.floating]


class Checks(BaseModel):
    """What was measured of one shard."""

    model_config = ConfigDict(frozen=True)

    mean_error: float  # rms, in deviations of the reference's means
    logvar_error: float  # rms
    outside: float  # share of rows outside of the reference's range, in the worst channel
    canary_psnr: float  # of decoded latents, against the images, in dB
    own_psnr: float  # the same for the reference: what the tokenizer can do


class Reference(NamedTuple):
    """Rows of a shard, encoded on their own in fp32."""

    rows: npt.NDArray[np.int64]  # (R,) positions in the shard
    mean_RDhw: Array
    logvar_RDhw: Array


def priorities(shard: int, rows: int) -> npt.NDArray[np.float64]:
    """A random number for each row of a shard: the rows with the smallest ones are its reference."""
    return np.random.default_rng([shard, rows]).random(rows)


def measure(
    mean_NDhw: Array, logvar_NDhw: Array, reference: Reference, canary_psnr: float, own_psnr: float, precision: str
) -> Checks:
    """Compare finite moments of a shard with its reference."""
    mean_RDhw, logvar_RDhw = (moments[reference.rows].astype(np.float32) for moments in (mean_NDhw, logvar_NDhw))
    scale = _deviation(reference.mean_RDhw)
    return Checks(
        mean_error=_rms(mean_RDhw - reference.mean_RDhw) / scale,
        logvar_error=_rms(logvar_RDhw - reference.logvar_RDhw),
        outside=_outside(mean_NDhw, logvar_NDhw, reference, _MEAN_TOLERANCE[precision] * scale),
        canary_psnr=canary_psnr,
        own_psnr=own_psnr,
    )


def fault(checks: Checks, precision: str, margin: float) -> str | None:
    """What is wrong with the shard; None if nothing is. `margin` in dB."""
    if not checks.mean_error <= _MEAN_TOLERANCE[precision]:
        return f"means differ from a second encoding by {checks.mean_error:.2g} of their standard deviation"
    if not checks.logvar_error <= _LOGVAR_TOLERANCE:
        return f"log-variances differ from a second encoding by {checks.logvar_error:.2g}"
    if not checks.outside <= _OUTSIDE:
        return f"{checks.outside:.0%} of the latents lie outside of the range of {REFERENCE_ROWS} random ones"
    if not checks.canary_psnr >= checks.own_psnr - margin:
        return (
            f"the PSNR of decoded latents is {checks.canary_psnr:.1f} dB, of the tokenizer itself {checks.own_psnr:.1f}"
        )
    return None


def _deviation(mean_RDhw: Array) -> float:
    """The standard deviation of a channel, in the mean of all; of means that hardly vary, a share of their size."""
    deviation = float(mean_RDhw.std(axis=(0, 2, 3)).mean())
    return max(deviation, _LEAST_DEVIATION * _rms(mean_RDhw)) + 1e-6


def _outside(mean_NDhw: Array, logvar_NDhw: Array, reference: Reference, tolerance: float) -> float:
    """Share of rows outside of the range of the reference, widened by the tolerance: the largest of all features."""
    features_NF = _features(mean_NDhw, logvar_NDhw)
    reference_RF = _features(reference.mean_RDhw, reference.logvar_RDhw)
    depth = mean_NDhw.shape[1]
    tolerance_F = np.repeat([tolerance, tolerance, _LOGVAR_TOLERANCE], depth)
    low_F, high_F = reference_RF.min(0) - tolerance_F, reference_RF.max(0) + tolerance_F
    return float(((features_NF < low_F) | (features_NF > high_F)).mean(0).max())


def _features(mean_NDhw: Array, logvar_NDhw: Array) -> npt.NDArray[np.float32]:
    """(N, 3 D): each channel's mean and root mean square of the means, and its mean log-variance."""
    mean, logvar = mean_NDhw.astype(np.float32), logvar_NDhw.astype(np.float32)
    parts = [mean.mean((2, 3)), np.sqrt(np.square(mean).mean((2, 3))), logvar.mean((2, 3))]
    features: npt.NDArray[np.float32] = np.concatenate(parts, axis=1)
    return features


def _rms(values: Array) -> float:
    return float(np.sqrt(np.mean(np.square(values, dtype=np.float64))))
