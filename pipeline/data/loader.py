"""The loaders: iterators over a rank's part of each step's global batch, prefetched and decoded by threads.

The only position is the step number, so resuming needs no loader state. They yield NumPy arrays, no tensors.
"""

import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Generic, TypeVar

import numpy as np
import numpy.typing as npt

from pipeline.config import Shuffle
from pipeline.data import order
from pipeline.data.decode import Pixels, decode_batch
from pipeline.data.shards import Moments
from pipeline.data.store import ImageStore, Labels, LatentStore

_DEPTH = 3  # prefetched batches
_T = TypeVar("_T")


@dataclass(frozen=True)
class Plan:
    """Determines the rows that a rank reads at each step."""

    seed: int
    batch_size: int  # global
    shuffle: Shuffle
    window_rows: int
    group_rows: int  # for shuffle window: rows per group, those of a shard
    rank: int
    world: int

    def rows(self, step: int, total: int) -> order.Indices:
        """Row numbers of this rank's part at `step`, of `total` rows."""
        batch = order.batch_indices(
            self.seed, step, self.batch_size, total, self.shuffle, self.window_rows, self.group_rows
        )
        return order.rank_slice(batch, self.rank, self.world)

    def flips(self, step: int) -> npt.NDArray[np.bool_]:
        """Which images of this rank's part are flipped horizontally: bool."""
        return order.rank_slice(order.flips(self.seed, step, self.batch_size), self.rank, self.world)


class Prefetcher(Generic[_T]):
    """Iterates over `make(step)` for start_step <= step < stop_step; one thread computes a few steps ahead, in order.

    Exceptions of `make` are raised by `next`. `waited` is the time in seconds that the consumer has waited. Close it or
    use it in a `with` block: its threads then end after their current batch.
    """

    def __init__(self, make: Callable[[int], _T], start_step: int, stop_step: int) -> None:
        self.waited = 0.0
        self._make = make
        self._steps = iter(range(start_step, stop_step))
        self._producer = ThreadPoolExecutor(1, "loader")
        self._ahead: deque[Future[_T]] = deque()
        for _ in range(_DEPTH):
            self._submit_next()

    def _submit_next(self) -> None:
        step = next(self._steps, None)
        if step is not None:
            self._ahead.append(self._producer.submit(self._make, step))

    def __iter__(self) -> Iterator[_T]:
        return self

    def __next__(self) -> _T:
        if not self._ahead:
            raise StopIteration
        begin = time.perf_counter()
        batch = self._ahead.popleft().result()
        self.waited += time.perf_counter() - begin
        self._submit_next()
        return batch

    def close(self) -> None:
        self._ahead.clear()
        self._producer.shutdown(cancel_futures=True)

    def __enter__(self) -> "Prefetcher[_T]":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class ImageLoader(Prefetcher[tuple[Pixels, Labels]]):
    """Yields images (B, 3, size, size) in uint8 and labels (B,) in int64, with B the rank's part of the batch."""

    def __init__(
        self,
        store: ImageStore,
        plan: Plan,
        *,
        image_size: int,
        center_crop: bool,
        horizontal_flip: bool,
        start_step: int,
        stop_step: int,
        threads: int,
    ) -> None:
        self._decoders = ThreadPoolExecutor(threads, "decode")

        def make(step: int) -> tuple[Pixels, Labels]:
            images, labels = store.take(plan.rows(step, len(store)))
            flips = plan.flips(step) if horizontal_flip else None
            return decode_batch(images, image_size, center_crop, flips, self._decoders), labels

        super().__init__(make, start_step, stop_step)

    def close(self) -> None:
        self._decoders.shutdown(wait=False, cancel_futures=True)  # the producer waits for the decoders
        super().close()
        self._decoders.shutdown()


class LatentLoader(Prefetcher[tuple[Moments, Moments, Labels]]):
    """Yields mean and log-variance (B, D, h, w) in fp16 and labels (B,) in int64, with B the rank's part."""

    def __init__(self, store: LatentStore, plan: Plan, *, start_step: int, stop_step: int) -> None:
        super().__init__(lambda step: store.take(plan.rows(step, len(store))), start_step, stop_step)
