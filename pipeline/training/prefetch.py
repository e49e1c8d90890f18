"""Brings a loader's batches to the training device: on a GPU ahead of their step, on a CPU as they are."""

import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from pipeline.training.trainee import Batches

Arrays = tuple[np.ndarray, ...]
Tensors = tuple[Tensor, ...]
_Copy = TypeVar("_Copy")


def on_device(loader: Batches[Arrays], device: torch.device) -> Batches[Tensors]:
    """The loader's batches, in its order, as tensors on the device. Closing them closes the loader."""
    if device.type == "cuda":
        return CopiedAhead(loader, SideStream(device))
    return AsTensors(loader)


class AsTensors:
    """Batches on the CPU. They share the memory of the loader's arrays."""

    def __init__(self, loader: Batches[Arrays]) -> None:
        self._loader = loader

    @property
    def waited(self) -> float:
        """Total seconds that the consumer has waited."""
        return self._loader.waited

    def __iter__(self) -> Iterator[Tensors]:
        for arrays in self._loader:
            yield tuple(torch.from_numpy(array) for array in arrays)

    def close(self) -> None:
        self._loader.close()


class Copier(Protocol[_Copy]):
    """Copies batches to the device without waiting for it."""

    def start(self, arrays: Arrays) -> _Copy:
        """Start a copy, in a thread other than the consumer's."""

    def take(self, copy: _Copy) -> Tensors:
        """The tensors of a copy; what the consumer launches from now on runs after it."""


class CopiedAhead(Generic[_Copy]):
    """Batches copied one step ahead by a thread. Exceptions of the loader are raised by `next`."""

    def __init__(self, loader: Batches[Arrays], copier: Copier[_Copy]) -> None:
        self.waited = 0.0
        self._loader, self._copier = loader, copier
        self._arrays = iter(loader)
        self._thread = ThreadPoolExecutor(1, "device")
        self._ahead: Future[_Copy | None] = self._thread.submit(self._start_next)

    def _start_next(self) -> _Copy | None:
        arrays = next(self._arrays, None)
        return None if arrays is None else self._copier.start(arrays)

    def __iter__(self) -> Iterator[Tensors]:
        return self

    def __next__(self) -> Tensors:
        begin = time.perf_counter()
        copy = self._ahead.result()
        self.waited += time.perf_counter() - begin
        if copy is None:
            raise StopIteration
        self._ahead = self._thread.submit(self._start_next)
        return self._copier.take(copy)

    def close(self) -> None:
        self._thread.shutdown(cancel_futures=True)
        self._loader.close()


class StreamCopy(NamedTuple):
    """A copy on a stream: its tensors, and the event of its end."""

    tensors: Tensors
    done: Any


class SideStream:
    """Copies from pinned memory on a stream of their own, while the step before computes."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._stream = device, torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def start(self, arrays: Arrays) -> StreamCopy:
        with torch.cuda.stream(self._stream):
            pinned = [torch.from_numpy(array).pin_memory() for array in arrays]
            tensors = tuple(tensor.to(self._device, non_blocking=True) for tensor in pinned)
            return StreamCopy(tensors, self._stream.record_event())

    def take(self, copy: StreamCopy) -> Tensors:
        current = torch.cuda.current_stream(self._device)
        current.wait_event(copy.done)
        for tensor in copy.tensors:
            tensor.record_stream(current)  # or its memory would be given to the next copy while the step still reads it
        return copy.tensors
