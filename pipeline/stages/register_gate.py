"""The gate of `register`: whether a candidate becomes champion, and why. What the registry holds is asked elsewhere."""

import math
from typing import NamedTuple

from models.intervals import Interval, half_width_of_difference
from pipeline.artifacts import SHORT
from pipeline.config import GateConfig

_WITHOUT_REFERENCE = ("samples/class", "samples/inception_score")  # begin the keys of what asks no other images


class Champion(NamedTuple):
    """The current champion: its version, and its value of the gate's metric, None if it has none."""

    version: str
    value: float | None
    fingerprint: str | None = None  # of the register artifact that created it
    interval: Interval | None = None  # of that value; early versions have none
    reference: str | None = None  # fingerprint of the images that it was measured against; early versions do not say


def decide(
    gate: GateConfig,
    value: float,
    champion: Champion | None,
    interval: Interval | None = None,
    reference: str | None = None,
) -> tuple[bool, str]:
    """Whether a candidate with this value of the gate's metric, and its interval, becomes champion, and the reason.

    The first champion needs only the minimum. A later one must be better than the champion, and by the margin. That the
    champion was measured against another reference than this one, a fingerprint, is said and decides nothing.
    """
    candidate = f"{gate.metric} {value:.6g}"
    sign = 1.0 if gate.direction == "higher" else -1.0
    if not math.isfinite(value):
        return False, f"{candidate} is not finite"
    if gate.minimum is not None and sign * (value - gate.minimum) < 0:
        return False, f"{candidate} does not reach the minimum {gate.minimum:.6g} ({gate.direction} is better)"
    if champion is None:
        least = "no minimum is set" if gate.minimum is None else f"the minimum is {gate.minimum:.6g}"
        return True, f"{candidate}, the first champion ({least})"
    rival = f"champion version {champion.version}"
    if champion.value is None:
        return False, f"{rival} has no value of {gate.metric} to compare with; move the alias by hand to replace it"
    beaten = f"{champion.value:.6g} of {rival}{_another_reference(gate.metric, champion.reference, reference)}"
    gain = sign * (value - champion.value)
    if gain <= 0:
        return False, f"{candidate} is not better than {beaten}"
    if gate.margin == "interval":
        return _beyond_interval(gain, interval, champion, f"{candidate} beats {beaten}")
    if gain < gate.margin and not math.isclose(gain, gate.margin):
        return False, f"{candidate} beats {beaten} by less than the margin {gate.margin:.6g}"
    return True, f"{candidate} beats {beaten}"


def _another_reference(metric: str, theirs: str | None, ours: str | None) -> str:
    """In brackets, if the champion's value of this metric was measured against other images than the candidate's."""
    compared = metric.startswith("samples/") and not metric.startswith(_WITHOUT_REFERENCE)
    if not compared or theirs is None or ours is None or theirs == ours:
        return ""
    return f" (measured against another reference, {theirs[:SHORT]}; here {ours[:SHORT]})"


def _beyond_interval(gain: float, interval: Interval | None, champion: Champion, said: str) -> tuple[bool, str]:
    """Whether a gain is more than the half width of the difference's interval, and the sentence with the reason.

    A champion without an interval is taken to have the candidate's.
    """
    if interval is None:
        return False, f"{said}, but it has no interval: set register.gate.margin to a number"
    half = half_width_of_difference(interval, champion.interval or interval)
    if gain <= half:
        return False, f"{said} by {gain:.3g}, not by more than the interval of the difference, {half:.3g}"
    return True, f"{said} by {gain:.3g}, more than the interval of the difference, {half:.3g}"
