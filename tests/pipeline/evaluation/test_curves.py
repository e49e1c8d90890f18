"""When a curve reaches a distance, and how much earlier than another, against curves whose answers are known."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.evaluation.curves import Arrival, Curve, Point, arrival, arrival_of, common_goal, ratio

STEPS = [100, 200, 400, 800]


def curve(distances: list[float], noise: float = 0.0, resamples: int = 40, seed: int = 0) -> Curve:
    draws = np.random.default_rng(seed).standard_normal((resamples, len(distances)))
    return Curve(
        tuple(
            Point(
                step, distance, tuple(distance + 5 + noise * column)
            )  # resamples lie 5 higher, as duplicates make them
            for step, distance, column in zip(STEPS, distances, draws.T, strict=True)
        )
    )


def test_arrivals_lie_on_the_line_between_points():
    assert arrival(STEPS, [90, 70, 30, 20], 50) == Arrival(300)
    assert arrival(STEPS, [90, 70, 30, 20], 30) == Arrival(400)
    assert arrival(STEPS, [90, 70, 30, 20], 95) == Arrival(100, "<=")
    assert arrival(STEPS, [90, 70, 30, 20], 90) == Arrival(100)
    assert arrival(STEPS, [90, 70, 30, 20], 10) == Arrival(800, ">=")
    assert arrival(STEPS, [90, 40, 60, 20], 50) == Arrival(180)  # the first time, though it rises again


@settings(max_examples=50)
@given(st.lists(st.floats(1, 1000), min_size=2, max_size=8, unique=True), st.floats(0, 1))
def test_a_goal_between_the_ends_is_reached_where_the_line_has_it(distances, share):
    falling = sorted(distances, reverse=True)
    goal = falling[-1] + share * (falling[0] - falling[-1])
    steps = [float(index) for index in range(len(falling))]
    found = arrival(steps, falling, goal)
    assert found.bound == ""
    assert np.interp(found.steps, steps, falling) == pytest.approx(goal, rel=1e-6)


def test_twice_as_fast_is_a_ratio_of_two():
    slow, fast = curve([100, 90, 70, 30]), curve([90, 70, 30, 10])
    found = ratio(slow, fast, 70)
    assert (found.value, found.bound, found.missed) == (2.0, "", 0)
    assert found.interval == pytest.approx((2.0, 2.0))
    assert ratio(fast, slow, 70).value == 0.5


def test_the_interval_holds_the_truth_and_grows_with_noise():
    widths = []
    for noise in (0.5, 2.0):
        slow, fast = curve([100, 90, 70, 30], noise, seed=1), curve([90, 70, 30, 10], noise, seed=2)
        found = ratio(slow, fast, 60)
        assert found.interval is not None
        assert found.value is not None
        low, high = found.interval
        assert low < found.value < high
        widths.append(high - low)
    assert widths[1] > 2 * widths[0]


def test_resampled_curves_are_moved_to_the_curve():
    point = curve([100, 90, 70, 30], 1.0).points[0]
    assert np.mean(point.resampled) > 104
    low, high = point.around()
    assert low < 100 < high
    assert np.mean([curve.resamples() for curve in [Curve((point,))]]) == pytest.approx(100)


def test_bounds_of_a_ratio():
    early, late, never = curve([40, 30, 20, 10]), curve([100, 90, 70, 30]), curve([100, 99, 98, 97])
    assert (ratio(never, late, 50).value, ratio(never, late, 50).bound) == (800 / 600, ">=")
    assert (ratio(late, never, 50).value, ratio(late, never, 50).bound) == (600 / 800, "<=")
    assert (ratio(late, early, 50).value, ratio(late, early, 50).bound) == (6.0, ">=")
    assert (ratio(never, early, 50).value, ratio(never, early, 50).bound) == (8.0, ">=")
    for pair in ((early, early), (never, never)):
        assert ratio(*pair, 50).value is None
    unknown = ratio(never, late, 50)
    assert (unknown.interval, unknown.missed, unknown.resamples) == (None, 40, 40)


def test_the_common_goal_is_reached_by_all():
    curves = [curve([100, 90, 70, 30]), curve([90, 50, 55, 52])]
    assert common_goal(curves) == 50
    assert not any(arrival_of(one, common_goal(curves)).bound for one in curves)


@settings(max_examples=30)
@given(st.floats(0.1, 8.0), st.integers(0, 100))
def test_nearly_all_resamples_reach_the_common_goal(noise, seed):
    """With a slow curve that is lowest at its end; else at most half of its resamples would arrive."""
    slow, fast = curve([100, 90, 70, 50], noise, 200, seed), curve([90, 60, 40, 20], noise, 200, seed + 1)
    goal = common_goal([slow, fast])
    assert 50 <= goal <= 50 + 4 * noise
    found = ratio(slow, fast, goal)
    assert found.interval is not None
    assert found.missed <= 0.1 * found.resamples
