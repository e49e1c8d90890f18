"""Which example at which step: pure functions of the seed and the step. The position in the data is the step.

No state is kept and no data touched; what is cached here can be computed again at any moment.
"""

from functools import lru_cache
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from pipeline.config import Shuffle

Indices = npt.NDArray[np.int64]
_T = TypeVar("_T", bound=np.generic)

# What a stream of random numbers is for: two purposes never share one.
_ROWS, _GROUPS, _WINDOW, _FLIPS = range(4)


def batch_indices(
    seed: int, step: int, batch_size: int, rows: int, shuffle: Shuffle, window_rows: int, group_rows: int
) -> Indices:
    """The row numbers (batch_size,) in int64 of the global batch of `step` (counted from 0).

    Each epoch is a permutation of all rows; a batch that reaches its end goes on with the next one, so nothing is
    dropped. full: any row may follow any other. window: groups of `group_rows` neighbouring rows are permuted, then
    rows inside each window of `window_rows`; `window_rows` and `group_rows` have no meaning under full.
    """
    if rows < 1:
        raise ValueError("there are no rows to draw from")
    batch = np.empty(batch_size, np.int64)
    filled = 0
    while filled < batch_size:
        epoch, position = divmod(step * batch_size + filled, rows)
        if shuffle == "full":
            chunk = _permutation(seed, epoch, rows)[position:]
        else:
            window, position = divmod(position, window_rows)
            chunk = _window(seed, epoch, window, rows, window_rows, group_rows)[position:]
        chunk = chunk[: batch_size - filled]
        batch[filled : filled + len(chunk)] = chunk
        filled += len(chunk)
    return batch


def rank_slice(batch: npt.NDArray[_T], rank: int, world: int) -> npt.NDArray[_T]:
    """The part of a global batch that rank `rank` of `world` takes. ValueError when it cannot be divided evenly."""
    if len(batch) % world:
        raise ValueError(f"a batch of {len(batch)} cannot be divided among {world} ranks")
    share = len(batch) // world
    return batch[rank * share : (rank + 1) * share]


def flips(seed: int, step: int, batch_size: int) -> npt.NDArray[np.bool_]:
    """For each image of the global batch of `step`, whether it is mirrored: bool (batch_size,), half of them."""
    return _generator(seed, _FLIPS, step).random(batch_size) < 0.5


def _generator(seed: int, purpose: int, *key: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(np.random.SeedSequence((seed, purpose, *key))))


@lru_cache(maxsize=2)  # this epoch and the one that a batch may reach into: 8 bytes a row each
def _permutation(seed: int, epoch: int, rows: int) -> Indices:
    return _generator(seed, _ROWS, epoch).permutation(rows)


@lru_cache(maxsize=2)
def _window(seed: int, epoch: int, window: int, rows: int, window_rows: int, group_rows: int) -> Indices:
    """The shuffled rows of one window of the permuted groups. Memory: one window, and 8 bytes a group."""
    positions = np.arange(window * window_rows, min((window + 1) * window_rows, rows))
    order = _group_order(seed, epoch, -(-rows // group_rows))
    missing = -rows % group_rows  # rows that the last group is short of
    short_at = int(np.flatnonzero(order == len(order) - 1)[0])  # where the last, shorter group comes in the order
    positions[positions >= (short_at + 1) * group_rows - missing] += missing
    found = order[positions // group_rows] * group_rows + positions % group_rows
    return _generator(seed, _WINDOW, epoch, window).permutation(found)


@lru_cache(maxsize=2)
def _group_order(seed: int, epoch: int, groups: int) -> Indices:
    return _generator(seed, _GROUPS, epoch).permutation(groups)
