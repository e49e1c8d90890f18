"""Curves of a distance over training steps: when one reaches a distance, and how much earlier than another.

Intervals are 95%, by a bootstrap over images: every point of a curve has the distances of the same number of resamples.
A resample's distance is larger than that of the images themselves, since it holds fewer different ones; so resampled
curves are moved by the mean difference before they are read.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from models.intervals import bootstrap_interval, centred

Bound = Literal["", "<=", ">="]
_INTERVAL = (2.5, 97.5)  # percentiles
_OPPOSITE: dict[Bound, Bound] = {"": "", "<=": ">=", ">=": "<="}  # of a divisor's bound


@dataclass(frozen=True)
class Point:
    """A distance at a step, and those of its resamples."""

    step: int
    distance: float
    resampled: tuple[float, ...]

    def around(self) -> tuple[float, float]:
        """The interval of the distance."""
        return bootstrap_interval(self.distance, self.resampled)


@dataclass(frozen=True)
class Curve:
    """A run's distances, by step."""

    points: tuple[Point, ...]

    def resamples(self) -> np.ndarray:
        """(R, points): resampled curves."""
        return np.stack([centred(point.distance, point.resampled) for point in self.points], axis=1)

    @property
    def steps(self) -> list[int]:
        return [point.step for point in self.points]


@dataclass(frozen=True)
class Arrival:
    """Steps until a distance is reached; with a bound if that was before the first point, or not by the last one."""

    steps: float
    bound: Bound = ""


@dataclass(frozen=True)
class Ratio:
    """How many times as many steps one run takes as another to the same distance."""

    value: float | None
    """None if nothing can be said: both arrive before their first point, or neither by its last."""
    bound: Bound
    interval: tuple[float, float] | None
    """95%, over the resamples in which both arrive between two points; None if fewer than half of them do."""
    missed: int
    """The other resamples."""
    resamples: int


def arrival(steps: Sequence[float], distances: Sequence[float], goal: float) -> Arrival:
    """When a curve first is at `goal` or below, by a straight line between points."""
    below = [index for index, distance in enumerate(distances) if distance <= goal]
    if not below:
        return Arrival(float(steps[-1]), ">=")
    last = below[0]
    if last == 0:
        return Arrival(float(steps[0]), "" if distances[0] == goal else "<=")
    before, after = distances[last - 1], distances[last]
    share = (before - goal) / (before - after)
    return Arrival(steps[last - 1] + share * (steps[last] - steps[last - 1]))


def arrival_of(curve: Curve, goal: float) -> Arrival:
    return arrival(curve.steps, [point.distance for point in curve.points], goal)


def ratio(slow: Curve, fast: Curve, goal: float) -> Ratio:
    """Steps of `slow` to the distance `goal` over those of `fast`; above 1 if `fast` is faster."""
    first, second = arrival_of(slow, goal), arrival_of(fast, goal)
    pairs = [
        (arrival(slow.steps, one, goal), arrival(fast.steps, other, goal))
        for one, other in zip(slow.resamples().tolist(), fast.resamples().tolist(), strict=True)
    ]
    found = [one.steps / other.steps for one, other in pairs if not one.bound and not other.bound]
    interval = None
    if 2 * len(found) >= len(pairs):
        low, high = np.percentile(found, _INTERVAL)
        interval = float(low), float(high)
    bounds = {first.bound, _OPPOSITE[second.bound]} - {""}
    missed = len(pairs) - len(found)
    if len(bounds) > 1:
        return Ratio(None, "", interval, missed, len(pairs))
    return Ratio(first.steps / second.steps, bounds.pop() if bounds else "", interval, missed, len(pairs))


def common_goal(curves: Sequence[Curve]) -> float:
    """The smallest distance that every curve reaches, and all but 1 in 40 of its resamples, too.

    At the lowest point of the slowest curve, half of the resamples would not arrive, and a ratio had no interval.
    """
    return max(_surely_reached(curve) for curve in curves)


def _surely_reached(curve: Curve) -> float:
    lowest = min(point.distance for point in curve.points)
    return max(lowest, float(np.percentile(curve.resamples().min(axis=1), _INTERVAL[1])))
