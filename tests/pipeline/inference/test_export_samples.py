"""Samples for ADM's evaluation: the images of the stage, channels last, in one new file."""

from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import StorageError
from pipeline.inference import export_samples
from pipeline.storage import open_storage
from tests.support.contexts import samples
from tests.support.trainers import small_config


def test_the_file_is_adms_and_new(tmp_path: Path) -> None:
    config = small_config(tmp_path / "runs")
    images_NCHW = np.random.default_rng(0).integers(0, 256, (7, 3, 8, 8), dtype=np.uint8)
    labels_N = np.arange(7) % 3
    made, file = samples(config, images_NCHW, labels_N), tmp_path / "new" / "samples.npz"
    assert export_samples(open_storage(config.root), made, file) == 7
    with np.load(file) as arrays:
        assert sorted(arrays.files) == ["arr_0", "arr_1"]
        assert np.array_equal(arrays["arr_0"], images_NCHW.transpose(0, 2, 3, 1))
        assert np.array_equal(arrays["arr_1"], labels_N)
    with pytest.raises(StorageError, match=r"samples\.npz is there already\. Choose another file with --to"):
        export_samples(open_storage(config.root), made, file)
    with pytest.raises(StorageError, match="Choose another"):
        export_samples(open_storage(config.root), made, Path("/proc/nowhere/samples.npz"))
