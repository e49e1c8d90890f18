import gzip
import hashlib
import io
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline.config.schema import DataConfig
from pipeline.data import folders
from pipeline.data.listing import list_source
from pipeline.data.prepare import PreparedUnit, broken_links, check_prepared, prepare_unit
from pipeline.data.raw import RawExample
from pipeline.data.sources import exceptions_of, work_units
from pipeline.data.split import split_of
from pipeline.errors import DataError
from pipeline.storage.uri import open_storage
from tests.support import sources

BAD = {
    "zero": b"",
    "text": b"not an image",
    "cut": sources.encoded(sources.picture(0))[:-40],
    "bomb": sources.huge_png(30_000, 30_000),
}


def prepared(data: DataConfig, root: str) -> list[PreparedUnit]:
    storage, units = open_storage(root), work_units(list_source(data), data)
    training = exceptions_of(units, data, 3).training
    return [
        prepare_unit(unit, data, 3, storage, "prepare/abc", training.get(unit.index, frozenset())) for unit in units
    ]


def rows_of(root: str, units: list[PreparedUnit], split: str) -> list[dict[str, object]]:
    storage, rows = open_storage(root), []
    for shard in (shard for unit in units for shard in unit.shards if shard.split == split):
        content = storage.read(f"prepare/abc/{shard.path}")
        assert (len(content), hashlib.sha256(content).hexdigest()) == (shard.bytes, shard.sha256)
        found = pq.read_table(io.BytesIO(content)).to_pylist()
        assert len(found) == shard.rows
        rows += found
    return rows


@pytest.mark.parametrize("layout", ["folder", "parquet", "webdataset"])
def test_both_splits_are_written(layout: str, any_root: str) -> None:
    images = sources.examples(60)
    sources.put_source(open_storage(f"{any_root}/source"), layout, images)
    data = DataConfig(format=layout, uri=f"{any_root}/source", classes=3, shard_rows=25, validation_share=0.3)
    units = prepared(data, any_root)
    train, validation = (rows_of(any_root, units, split) for split in ("train", "validation"))
    assert sorted((row["image"], row["label"]) for row in train + validation) == sorted(images)
    assert {(row["width"], row["height"]) for row in train} == {(12, 10)}
    assert 5 < len(validation) < 30
    assert all(split_of(str(row["key"]), 3, 0.3) == "validation" for row in validation)
    assert prepared(data, any_root) == units  # the same bytes again
    assert PreparedUnit.model_validate_json(units[0].model_dump_json()) == units[0]
    paths = [entry.path for entry in open_storage(any_root).list("prepare")]
    assert paths == sorted(f"prepare/abc/{shard.path}" for unit in units for shard in unit.shards)
    check_prepared(units, data)


def test_validation_uri_decides(any_root: str) -> None:
    for name, images in (("train", sources.examples(9)), ("validation", sources.examples(3))):
        sources.put_source(open_storage(f"{any_root}/{name}"), "folder", images)
    data = DataConfig(uri=f"{any_root}/train", validation_uri=f"{any_root}/validation", classes=3)
    units = prepared(data, any_root)
    paths = [shard.path for unit in units for shard in unit.shards]
    assert paths == ["shards/train-00000-000.parquet", "shards/validation-00001-000.parquet"]
    assert len(rows_of(any_root, units, "validation")) == 3


def test_unreadable_images_are_quarantined(any_root: str) -> None:
    storage = open_storage(f"{any_root}/source")
    sources.put_folder(storage, sources.examples(12))
    for name, content in BAD.items():
        storage.write(f"class0/{name}.png", content)
    storage.write("class1/odd.png", sources.encoded(Image.new("I;16", (5, 4), 1000)))
    data = DataConfig(uri=f"{any_root}/source", classes=3)
    units = prepared(data, any_root)
    assert len(rows_of(any_root, units, "train")) + len(rows_of(any_root, units, "validation")) == 13
    reasons = {image.key: image.reason for unit in units for image in unit.quarantined}
    assert sorted(reasons) == [f"class0/{name}.png" for name in sorted(BAD)]
    assert reasons["class0/zero.png"] == "zero bytes"
    assert "30000 x 30000" in reasons["class0/bomb.png"]
    with pytest.raises(
        DataError, match=r"4 of 17 images cannot be read; the first is class0/bomb.png.*quarantine_budget"
    ):
        check_prepared(units, data)
    check_prepared(units, data.model_copy(update={"quarantine_budget": 0.25}))


def test_shards_end_by_rows_and_by_bytes(any_root: str) -> None:
    """A larger image has a shard of its own; the parts of a unit have its images in order."""
    sides = [300, 300, 300, 20, 20, 20, 20, 700, 20, 300]
    files = [sources.encoded(sources.picture(i, side, side), "BMP") for i, side in enumerate(sides)]
    sources.put_folder(open_storage(f"{any_root}/source"), [(file, 0) for file in files])
    data = DataConfig(uri=f"{any_root}/source", validation_uri=f"{any_root}/source", classes=1, shard_rows=10)
    units = prepared(data.model_copy(update={"shard_bytes": 600_000}), any_root)
    shards = [shard for unit in units for shard in unit.shards if shard.split == "train"]
    assert [shard.path for shard in shards] == [f"shards/train-00000-{part:03d}.parquet" for part in range(4)]
    assert [shard.rows for shard in shards] == [2, 5, 1, 2]
    assert [row["image"] for row in rows_of(any_root, units, "train")] == files
    assert [shard.bytes <= 610_000 for shard in shards] == [True, True, False, True]
    by_rows = prepared(data.model_copy(update={"shard_rows": 3}), any_root)
    assert [shard.rows for unit in by_rows for shard in unit.shards if shard.split == "train"] == [3, 3, 3, 1]


@pytest.mark.parametrize("layout", ["folder", "parquet", "webdataset"])
def test_an_image_that_is_too_large_is_quarantined(layout: str, any_root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A picture may be followed by gigabytes, of which Parquet stores no row of 2 GiB."""
    images = sources.examples(9)
    large = (images[4][0] + bytes(5000), images[4][1])
    sources.put_source(open_storage(f"{any_root}/source"), layout, [*images[:4], large, *images[5:]])
    data = DataConfig.model_validate({"format": layout, "uri": f"{any_root}/source", "classes": 3})
    data = data.model_copy(update={"quarantine_budget": 0.2})
    monkeypatch.setattr("pipeline.data.raw.MAX_IMAGE_BYTES", 4096)
    monkeypatch.setattr(folders.FolderUnit, "read", _reads_only_small(folders.FolderUnit.read))
    units = prepared(data, any_root)
    (found,) = (image for unit in units for image in unit.quarantined)
    assert found.reason == f"{len(large[0])} bytes are more than 4096"
    check_prepared(units, data)
    assert sum(shard.rows for unit in units for shard in unit.shards) == 8


def _reads_only_small(read: Callable[..., Iterator[RawExample]]) -> Callable[..., Iterator[RawExample]]:
    def checked(unit: folders.FolderUnit) -> Iterator[RawExample]:
        for example in read(unit):
            assert len(example.image) <= 4096  # not even read
            yield example

    return checked


@pytest.mark.parametrize("name", ["a.tgz", "a.tar.gz", "a.tar.bz2", "a.tar"])
def test_the_parts_of_a_compressed_tar(name: str, any_root: str) -> None:
    """It is one unit, which a task reads once, and several shards."""
    images = sources.examples(20)
    open_storage(f"{any_root}/source").write(name, gzip.compress(sources.webdataset(images)))
    data = DataConfig(format="webdataset", uri=f"{any_root}/source", classes=3, shard_rows=6, validation_share=0.3)
    (unit,) = prepared(data, any_root)
    assert all(shard.rows <= 6 for shard in unit.shards)
    rows = [row for split in ("train", "validation") for row in rows_of(any_root, [unit], split)]
    assert sorted((row["image"], row["label"]) for row in rows) == sorted(images)


def test_what_a_tar_excludes_is_quarantined_with_the_rest(any_root: str) -> None:
    images = sources.examples(3)
    twice = [("1.png", images[0][0]), ("1.cls", b"1"), ("1.png", images[1][0]), ("2.png", b"x"), ("2.cls", b"2")]
    open_storage(f"{any_root}/source").write("a.tar", sources.tar(twice))
    data = DataConfig(format="webdataset", uri=f"{any_root}/source", classes=3)
    (unit,) = prepared(data, any_root)
    assert [image.key for image in unit.quarantined] == ["a.tar/1.png", "a.tar/2"]
    with pytest.raises(DataError, match=r"2 of 3 images cannot be read; the first is a\.tar/1\.png: the key occurs"):
        check_prepared([unit], data)


@pytest.mark.parametrize("layout", ["folder", "parquet"])
def test_every_class_of_two_or_more_trains(layout: str, any_root: str) -> None:
    """Sixty classes of two: a share of a quarter leaves some without a training image, unless it is looked at."""
    images = sources.examples(121, classes=60)
    images.append((sources.encoded(sources.picture(500)), 60))  # the only one of its class
    sources.put_source(open_storage(f"{any_root}/source"), layout, images)
    data = DataConfig.model_validate(
        {"format": layout, "uri": f"{any_root}/source", "classes": 61, "shard_rows": 25, "validation_share": 0.25}
    )
    found = exceptions_of(work_units(list_source(data), data), data, 3)
    assert sum(map(len, found.training.values())) > 0
    train = rows_of(any_root, prepared(data, any_root), "train")
    assert {row["label"] for row in train} == set(range(60 if found.untrained else 61))
    forced = {key for keys in found.training.values() for key in keys}
    assert all(split_of(str(row["key"]), 3, 0.25) == "train" or row["key"] in forced for row in train)
    assert forced <= {row["key"] for row in train}


def test_a_class_whose_training_images_are_unreadable(any_root: str) -> None:
    storage = open_storage(f"{any_root}/source")
    sources.put_folder(storage, sources.examples(30))
    keys = [f"odd/{i}.png" for i in range(12)]
    assert {split_of(key, 3, 0.5) for key in keys} == {"train", "validation"}
    for i, key in enumerate(keys):
        good = split_of(key, 3, 0.5) == "validation"
        storage.write(key, sources.encoded(sources.picture(100 + i)) if good else b"")
    data = DataConfig(uri=f"{any_root}/source", classes=4, validation_share=0.5, quarantine_budget=0.5)
    names = list_source(data).classes
    with pytest.raises(DataError, match=r"class 'odd' has no readable training image, and \d+ for validation. Repair"):
        check_prepared(prepared(data, any_root), data, names)
    for key in keys:
        if split_of(key, 3, 0.5) == "train":
            storage.delete(key)
    check_prepared(prepared(data, any_root), data, names)  # as the hint says


@pytest.mark.parametrize("layout", ["parquet", "webdataset"])
def test_a_class_that_only_the_validation_split_has(layout: str, any_root: str) -> None:
    """Given splits are not changed, so a class that no image trains is refused, even if a single one validates it."""
    storage = open_storage(f"{any_root}/source")
    sources.put_source(storage, layout, sources.examples(8, classes=2))
    data = DataConfig.model_validate({"format": layout, "uri": f"{any_root}/source", "classes": 3})
    sources.put_source(open_storage(f"{any_root}/val"), layout, sources.examples(4, classes=3))
    data = data.model_copy(update={"validation_uri": f"{any_root}/val"})
    with pytest.raises(DataError, match=r"class 2 has no readable training image, and 1 for validation\. Add training"):
        check_prepared(prepared(data, any_root), data, splits_given=True)


def test_a_class_folder_whose_training_images_are_all_unreadable(any_root: str) -> None:
    for name, images in (("train", sources.examples(9)), ("val", sources.examples(3))):
        sources.put_folder(open_storage(f"{any_root}/source/{name}"), images)
    storage = open_storage(f"{any_root}/source")
    for i in (1, 4, 7):
        storage.write(f"train/class1/{i:03d}.png", b"damaged")
    data = DataConfig(uri=f"{any_root}/source", classes=3, quarantine_budget=0.5)
    with pytest.raises(DataError, match=r"class 'class1' has no readable training image, and 1 for validation"):
        check_prepared(prepared(data, any_root), data, list_source(data).classes, splits_given=True)


def test_links_that_lead_nowhere_are_quarantined(tmp_path: Path) -> None:
    root = str(tmp_path)
    sources.put_folder(open_storage(f"{root}/source"), sources.examples(12))
    (tmp_path / "source/class1/gone.png").symlink_to("nothing.png")
    data = DataConfig(uri=f"{root}/source", classes=3)
    listing = list_source(data)
    units = [*prepared(data, root), broken_links(listing, 1)]
    assert [(image.key, image.reason) for unit in units for image in unit.quarantined] == [
        ("class1/gone.png", "a link to nothing")
    ]
    with pytest.raises(DataError, match=r"1 of 13 images cannot be read; the first is class1/gone\.png: a link to"):
        check_prepared(units, data)


def test_nothing_to_train_on(any_root: str) -> None:
    open_storage(f"{any_root}/source").write("a.tar", sources.tar([("1.txt", b"x")]))
    data = DataConfig(format="webdataset", uri=f"{any_root}/source", classes=3)
    units = prepared(data, any_root)
    with pytest.raises(DataError, match="no training image is left"):
        check_prepared(units, data)


def test_bad_labels_stop_the_stage_and_leave_no_shard(any_root: str) -> None:
    open_storage(f"{any_root}/source").write("a.parquet", sources.parquet([*sources.examples(9), (b"x", 99)]))
    data = DataConfig(format="parquet", uri=f"{any_root}/source", classes=3)
    with pytest.raises(DataError, match="label 99 is out of range"):
        prepared(data, any_root)
    assert list(open_storage(any_root).list("prepare")) == []


def test_digits(any_root: str) -> None:
    data = DataConfig(format="digits", classes=10, validation_share=0.2)
    units = prepared(data, any_root)
    counts = {shard.split: shard.rows for unit in units for shard in unit.shards}
    assert sum(counts.values()) == 1797
    assert 300 < counts["validation"] < 420
