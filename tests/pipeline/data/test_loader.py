import threading
from pathlib import Path

import numpy as np
import pytest

from pipeline.artifacts.files import hash_file
from pipeline.config.schema import DataConfig
from pipeline.data.decode import UnreadableImage
from pipeline.data.loader import ImageLoader, LatentLoader, Plan, Prefetcher
from pipeline.data.mirror import Mirror, StoredShard, open_mirror
from pipeline.data.shards import ImageShardWriter, StoredExample, write_latent_shard
from pipeline.data.store import IMAGE_COLUMNS, LATENT_COLUMNS, ImageStore, LatentStore
from pipeline.storage.uri import open_storage
from tests.support import sources

ROWS = 30


def plan(rank: int = 0, world: int = 1) -> Plan:
    return Plan(seed=1, batch_size=12, shuffle="full", window_rows=1, group_rows=1, rank=rank, world=world)


@pytest.fixture
def images(tmp_path: Path) -> ImageStore:
    with ImageShardWriter(tmp_path / "a.parquet") as writer:
        for i in range(ROWS):
            writer.add(StoredExample(str(i), i, sources.encoded(sources.picture(i)), 12, 10))
    return ImageStore(mirrored(tmp_path, IMAGE_COLUMNS))


@pytest.fixture
def latents(tmp_path: Path) -> LatentStore:
    mean = np.arange(ROWS * 8, dtype=np.float16).reshape(ROWS, 2, 2, 2)
    write_latent_shard(tmp_path / "a.parquet", [str(i) for i in range(ROWS)], np.arange(ROWS), mean, -mean)
    return LatentStore(mirrored(tmp_path, LATENT_COLUMNS))


def mirrored(folder: Path, columns: tuple[str, ...]) -> Mirror:
    record = hash_file(folder / "a.parquet")
    shard = StoredShard("a.parquet", ROWS, record.bytes, record.sha256)
    return open_mirror(open_storage(str(folder)), [shard], folder / "mirror", columns, DataConfig(), 1)


def loader(
    store: ImageStore, start: int, stop: int, rank: int = 0, world: int = 1, flip: bool = True, threads: int = 2
) -> ImageLoader:
    return ImageLoader(
        store,
        plan(rank, world),
        image_size=8,
        center_crop=True,
        horizontal_flip=flip,
        start_step=start,
        stop_step=stop,
        threads=threads,
    )


def test_images_come_by_step(images: ImageStore) -> None:
    with loader(images, 0, 10) as batches:
        found = list(batches)
    assert len(found) == 10
    x_BCHW, labels = found[0]
    assert (x_BCHW.shape, x_BCHW.dtype) == ((12, 3, 8, 8), np.uint8)
    assert np.array_equal(labels, plan().rows(0, ROWS))
    every = np.concatenate([labels for _, labels in found])
    assert np.array_equal(np.sort(every[:ROWS]), np.arange(ROWS))


def test_resuming_is_starting_at_a_step(images: ImageStore) -> None:
    with loader(images, 0, 8, threads=3) as whole, loader(images, 5, 8, threads=1) as rest:
        expected = list(whole)[5:]
        for (x, labels), (resumed_x, resumed_labels) in zip(expected, rest, strict=True):
            assert np.array_equal(x, resumed_x)
            assert np.array_equal(labels, resumed_labels)


@pytest.mark.parametrize("world", [2, 3])
def test_ranks_together_read_the_global_batch(images: ImageStore, world: int) -> None:
    with loader(images, 3, 4) as one:
        x, labels = next(one)
    parts = []
    for rank in range(world):
        with loader(images, 3, 4, rank, world) as part:
            parts.append(next(part))
    assert np.array_equal(np.concatenate([x for x, _ in parts]), x)
    assert np.array_equal(np.concatenate([labels for _, labels in parts]), labels)


def test_flips_are_an_option(images: ImageStore) -> None:
    with loader(images, 0, 1, flip=False) as plain, loader(images, 0, 1) as flipped:
        (x, _), (y, _) = next(plain), next(flipped)
    mirrored = plan().flips(0)
    assert 0 < mirrored.sum() < 12
    assert np.array_equal(y[mirrored], x[mirrored][..., ::-1])
    assert np.array_equal(y[~mirrored], x[~mirrored])


def test_latents_come_by_step(latents: LatentStore) -> None:
    with LatentLoader(latents, plan(), start_step=2, stop_step=4) as batches:
        found = list(batches)
    assert len(found) == 2
    mean, logvar, labels = found[1]
    assert np.array_equal(labels, plan().rows(3, ROWS))
    assert np.array_equal(mean[:, 0, 0, 0], 8 * labels)
    assert np.array_equal(logvar, -mean)


def test_what_goes_wrong_in_a_thread_is_raised(tmp_path: Path) -> None:
    with ImageShardWriter(tmp_path / "a.parquet") as writer:
        for i in range(ROWS):
            writer.add(StoredExample(str(i), i, b"no image", 1, 1))
    store = ImageStore(mirrored(tmp_path, IMAGE_COLUMNS))
    with loader(store, 0, 4) as batches, pytest.raises(UnreadableImage):
        next(batches)


def test_only_a_few_batches_are_made_ahead_and_closing_ends_the_threads() -> None:
    made_steps, gate = [], threading.Event()

    def make(step: int) -> int:
        made_steps.append(step)
        if step == 1:
            gate.wait()
        return step

    batches = Prefetcher(make, 0, 1_000_000)
    assert next(batches) == 0
    gate.set()
    assert next(batches) == 1
    assert batches.waited >= 0.0
    batches.close()
    assert max(made_steps) <= 5
    assert list(batches) == []
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("loader")]


def test_waiting_is_counted() -> None:
    release = threading.Event()

    def make(step: int) -> int:
        release.wait()
        return step

    with Prefetcher(make, 0, 2) as batches:
        threading.Timer(0.2, release.set).start()
        assert list(batches) == [0, 1]
        assert batches.waited > 0.1


def test_a_closed_image_loader_leaves_no_thread(images: ImageStore) -> None:
    batches = loader(images, 0, 1000)
    next(batches)
    batches.close()
    batches.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith(("loader", "decode"))]
