"""Which images an evaluation reads, and that it reads what the manifest says."""

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.artifacts.files import hash_file
from pipeline.artifacts.manifest import Manifest, artifact_path
from pipeline.data.mirror import Mirror, StoredShard
from pipeline.data.prepared import Rows, choose_rows, read_images, read_rows
from pipeline.data.shards import ImageShardWriter, StoredExample
from pipeline.data.store import IMAGE_COLUMNS, ImageStore
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


def test_rows_are_read_by_row_groups(tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.data.shards._GROUP_BYTES", 100)
    with ImageShardWriter(tmp_path / "a") as writer:
        for i in range(40):
            writer.add(StoredExample(str(i), i, bytes([i]) * 30, 1, 1))
    read, groups = pq.ParquetFile.read_row_group, []

    def recorded(file, group, columns):
        groups.append((group, columns))
        return read(file, group, columns=columns)

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", recorded)
    found = list(read_rows(tmp_path / "a", (1, 2, 7, 38), ("label", "image")))
    assert [(group, columns) for group, columns in groups] == [(group, ["label", "image"]) for group in (0, 2, 12)]
    rows = [row for table in found for row in table.to_pylist()]
    assert rows == [{"label": i, "image": bytes([i]) * 30} for i in (1, 2, 7, 38)]
    whole = [
        label for table in read_rows(tmp_path / "a", range(40), ("label",)) for label in table["label"].to_pylist()
    ]
    assert whole == list(range(40))


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary()])
def test_images_are_found_by_offsets_of_either_width(kind, tmp_path):
    images = [bytes([i]) * i for i in range(1, 30)]
    columns = {"label": pa.array(range(29), pa.int32()), "image": pa.array(images, kind)}
    pq.write_table(pa.table(columns), tmp_path / "a.parquet", row_group_size=10)
    record = hash_file(tmp_path / "a.parquet")
    shard = StoredShard("a.parquet", 29, record.bytes, record.sha256)
    mirror = Mirror(open_storage(tmp_path.as_uri()), [shard], tmp_path / "mirror", IMAGE_COLUMNS, None)
    mirror.fetch(lambda _: None)
    found, labels = ImageStore(mirror).take(np.arange(29)[::-1])
    assert [bytes(image) for image in found] == images[::-1]
    assert labels.tolist() == list(range(29))[::-1]


@pytest.mark.slow
def test_more_than_2_gib_of_images(tmp_path):
    """More than 32-bit offsets can count, in one shard: read by rows, mirrored, and taken."""
    image, count = b"\0" * (3 << 20), 730
    with ImageShardWriter(tmp_path / "a.parquet") as writer:
        for i in range(count):
            writer.add(StoredExample(str(i), i, image[:-1] + bytes([i % 256]), 1, 1))
    assert writer.bytes > 2**31
    found = [
        (row["label"], row["image"][-1])
        for table in read_rows(tmp_path / "a.parquet", (0, count - 1), ("label", "image"))
        for row in table.to_pylist()
    ]
    assert found == [(0, 0), (count - 1, (count - 1) % 256)]
    record = hash_file(tmp_path / "a.parquet")
    shard = StoredShard("a.parquet", count, record.bytes, record.sha256)
    mirror = Mirror(open_storage(tmp_path.as_uri()), [shard], tmp_path / "mirror", IMAGE_COLUMNS, None)
    mirror.fetch(lambda _: None)
    images, labels = ImageStore(mirror).take(np.arange(count))
    assert [bytes(view[-1:])[0] for view in images] == [i % 256 for i in range(count)]
    assert labels.tolist() == list(range(count))
    assert {len(view) for view in images} == {3 << 20}


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
