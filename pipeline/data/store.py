"""Random access to examples: maps row numbers to encoded images or moments, read from the memory-mapped mirror.

Reading an example takes one offset and one copy; memory does not grow with the data set.
Legend: B rows, D latent channels, h w latent rows and columns.
"""

from abc import ABC, abstractmethod
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator
from itertools import accumulate
from typing import Generic, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.data.mirror import Mirror
from pipeline.data.shards import SHAPE, Moments
from pipeline.errors import ContractError

IMAGE_COLUMNS = ("label", "image")
LATENT_COLUMNS = ("label", "mean", "logvar")

Labels = npt.NDArray[np.int64]


class _Images(NamedTuple):
    """Views of a record batch: image r is data[offsets[r] : offsets[r + 1]]."""

    labels: npt.NDArray[np.int32]
    offsets: npt.NDArray[np.int32] | npt.NDArray[np.int64]
    data: memoryview


class _Latents(NamedTuple):
    """Views of a record batch: labels (n,), moments (n, D, h, w)."""

    labels: npt.NDArray[np.int32]
    mean: Moments
    logvar: Moments


_V = TypeVar("_V", _Images, _Latents)


class _Opened(NamedTuple, Generic[_V]):
    """A shard's record batches: their first rows and their views."""

    starts: list[int]
    views: list[_V]


class _Rows(ABC, Generic[_V]):
    """Finds the record batch of a row. Not thread-safe."""

    def __init__(self, mirror: Mirror) -> None:
        self.mirror = mirror
        self._opened: OrderedDict[int, _Opened[_V]] = OrderedDict()  # least recently used first

    def __len__(self) -> int:
        return self.mirror.rows

    @abstractmethod
    def _view(self, batch: pa.RecordBatch) -> _V: ...

    def _find(self, indices: npt.NDArray[np.integer]) -> Iterator[tuple[_V, int]]:
        """For each row number, the views of its batch and the row in it. IndexError outside of 0..len - 1."""
        if len(indices) and (indices.min() < 0 or indices.max() >= len(self)):
            raise IndexError(f"rows {indices.min()} to {indices.max()} of {len(self)}")
        shards = np.searchsorted(self.mirror.starts, indices, side="right") - 1
        rows = indices - self.mirror.starts[shards]
        for shard, row in zip(shards.tolist(), rows.tolist(), strict=True):
            starts, views = self._shard(shard)
            batch = bisect_right(starts, row) - 1
            yield views[batch], row - starts[batch]

    def _shard(self, i: int) -> _Opened[_V]:
        if i in self._opened:
            self._opened.move_to_end(i)
            return self._opened[i]
        batches: list[pa.RecordBatch] = self.mirror.open(i)
        starts = [0, *accumulate(batch.num_rows for batch in batches)][:-1]
        self._opened[i] = _Opened(starts, [self._view(batch) for batch in batches])
        if self.mirror.keep is not None and len(self._opened) > self.mirror.keep:
            self.mirror.drop(self._opened.popitem(last=False)[0])
        return self._opened[i]


class ImageStore(_Rows[_Images]):
    """The encoded images and labels of a mirror with IMAGE_COLUMNS."""

    def take(self, indices: npt.NDArray[np.integer]) -> tuple[list[memoryview], Labels]:
        """The encoded images as views of the mapped file (not copied), and labels (B,) in int64."""
        images = []
        labels = np.empty(len(indices), np.int64)
        for i, (view, row) in enumerate(self._find(indices)):
            images.append(view.data[view.offsets[row] : view.offsets[row + 1]])
            labels[i] = view.labels[row]
        return images, labels

    def _view(self, batch: pa.RecordBatch) -> _Images:
        images = batch.column("image")
        _, offsets, data = images.buffers()
        starts: npt.NDArray[np.int32] | npt.NDArray[np.int64]
        if pa.types.is_large_binary(images.type):
            starts = np.frombuffer(offsets, np.int64, batch.num_rows + 1)
        else:
            starts = np.frombuffer(offsets, np.int32, batch.num_rows + 1)
        return _Images(_numbers(batch.column("label")), starts, memoryview(data))


class LatentStore(_Rows[_Latents]):
    """The moments and labels of a mirror with LATENT_COLUMNS; `shape` is (D, h, w).

    ContractError if there are no shards, or their metadata has no shape.
    """

    def __init__(self, mirror: Mirror) -> None:
        super().__init__(mirror)
        batches = mirror.open(0) if mirror.shards else []
        shape = (batches[0].schema.metadata or {}).get(SHAPE) if batches else None
        if shape is None:
            raise ContractError("the latents are missing, or have no shape in their metadata", "Run encode again.")
        depth, height, width = (int(side) for side in shape.split(b","))
        self.shape = (depth, height, width)

    def take(self, indices: npt.NDArray[np.integer]) -> tuple[Moments, Moments, Labels]:
        """Mean and log-variance (B, D, h, w) in fp16, as stored, and labels (B,) in int64."""
        mean_BDhw = np.empty((len(indices), *self.shape), np.float16)
        logvar_BDhw = np.empty_like(mean_BDhw)
        labels = np.empty(len(indices), np.int64)
        for i, (view, row) in enumerate(self._find(indices)):
            mean_BDhw[i] = view.mean[row]
            logvar_BDhw[i] = view.logvar[row]
            labels[i] = view.labels[row]
        return mean_BDhw, logvar_BDhw, labels

    def _view(self, batch: pa.RecordBatch) -> _Latents:
        values = (batch.column(name).values.to_numpy(zero_copy_only=True) for name in ("mean", "logvar"))
        mean, logvar = (flat.reshape(batch.num_rows, *self.shape) for flat in values)
        return _Latents(_numbers(batch.column("label")), mean, logvar)


def _numbers(column: pa.Array) -> npt.NDArray[np.int32]:
    numbers: npt.NDArray[np.int32] = column.to_numpy(zero_copy_only=True)
    return numbers
