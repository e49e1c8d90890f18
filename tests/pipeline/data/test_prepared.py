"""Which images an evaluation reads, and that it reads what the manifest says."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.artifacts.manifest import Manifest, artifact_path
from pipeline.data.prepared import Rows, choose_rows, read_images
from pipeline.errors import ContractError
from pipeline.storage.uri import open_storage
from tests.support.artifacts import prepared
from tests.support.trainers import small_config


def split_of(counts: list[int]) -> Manifest:
    files = [{"path": f"shards/{i}", "rows": rows} for i, rows in enumerate(counts)]
    bare: Any = Manifest.model_construct  # of which only the splits are looked at
    made: Manifest = bare(details={"splits": {"train": files}})
    return made


@given(st.lists(st.integers(0, 1500), min_size=1, max_size=6), st.integers(1, 3000))
def test_rows_are_spread_evenly_and_in_order(counts, most):
    units = choose_rows(split_of(counts), "train", most)
    starts = dict(zip((f"shards/{i}" for i in range(len(counts))), np.cumsum([0, *counts]).tolist(), strict=False))
    chosen = [starts[unit.path] + row for unit in units for row in unit.rows]
    total = sum(counts)
    assert len(chosen) == min(most, total)
    assert chosen == sorted(set(chosen))
    assert all(0 < len(unit.rows) <= 256 for unit in units)
    if len(chosen) > 1:
        gaps = np.diff([*chosen, total])
        assert gaps.max() - gaps.min() <= 1


def test_images_are_decoded_and_checked(tmp_path):
    config = small_config(tmp_path)
    prepare, storage = prepared(config), open_storage(config.root)
    (unit, *_) = choose_rows(prepare, "validation", 5)
    images, labels = read_images(storage, prepare, unit, config.data)
    assert images.shape == (5, 3, 32, 32)
    assert images.dtype == np.uint8
    assert labels.dtype == np.int64
    again, label = read_images(storage, prepare, Rows(unit.path, unit.rows[3:4]), config.data)
    assert (again[0] == images[3]).all()
    assert label == labels[3]
    path = f"{artifact_path('prepare', prepare.fingerprint)}/{unit.path}"
    storage.write(path, storage.read(path)[:-1] + b"x")
    with pytest.raises(ContractError, match=r"does not match its manifest.*artifact repair"):
        read_images(storage, prepare, unit, config.data)
