import errno
import multiprocessing
import os
import threading
from collections import namedtuple
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.artifacts.files import hash_file
from pipeline.config.schema import DataConfig
from pipeline.data import mirror
from pipeline.data.mirror import Mirror, StoredShard, mirror_directory, open_mirror
from pipeline.data.shards import IMAGE_SCHEMA, ImageShardWriter, StoredExample, write_latent_shard
from pipeline.data.store import IMAGE_COLUMNS, LATENT_COLUMNS, ImageStore, LatentStore
from pipeline.errors import ContractError, StorageError
from pipeline.storage.base import Storage
from pipeline.storage.uri import open_storage

FULL = DataConfig(shuffle="full")
ROWS = (7, 5, 9, 6, 8, 5)


def stored(storage: Storage, path: Path, name: str, rows: int) -> StoredShard:
    storage.upload(path, name)
    record = hash_file(path)
    return StoredShard(name, rows, record.bytes, record.sha256)


def image_shards(storage: Storage, tmp_path: Path) -> list[StoredShard]:
    """Image number n, of n + 1 bytes, under label n."""
    shards, number = [], 0
    for i, rows in enumerate(ROWS):
        with ImageShardWriter(tmp_path / "shard") as writer:
            for _ in range(rows):
                writer.add(StoredExample(str(number), number, bytes([number]) * (number + 1), 1, 1))
                number += 1
        shards.append(stored(storage, tmp_path / "shard", f"prepare/abc/shards/{i}.parquet", rows))
    return shards


def latent_shards(storage: Storage, tmp_path: Path) -> tuple[list[StoredShard], np.ndarray, np.ndarray]:
    mean, logvar = np.random.default_rng(1).normal(size=(2, sum(ROWS), 4, 3, 2)).astype(np.float16)
    shards, start = [], 0
    for i, rows in enumerate(ROWS):
        part = slice(start, start + rows)
        labels = np.arange(start, start + rows)
        write_latent_shard(tmp_path / "shard", [str(n) for n in labels], labels, mean[part], logvar[part])
        shards.append(stored(storage, tmp_path / "shard", f"encode/abc/{i}.parquet", rows))
        start += rows
    return shards, mean, logvar


def is_right(store: ImageStore, indices: np.ndarray) -> bool:
    images, labels = store.take(indices)
    assert labels.dtype == np.int64
    assert [bytes(image) for image in images] == [bytes([n]) * (n + 1) for n in indices]
    return bool((labels == indices).all())


def test_images_are_found_by_row_number(any_root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.data.shards._GROUP_BYTES", 60)  # several record batches a shard
    storage = open_storage(any_root)
    shards, told = image_shards(storage, tmp_path), list[int]()
    store = ImageStore(open_mirror(storage, shards, tmp_path / "mirror", IMAGE_COLUMNS, FULL, 8, told.append))
    assert told == [0, 7, 12, 21, 27, 35, 40]
    assert len(store) == 40
    assert is_right(store, np.random.default_rng(0).permutation(40))
    assert is_right(store, np.array([0, 39, 0]))
    assert store.take(np.array([], np.int64))[0] == []
    for outside in (-1, 40):
        with pytest.raises(IndexError):
            store.take(np.array([3, outside]))


def test_latents_are_found_by_row_number(any_root: str, tmp_path: Path) -> None:
    storage = open_storage(any_root)
    shards, mean, logvar = latent_shards(storage, tmp_path)
    store = LatentStore(open_mirror(storage, shards, tmp_path / "mirror", LATENT_COLUMNS, FULL, 8))
    assert store.shape == (4, 3, 2)
    order = np.random.default_rng(0).permutation(40)
    found_mean, found_logvar, labels = store.take(order)
    assert (found_mean.dtype, labels.dtype) == (np.float16, np.int64)
    assert np.array_equal(found_mean, mean[order])
    assert np.array_equal(found_logvar, logvar[order])
    assert np.array_equal(labels, order)


def test_rows_come_in_any_order_as_often_as_asked(tmp_path: Path) -> None:
    """From shards of several record batches, beside one without a row."""
    storage, random = open_storage(str(tmp_path / "root")), np.random.default_rng(2)
    shards, mean, logvar = latent_shards(storage, tmp_path)
    for i, shard in enumerate([*shards]):
        pq.write_table(table := pq.read_table(tmp_path / "root" / shard.path), tmp_path / "shard", row_group_size=3)
        shards[i] = stored(storage, tmp_path / "shard", shard.path, shard.rows)
    pq.write_table(table.slice(0, 0), tmp_path / "shard")
    shards.insert(2, stored(storage, tmp_path / "shard", "encode/abc/empty.parquet", 0))
    store = LatentStore(open_mirror(storage, shards, tmp_path / "mirror", LATENT_COLUMNS, FULL, 8))
    for rows in (0, 1, 7, 200):
        chosen = random.integers(0, 40, rows)
        found_mean, found_logvar, labels = store.take(chosen)
        assert found_mean.shape == (rows, 4, 3, 2)
        assert np.array_equal(found_mean, mean[chosen])
        assert np.array_equal(found_logvar, logvar[chosen])
        assert np.array_equal(labels, chosen)


def test_large_binary_columns_are_read(tmp_path: Path) -> None:
    """Their offsets have 64 bits."""
    storage = open_storage(str(tmp_path / "root"))
    image_shards(storage, tmp_path)
    table = pq.read_table(tmp_path / "shard").cast(
        pa.schema([pa.field(f.name, pa.large_binary() if f.name == "image" else f.type) for f in IMAGE_SCHEMA])
    )
    pq.write_table(table, tmp_path / "shard")
    shard = stored(storage, tmp_path / "shard", "large.parquet", ROWS[-1])
    images, labels = ImageStore(open_mirror(storage, [shard], tmp_path / "mirror", IMAGE_COLUMNS, FULL, 8)).take(
        np.array([4, 0, 2])
    )
    assert [bytes(image) for image in images] == [bytes([n]) * (n + 1) for n in (39, 35, 37)]
    assert labels.tolist() == [39, 35, 37]


def test_latents_must_say_their_shape(tmp_path: Path) -> None:
    storage = open_storage(str(tmp_path / "root"))
    latent_shards(storage, tmp_path)
    table = pq.read_table(tmp_path / "shard").replace_schema_metadata(None)
    pq.write_table(table, tmp_path / "shard")
    for none_said in ([stored(storage, tmp_path / "shard", "x", ROWS[-1])], []):
        with pytest.raises(ContractError, match="have no shape in their metadata"):
            LatentStore(open_mirror(storage, none_said, tmp_path / "mirror", LATENT_COLUMNS, FULL, 8))


def test_a_mirror_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage, directory = open_storage(str(tmp_path / "root")), tmp_path / "mirror"
    shards = image_shards(storage, tmp_path)
    open_mirror(storage, shards, directory, IMAGE_COLUMNS, FULL, 8)
    files = {path.name: path.stat().st_mtime_ns for path in directory.glob("*.arrow")}
    storage.delete_folder("")  # nothing is left to make it from
    told: list[int] = []
    assert is_right(
        ImageStore(open_mirror(storage, shards, directory, IMAGE_COLUMNS, FULL, 8, told.append)), np.arange(40)
    )
    assert told == [40]
    assert {path.name: path.stat().st_mtime_ns for path in directory.glob("*.arrow")} == files
    with pytest.raises(ContractError, match=r"missing or does not match.*artifact repair prepare/abc"):
        open_mirror(storage, shards, directory, ("label",), FULL, 8)  # other columns are other files


def test_a_cut_mirror_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage, directory = open_storage(str(tmp_path / "root")), tmp_path / "mirror"
    shards = image_shards(storage, tmp_path)
    replace, calls = os.replace, []

    def killed(source: Path, target: Path) -> None:
        calls.append(target)
        if len(calls) == 4:
            raise KeyboardInterrupt
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr("pipeline.data.mirror.os.replace", killed)
        with pytest.raises(KeyboardInterrupt):
            open_mirror(storage, shards, directory, IMAGE_COLUMNS, FULL, 8)
    assert len(list(directory.glob(".partial-*"))) == 1
    whole = sorted(directory.glob("[0-9a-f]*.arrow"))
    assert len(whole) == 3
    whole[0].write_bytes(whole[0].read_bytes()[:-20])  # damaged since
    told: list[int] = []
    store = ImageStore(open_mirror(storage, shards, directory, IMAGE_COLUMNS, FULL, 8, told.append))
    assert len(told) == 5
    assert is_right(store, np.arange(40))
    assert list(directory.glob(".partial-*")) == []


def test_what_a_killed_process_has_left_is_removed_in_a_window_too(any_root: str, tmp_path: Path) -> None:
    storage, directory = open_storage(any_root), tmp_path / "mirror"
    shards = image_shards(storage, tmp_path)
    directory.mkdir()
    (directory / ".partial-0a1b2c.parquet").write_bytes(b"a download that was cut")
    window = DataConfig(shuffle="window", window_rows=8)
    open_mirror(storage, shards, directory, IMAGE_COLUMNS, window, 8).open(0)
    assert list(directory.glob(".partial-*")) == []


def test_a_changed_shard_is_refused(any_root: str, tmp_path: Path) -> None:
    """With a command that repairs it, also where the root is not the usual one."""
    storage = open_storage(any_root)
    shards = image_shards(storage, tmp_path)
    storage.write(shards[2].path, storage.read(shards[3].path))
    with pytest.raises(ContractError, match=r"2.parquet is missing or does not match its manifest") as refusal:
        open_mirror(storage, shards, tmp_path / "mirror", IMAGE_COLUMNS, FULL, 8)
    assert refusal.value.hint == f"Run `python -m pipeline artifact repair prepare/abc --root {storage.root}`."


def test_a_small_disk_is_said_with_its_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = open_storage(str(tmp_path / "root"))
    shards = image_shards(storage, tmp_path)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage(9999, 0, 1000))
    with pytest.raises(
        StorageError, match=r"needs about \d+ more bytes, the disk has 1000 free.*cluster.mirror.*data.shuffle"
    ):
        open_mirror(storage, shards, tmp_path / "mirror", IMAGE_COLUMNS, FULL, 8)


def test_a_disk_that_fills_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = open_storage(str(tmp_path / "root"))
    shards = image_shards(storage, tmp_path)

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("pipeline.data.mirror.os.fsync", full)
    with pytest.raises(StorageError, match=r"disk full. Free some space, or set cluster.mirror"):
        open_mirror(storage, shards, tmp_path / "mirror", IMAGE_COLUMNS, FULL, 8)
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match=r"mirror cannot be written.*cluster\.mirror"):
        open_mirror(storage, shards, tmp_path / "file", IMAGE_COLUMNS, FULL, 8)


def test_a_window_keeps_few_files(any_root: str, tmp_path: Path) -> None:
    storage, directory = open_storage(any_root), tmp_path / "mirror"
    mirror = Mirror(storage, image_shards(storage, tmp_path), directory, IMAGE_COLUMNS, keep=2)
    store = ImageStore(mirror)
    held, _ = store.take(np.arange(3))
    for start in range(0, 40, 5):
        assert is_right(store, np.arange(start, start + 5))
        assert len(list(directory.glob("*.arrow"))) <= 2
    assert is_right(store, np.random.default_rng(0).permutation(40))
    assert bytes(held[2]) == b"\2\2\2"  # still mapped, though its file is gone


def test_shuffle_decides_what_is_mirrored(tmp_path: Path) -> None:
    storage, directory = open_storage(str(tmp_path / "root")), tmp_path / "mirror"
    shards = image_shards(storage, tmp_path)
    window = DataConfig(shuffle="window", window_rows=8)
    mirror = open_mirror(storage, shards, directory, IMAGE_COLUMNS, window, 8)
    assert mirror.keep == 2 + 2 * 3
    assert not directory.exists()
    assert is_right(ImageStore(mirror), np.arange(40))


def worker(root: str, shards: list[StoredShard], directory: Path, answers: "multiprocessing.Queue[bool]") -> None:
    store = ImageStore(open_mirror(open_storage(root), shards, directory, IMAGE_COLUMNS, FULL, 8))
    answers.put(is_right(store, np.arange(40)))


def test_workers_of_a_node_share_one_mirror(tmp_path: Path) -> None:
    root, directory = str(tmp_path / "root"), tmp_path / "mirror"
    shards = image_shards(open_storage(root), tmp_path)
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    workers = [context.Process(target=worker, args=(root, shards, directory, answers)) for _ in range(3)]
    for process in workers:
        process.start()
    assert [answers.get(timeout=60) for _ in workers] == [True] * 3
    for process in workers:
        process.join()
    assert len(list(directory.glob("*.arrow"))) == len(ROWS)


def test_who_waits_for_another_worker_sees_how_far_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As rank 0 does, whose progress is shown, where another rank of its node was first."""
    monkeypatch.setattr(mirror, "_LOCK_SECONDS", 0.01)
    storage, directory = open_storage(str(tmp_path / "root")), tmp_path / "mirror"
    shards, told, fourth = image_shards(storage, tmp_path), list[int](), threading.Event()
    other = Mirror(storage, shards, directory, IMAGE_COLUMNS, None)

    def tell(rows: int) -> None:
        told.append(rows)
        if rows == 21:
            fourth.set()

    with ThreadPoolExecutor(1) as pool, mirror._locked(directory):
        waits = pool.submit(open_mirror, storage, shards, directory, IMAGE_COLUMNS, FULL, 8, tell)
        for i in range(3):
            other._create(i)
        assert fourth.wait(60), told
        assert not waits.done()
    assert told[-1] == 40
    assert is_right(ImageStore(waits.result()), np.arange(40))


def test_where_the_mirror_lies(monkeypatch: pytest.MonkeyPatch) -> None:
    assert mirror_directory("/somewhere") == Path("/somewhere")
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    assert mirror_directory(None) == Path("/cache/denoising-vae/mirror")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert mirror_directory(None) == Path.home() / ".cache/denoising-vae/mirror"


def test_room_is_reckoned_with_the_first_shards_growth(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Zeros are stored in next to nothing, and are what they are in the mirror."""
    storage, zeros = open_storage(str(tmp_path / "root")), np.zeros((50, 4, 32, 32), np.float16)
    write_latent_shard(tmp_path / "shard", [str(n) for n in range(50)], np.arange(50), zeros, zeros)
    shards = [stored(storage, tmp_path / "shard", "a", 50)]
    write_latent_shard(tmp_path / "shard", [str(n) for n in range(50)], np.arange(50) + 1, zeros, zeros)
    shards.append(stored(storage, tmp_path / "shard", "b", 50))
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage(9, 9, 100_000))
    with pytest.raises(StorageError, match=r"needs about 8\d{5} more bytes"):
        open_mirror(storage, shards, tmp_path / "mirror", LATENT_COLUMNS, FULL, 8)
    assert len(list((tmp_path / "mirror").glob("*.arrow"))) == 1
