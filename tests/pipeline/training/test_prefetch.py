"""Batches that are copied ahead: the loader's, in its order; its errors and its end are the consumer's."""

import threading
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from pipeline.training.prefetch import Arrays, AsTensors, CopiedAhead, Tensors, on_device


class Numbers:
    """A loader of so many batches; `fails_at` raises in place of one."""

    def __init__(self, count: int, fails_at: int | None = None) -> None:
        self.arrays: list[Arrays] = [(np.full((2, 3), number), np.array([number])) for number in range(count)]
        self.fails_at, self.waited, self.closed = fails_at, 1.5, False

    def __iter__(self) -> Iterator[Arrays]:
        for number, arrays in enumerate(self.arrays):
            if number == self.fails_at:
                raise OSError("no such shard")
            yield arrays

    def close(self) -> None:
        self.closed = True


class Copies:
    """Stands for the stream: notes which thread starts a copy, and how many are under way."""

    def __init__(self) -> None:
        self.threads = set[int]()
        self.started = self.taken = self.most = 0

    def start(self, arrays: Arrays) -> Tensors:
        self.threads.add(threading.get_ident())
        self.started += 1
        self.most = max(self.most, self.started - self.taken)
        return tuple(torch.from_numpy(array.copy()) for array in arrays)

    def take(self, copy: Tensors) -> Tensors:
        self.taken += 1
        return copy


@pytest.mark.parametrize("count", [0, 1, 5])
def test_all_batches_arrive_in_order(count: int) -> None:
    loader, copies = Numbers(count), Copies()
    batches = CopiedAhead(loader, copies)
    assert [int(batch[1]) for batch in batches] == list(range(count))
    assert threading.get_ident() not in copies.threads
    assert copies.most <= 2  # the one that is taken, and the one ahead
    batches.close()
    assert loader.closed


def test_an_error_of_the_loader_comes_in_its_place() -> None:
    batches = CopiedAhead(Numbers(5, fails_at=2), Copies())
    assert [int(next(batches)[1]) for _ in range(2)] == [0, 1]
    with pytest.raises(OSError, match="no such shard"):
        next(batches)
    batches.close()


def test_closing_early_closes_the_loader() -> None:
    loader = Numbers(5)
    batches = CopiedAhead(loader, Copies())
    next(batches)
    batches.close()
    assert loader.closed


def test_on_a_cpu_nothing_is_copied() -> None:
    loader = Numbers(2)
    batches = on_device(loader, torch.device("cpu"))
    assert isinstance(batches, AsTensors)
    for tensors, arrays in zip(batches, loader.arrays, strict=True):
        assert [tensor.data_ptr() for tensor in tensors] == [array.ctypes.data for array in arrays]
    assert batches.waited == 1.5
    batches.close()
    assert loader.closed


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_on_a_gpu_batches_are_the_same() -> None:
    batches = on_device(Numbers(50), torch.device("cuda", 0))
    for number, (filled, label) in enumerate(batches):
        assert filled.device.type == "cuda"
        assert filled.tolist() == [[number] * 3] * 2
        assert label.tolist() == [number]
    batches.close()
