import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data.order import Shuffle, batch_indices, flips, rank_slice

brief = settings(max_examples=60)

GOLDEN_FULL = [748, 911, 2, 893, 354, 751]
GOLDEN_WINDOW = [129, 796, 64, 159, 790, 694]
GOLDEN_FLIPS = [False, True, True, True, True, True, True, True]
SHUFFLES = st.sampled_from(["full", "window"])


def stream(seed: int, count: int, batch: int, rows: int, shuffle: Shuffle, window: int, group: int) -> np.ndarray:
    """The first `count` row numbers, by batches."""
    steps = range(-(-count // batch))
    return np.concatenate([batch_indices(seed, s, batch, rows, shuffle, window, group) for s in steps])[:count]


@brief
@given(
    st.integers(0, 2**31 - 1), st.integers(1, 40), st.integers(1, 60), SHUFFLES, st.integers(1, 70), st.integers(1, 20)
)
def test_every_epoch_is_a_permutation(
    seed: int, batch: int, rows: int, shuffle: Shuffle, window: int, group: int
) -> None:
    epochs = stream(seed, 3 * rows, batch, rows, shuffle, window, group).reshape(3, rows)
    assert (np.sort(epochs, axis=1) == np.arange(rows)).all()


@brief
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 60), SHUFFLES)
def test_the_order_does_not_depend_on_the_batch(one: int, other: int, rows: int, shuffle: Shuffle) -> None:
    assert np.array_equal(stream(1, 100, one, rows, shuffle, 16, 4), stream(1, 100, other, rows, shuffle, 16, 4))


@brief
@given(st.integers(0, 100), st.sampled_from([1, 2, 3, 4, 6, 12]))
def test_ranks_share_a_batch_whatever_their_number(step: int, world: int) -> None:
    batch = batch_indices(7, step, 24, 100, "full", 1, 1)
    assert np.array_equal(np.concatenate([rank_slice(batch, rank, world) for rank in range(world)]), batch)


@pytest.mark.parametrize("shuffle", ["full", "window"])
def test_epochs_and_seeds_differ(shuffle: Shuffle) -> None:
    one, two = stream(1, 400, 16, 200, shuffle, 64, 8).reshape(2, 200)
    assert not np.array_equal(one, two)
    assert not np.array_equal(one, stream(2, 200, 16, 200, shuffle, 64, 8))
    assert np.array_equal(one, stream(1, 200, 16, 200, shuffle, 64, 8))
    assert not np.array_equal(one, np.arange(200))


def test_a_window_touches_few_groups() -> None:
    rows = stream(3, 1000, 50, 1000, "window", 100, 25)
    for window in rows.reshape(10, 100):
        assert len(np.unique(window // 25)) == 4
        assert not np.array_equal(window, np.sort(window))


def test_batches_are_long_enough_for_tiny_sets() -> None:
    batch = batch_indices(0, 3, 50, 7, "full", 1, 1)
    assert (batch.shape, batch.dtype) == ((50,), np.int64)
    assert np.bincount(batch).min() >= 6


def test_impossible_calls() -> None:
    with pytest.raises(ValueError, match="no rows"):
        batch_indices(0, 0, 4, 0, "full", 1, 1)
    with pytest.raises(ValueError, match="not divisible by 3"):
        rank_slice(np.arange(4), 0, 3)


def test_flips_are_fair_and_their_own() -> None:
    drawn = np.concatenate([flips(5, step, 1000) for step in range(10)])
    assert drawn.dtype == np.bool_
    assert 0.47 < drawn.mean() < 0.53
    assert np.array_equal(flips(5, 3, 1000), flips(5, 3, 1000))
    assert not np.array_equal(flips(5, 3, 1000), flips(5, 4, 1000))
    assert not np.array_equal(flips(5, 3, 1000), flips(6, 3, 1000))


def test_the_order_stays_what_it_was() -> None:
    """A golden value: another order would make another model from the same fingerprint."""
    assert batch_indices(0, 0, 6, 1000, "full", 1, 1).tolist() == GOLDEN_FULL
    assert batch_indices(0, 2, 6, 1000, "window", 100, 10).tolist() == GOLDEN_WINDOW
    assert flips(0, 0, 8).tolist() == GOLDEN_FLIPS
