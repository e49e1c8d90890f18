"""Sets of images give their batches without all of them in memory."""

import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pipeline.evaluation import of_npz


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_an_npz_is_read_a_batch_at_a_time(tmp_path: Path, save: Callable[..., None], dtype: type) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2100, 32, 32, 3), np.uint8)
    given = pixels if dtype == np.uint8 else pixels / np.float32(255)
    path = str(tmp_path / "images.npz")
    save(path, arr_0=given, arr_1=np.zeros(len(pixels)))
    batch, place = given[:256].nbytes, 0
    tracemalloc.start()
    try:
        images, moments = of_npz(path)
        assert images is not None
        for found in images.batches(None):
            assert np.array_equal(found, pixels[place : place + 256].transpose(0, 3, 1, 2))
            place += len(found)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (place, images.side, moments) == (2100, 32, {})
    assert peak < 6 * batch < given.nbytes
