"""Random access to examples: maps row numbers to encoded images or moments, read from the memory-mapped mirror.

Reading an example takes one offset and one copy; memory does not grow with the data set.
Legend: B rows, D latent channels, h w latent rows and columns, F = D h w.
"""

from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Iterator
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
    """Views of a record batch: labels (n,), moments (n, F)."""

    labels: npt.NDArray[np.int32]
    mean: Moments
    logvar: Moments


_V = TypeVar("_V", _Images, _Latents)


class _Opened(NamedTuple, Generic[_V]):
    """A shard's record batches: their first rows and their views."""

    starts: npt.NDArray[np.int64]
    views: list[_V]


class _Part(NamedTuple, Generic[_V]):
    """The rows that a call takes of one record batch, and their places in the result."""

    view: _V
    rows: npt.NDArray[np.int64]
    places: npt.NDArray[np.int64]


class _Rows(ABC, Generic[_V]):
    """Finds the record batches of rows. Not thread-safe."""

    def __init__(self, mirror: Mirror) -> None:
        self.mirror = mirror
        self._opened: OrderedDict[int, _Opened[_V]] = OrderedDict()  # least recently used first

    def __len__(self) -> int:
        return self.mirror.rows

    @abstractmethod
    def _view(self, batch: pa.RecordBatch) -> _V: ...

    def _parts(self, indices: npt.NDArray[np.integer]) -> Iterator[_Part[_V]]:
        """The row numbers by record batch: each batch is looked up once. IndexError outside of 0..len - 1."""
        if len(indices) and (indices.min() < 0 or indices.max() >= len(self)):
            raise IndexError(f"rows {indices.min()} to {indices.max()} of {len(self)}")
        places = np.argsort(indices, kind="stable")
        rows = indices[places].astype(np.int64)
        for shard, first, last in _runs(self.mirror.starts, rows):
            opened = self._shard(shard)
            within = rows[first:last] - self.mirror.starts[shard]
            for batch, begin, end in _runs(opened.starts, within):
                chosen = within[begin:end] - opened.starts[batch]
                yield _Part(opened.views[batch], chosen, places[first + begin : first + end])

    def _shard(self, i: int) -> _Opened[_V]:
        if i in self._opened:
            self._opened.move_to_end(i)
            return self._opened[i]
        batches: list[pa.RecordBatch] = self.mirror.open(i)
        starts = np.cumsum([0, *(batch.num_rows for batch in batches)])
        self._opened[i] = _Opened(starts, [self._view(batch) for batch in batches])
        if self.mirror.keep is not None and len(self._opened) > self.mirror.keep:
            self.mirror.drop(self._opened.popitem(last=False)[0])
        return self._opened[i]


def _runs(starts: npt.NDArray[np.int64], rows: npt.NDArray[np.int64]) -> Iterator[tuple[int, int, int]]:
    """(i, first, last) for each i so that the sorted rows[first:last], one or more, lie in starts[i]..starts[i + 1]."""
    first = 0
    while first < len(rows):
        i = int(np.searchsorted(starts, rows[first], side="right")) - 1
        last = int(np.searchsorted(rows, starts[i + 1]))
        yield i, first, last
        first = last


class ImageStore(_Rows[_Images]):
    """The encoded images and labels of a mirror with IMAGE_COLUMNS."""

    def take(self, indices: npt.NDArray[np.integer]) -> tuple[list[memoryview], Labels]:
        """The encoded images as views of the mapped file (not copied), and labels (B,) in int64."""
        images = [memoryview(b"")] * len(indices)
        labels = np.empty(len(indices), np.int64)
        for view, rows, places in self._parts(indices):
            begins, ends = view.offsets[rows].tolist(), view.offsets[rows + 1].tolist()
            for place, begin, end in zip(places.tolist(), begins, ends, strict=True):
                images[place] = view.data[begin:end]
            labels[places] = view.labels[rows]
        return images, labels

    def _view(self, batch: pa.RecordBatch) -> _Images:
        column = batch.column("image")
        _, offsets, data = column.buffers()
        starts: npt.NDArray[np.int32] | npt.NDArray[np.int64]
        if pa.types.is_large_binary(column.type):
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
        """Mean and log-variance (B, D, h, w) in fp16, as stored, and labels (B,) in int64.

        A row is copied once, to its place. Measured on rows of 8 to 16 KiB, this is 1.3 times as fast as one gather a
        record batch: the gathered rows would have to be copied again, as they do not lie together in the result.
        """
        mean_BF = np.empty((len(indices), int(np.prod(self.shape))), np.float16)
        logvar_BF = np.empty_like(mean_BF)
        labels = np.empty(len(indices), np.int64)
        for view, rows, places in self._parts(indices):
            mean_NF, logvar_NF = view.mean, view.logvar
            for place, row in zip(places.tolist(), rows.tolist(), strict=True):
                mean_BF[place] = mean_NF[row]
                logvar_BF[place] = logvar_NF[row]
            labels[places] = view.labels[rows]
        return mean_BF.reshape(-1, *self.shape), logvar_BF.reshape(-1, *self.shape), labels

    def _view(self, batch: pa.RecordBatch) -> _Latents:
        values = (batch.column(name).values.to_numpy(zero_copy_only=True) for name in ("mean", "logvar"))
        mean, logvar = (flat.reshape(batch.num_rows, int(np.prod(self.shape))) for flat in values)
        return _Latents(_numbers(batch.column("label")), mean, logvar)


def _numbers(column: pa.Array) -> npt.NDArray[np.int32]:
    numbers: npt.NDArray[np.int32] = column.to_numpy(zero_copy_only=True)
    return numbers
