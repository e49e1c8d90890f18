"""Intervals against what they stand for: how often they hold the truth."""

import numpy as np
import pytest

from models.intervals import bootstrap_interval, centred, normal_interval, share_interval


def test_a_bootstrap_is_moved_onto_its_metric():
    resampled = [12.0, 13.0, 14.0, 15.0, 16.0]
    assert centred(10, resampled).mean() == pytest.approx(10)
    low, high = bootstrap_interval(10, resampled)
    assert low < 10 < high
    assert high - low == pytest.approx(np.ptp(np.percentile(resampled, [2.5, 97.5])))


def test_a_normal_interval():
    assert normal_interval(3, 0.5) == pytest.approx((3 - 0.98, 3 + 0.98), abs=1e-3)


@pytest.mark.parametrize(("share", "count"), [(0.0, 50), (1.0, 50), (0.5, 1000), (0.98, 500)])
def test_shares_have_wilsons_interval(share, count):
    low, high = share_interval(share, count)
    assert 0 <= low <= share <= high <= 1
    assert high > low, "also where all images agree"
    drawn = np.random.default_rng(0).binomial(count, share, 20_000) / count
    if 0 < share < 1:
        assert (low, high) == pytest.approx(tuple(np.percentile(drawn, [2.5, 97.5])), abs=1.5 / count**0.5 / 10)


def test_wilson_by_hand():
    """Of 8 in 10: 0.490 to 0.943."""
    assert share_interval(0.8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-4)
