"""95% intervals of metrics that are measured on a sample of images. No torch, so that reports can use them."""

import math
from collections.abc import Sequence

import numpy as np

Interval = tuple[float, float]
"""Its lower and upper end."""

_PERCENTILES = (2.5, 97.5)
_NORMAL = 1.959963984540054  # the 97.5th percentile of a standard normal variable


def bootstrap_interval(value: float, resampled: Sequence[float]) -> Interval:
    """The percentiles 2.5 and 97.5 of a metric's resamples, moved so that their mean is the metric itself.

    A bootstrap resample holds fewer different images than the sample, which makes a Frechet distance larger by an
    amount that has nothing to do with its variation; the move takes it out.
    """
    low, high = np.percentile(centred(value, resampled), _PERCENTILES)
    return float(low), float(high)


def centred(value: float, resampled: Sequence[float]) -> np.ndarray:
    """(R,): the resamples, moved so that their mean is `value`."""
    resampled_R = np.asarray(resampled, np.float64)
    moved_R: np.ndarray = resampled_R - resampled_R.mean() + value
    return moved_R


def normal_interval(value: float, error: float) -> Interval:
    """Of an estimate with this standard error."""
    return value - _NORMAL * error, value + _NORMAL * error


def half_width_of_difference(one: Interval, other: Interval) -> float:
    """Of the difference of two metrics of independent samples: the squares of their half widths add up."""
    return math.hypot((one[1] - one[0]) / 2, (other[1] - other[0]) / 2)


def share_interval(share: float, count: int) -> Interval:
    """Of a share of `count` images, in [0, 1]: Wilson's score interval (1927), which a bootstrap approximates.

    Unlike a bootstrap's it has a width at 0 and 1 too.
    """
    square = _NORMAL**2
    middle = (share + square / (2 * count)) / (1 + square / count)
    half = _NORMAL * math.sqrt(share * (1 - share) / count + square / (4 * count**2)) / (1 + square / count)
    return max(0.0, min(share, middle - half)), min(1.0, max(share, middle + half))
