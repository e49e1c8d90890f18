"""The order of examples: pure functions of seed and step. The only position in the data is the step.

There is no state and no access to the data; the caches only avoid recomputation.
"""

from functools import lru_cache
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from pipeline.config import Shuffle

Indices = npt.NDArray[np.int64]
_T = TypeVar("_T", bound=np.generic)

# The purpose of a random stream: two purposes never share a stream.
_ROWS, _GROUPS, _WINDOW, _FLIPS = range(4)


def batch_indices(
    seed: int, step: int, batch_size: int, rows: int, shuffle: Shuffle, window_rows: int, group_rows: int
) -> Indices:
    """The row numbers (batch_size,) in int64 of the global batch of `step` (counted from 0).

    Each epoch is a permutation of all rows; a batch that reaches its end continues with the next epoch, so no
    row is dropped. full: a uniform permutation. window: groups of `group_rows` consecutive rows are permuted, then the
    rows in each window of `window_rows`; `window_rows` and `group_rows` are ignored for full.
    """
    if rows < 1:
        raise ValueError("there are no rows")
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
    """The part of a global batch of rank `rank` of `world`. ValueError if the batch is not divisible by `world`."""
    if len(batch) % world:
        raise ValueError(f"a batch of {len(batch)} is not divisible by {world} ranks")
    share = len(batch) // world
    return batch[rank * share : (rank + 1) * share]


def flips(seed: int, step: int, batch_size: int) -> npt.NDArray[np.bool_]:
    """For each image of the global batch of `step`, whether it is flipped: bool (batch_size,), with probability 0.5."""
    return _generator(seed, _FLIPS, step).random(batch_size) < 0.5


def _generator(seed: int, purpose: int, *key: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(np.random.SeedSequence((seed, purpose, *key))))


@lru_cache(maxsize=2)  # the current epoch and the next one, for a batch across both: 8 bytes per row each
def _permutation(seed: int, epoch: int, rows: int) -> Indices:
    return _generator(seed, _ROWS, epoch).permutation(rows)


@lru_cache(maxsize=2)
def _window(seed: int, epoch: int, window: int, rows: int, window_rows: int, group_rows: int) -> Indices:
    """The shuffled rows of one window of the permuted groups. Memory: one window, and 8 bytes per group."""
    positions = np.arange(window * window_rows, min((window + 1) * window_rows, rows))
    order = _group_order(seed, epoch, -(-rows // group_rows))
    missing = -rows % group_rows  # rows missing in the last group
    short_at = int(np.flatnonzero(order == len(order) - 1)[0])  # position of the last, shorter group
    positions[positions >= (short_at + 1) * group_rows - missing] += missing
    found = order[positions // group_rows] * group_rows + positions % group_rows
    return _generator(seed, _WINDOW, epoch, window).permutation(found)


@lru_cache(maxsize=2)
def _group_order(seed: int, epoch: int, groups: int) -> Indices:
    return _generator(seed, _GROUPS, epoch).permutation(groups)
