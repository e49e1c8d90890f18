from pathlib import Path

import duckdb
import numpy as np
import pandas
import pyarrow.parquet as pq
import pytest

from pipeline.data.shards import IMAGE_SCHEMA, ImageShardWriter, StoredExample, latent_record, write_latent_shard
from pipeline.storage import open_storage


def moments(rows: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    mean, logvar = rng.normal(size=(2, rows, 4, 8, 8)).astype(np.float16)
    return mean, logvar


def test_image_shard_holds_what_was_added(tmp_path: Path) -> None:
    rows = [StoredExample(f"key {i}", i % 3, bytes([i % 256]) * (i + 1), i + 1, 2) for i in range(1500)]
    for name in ("a", "b"):
        with ImageShardWriter(tmp_path / name) as writer:
            for row in rows:
                writer.add(row)
        assert writer.rows == 1500
    with pq.ParquetFile(tmp_path / "a") as file:
        assert file.schema_arrow == IMAGE_SCHEMA
        assert file.metadata.num_row_groups == 2
        assert file.metadata.row_group(0).column(2).compression == "ZSTD"
        assert [StoredExample(**row) for row in file.read().to_pylist()] == rows
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_row_groups_end_at_their_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.data.shards._GROUP_BYTES", 100)
    with ImageShardWriter(tmp_path / "a") as writer:
        for i in range(6):
            writer.add(StoredExample(str(i), 0, b"x" * 60, 1, 1))
    assert pq.read_metadata(tmp_path / "a").num_row_groups == 6


def test_an_image_that_would_pass_the_bytes_begins_another_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.data.shards._GROUP_BYTES", 100)
    sizes = [60, 40, 1, 500, 30, 30]
    with ImageShardWriter(tmp_path / "a") as writer:
        for i, size in enumerate(sizes):
            writer.add(StoredExample(str(i), i % 2, b"x" * size, 1, 1))
    assert (writer.rows, writer.bytes, dict(writer.labels)) == (6, sum(sizes), {0: 3, 1: 3})
    metadata = pq.read_metadata(tmp_path / "a")
    assert [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)] == [2, 1, 1, 2]


def test_latent_shard_round_trip(tmp_path: Path) -> None:
    mean, logvar = moments(50)
    write_latent_shard(tmp_path / "a", [str(i) for i in range(50)], np.arange(50), mean, logvar)
    table = pq.read_table(tmp_path / "a")
    assert table.schema.metadata == {b"shape": b"4,8,8"}
    for name, expected in (("mean", mean), ("logvar", logvar)):
        values = table[name].combine_chunks().values.to_numpy().reshape(50, 4, 8, 8)
        assert np.array_equal(values, expected)
    group = pq.read_metadata(tmp_path / "a").row_group(0)
    for i in range(group.num_columns):
        column = group.column(i)
        assert column.compression == "ZSTD"
        assert not column.has_dictionary_page


@pytest.mark.parametrize("record", ["", "{}", '{"key": "ä", "long": "' + 100_000 * "x" + '"}'])
def test_latents_hold_their_record(tmp_path: Path, record: str) -> None:
    mean, logvar = moments(3)
    write_latent_shard(tmp_path / "a", ["a", "b", "c"], [0, 1, 2], mean, logvar, record)
    assert latent_record(open_storage(tmp_path.as_uri()), "a", (tmp_path / "a").stat().st_size) == record


def test_latents_open_in_other_programs(tmp_path: Path) -> None:
    """By what everybody has, without anything of ours."""
    mean, logvar = moments(50)
    path = tmp_path / "a.parquet"
    write_latent_shard(path, [str(i) for i in range(50)], np.arange(50), mean, logvar)
    frame = pandas.read_parquet(path)
    assert np.array_equal(np.stack(frame["mean"]).reshape(mean.shape), mean)
    rows = duckdb.sql(f"select key, label, mean, logvar from '{path}' order by label").fetchall()
    assert [(key, label) for key, label, _, _ in rows] == [(str(i), i) for i in range(50)]
    assert np.array_equal(np.array([row[2] for row in rows], np.float16).reshape(mean.shape), mean)
    assert np.array_equal(np.array([row[3] for row in rows], np.float16).reshape(mean.shape), logvar)
    import datasets  # seconds, of every process that collects

    opened = datasets.load_dataset("parquet", data_files=str(path), split="train", cache_dir=str(tmp_path / "cache"))
    assert np.array_equal(np.array(opened["mean"], np.float16).reshape(mean.shape), mean)
    assert list(opened["label"]) == list(range(50))


def test_moments_of_another_shape_or_type_are_refused(tmp_path: Path) -> None:
    mean, logvar = moments(3)
    with pytest.raises(ValueError, match="logvar is float32"):
        write_latent_shard(tmp_path / "a", ["a", "b", "c"], [0, 1, 2], mean, logvar.astype(np.float32))
    with pytest.raises(ValueError, match="mean is float16"):
        write_latent_shard(tmp_path / "a", ["a", "b"], [0, 1], mean, logvar)
