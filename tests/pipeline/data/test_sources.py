import pickle
from pathlib import Path

import pytest
from PIL import Image

from pipeline.config.schema import DataConfig
from pipeline.data.decode import decode_image
from pipeline.data.listing import list_source
from pipeline.data.raw import RawExample
from pipeline.data.sources import Unit, read_unit, work_units
from pipeline.errors import DataError
from pipeline.storage.local import LocalStorage
from pipeline.storage.uri import open_storage
from tests.support import sources

LAYOUTS = ("folder", "parquet", "webdataset")


def config(layout: str, uri: str | None = None, **more: object) -> DataConfig:
    return DataConfig.model_validate({"format": layout, "uri": uri, "classes": 3, "shard_rows": 4, **more})


def units_of(data: DataConfig) -> list[Unit]:
    return work_units(list_source(data), data)


def read(data: DataConfig) -> list[RawExample]:
    return [example for unit in units_of(data) for example in read_unit(pickle.loads(pickle.dumps(unit)), data)]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_image_is_read_once(layout: str, any_root: str) -> None:
    images = sources.examples(23)
    sources.put_source(open_storage(any_root), layout, images)
    data = config(layout, any_root)
    found = read(data)
    assert sorted((image, label) for _, label, image in found) == sorted(images)
    assert len({key for key, _, _ in found}) == 23
    assert read(data) == found
    units = units_of(data)
    assert [unit.index for unit in units] == list(range(len(units)))
    assert {unit.split for unit in units} == {None}
    if layout != "webdataset":
        assert max(len(list(read_unit(unit, data))) for unit in units) == 4


@pytest.mark.parametrize("layout", LAYOUTS)
def test_validation_of_its_own(layout: str, any_root: str) -> None:
    sources.put_source(open_storage(f"{any_root}/train"), layout, sources.examples(6))
    sources.put_source(open_storage(f"{any_root}/validation"), layout, sources.examples(4)[1:3])
    data = config(layout, f"{any_root}/train", validation_uri=f"{any_root}/validation")
    found: dict[str | None, list[int]] = {split: [] for split in ("train", "validation")}
    for unit in units_of(data):
        found[unit.split] += [label for _, label, _ in read_unit(unit, data)]
    assert sorted(found["train"]) == [0, 0, 1, 1, 2, 2]
    assert sorted(found["validation"]) == [1, 2]


def test_digits() -> None:
    data = config("digits", classes=10, shard_rows=1000)
    found = read(data)
    assert len(found) == 1797
    assert {label for _, label, _ in found} == set(range(10))
    first = decode_image(found[0].image, None)
    assert first.size == (8, 8)
    assert first.getextrema()[0] == (0, 239)  # 15 of 16
    with pytest.raises(DataError, match=r"label 5 is out of range, data\.classes is 5"):
        read(config("digits", classes=5))


@pytest.mark.parametrize("names", [("img", "fine_label"), ("image", "label")])
def test_column_names_of_parquet(names: tuple[str, str], tmp_path: Path) -> None:
    LocalStorage(tmp_path).write("a.parquet", sources.parquet(sources.examples(7), names))
    assert [label for _, label, _ in read(config("parquet", str(tmp_path)))] == [0, 1, 2, 0, 1, 2, 0]


@pytest.mark.parametrize("label", [-1, 3])
@pytest.mark.parametrize("layout", ["parquet", "webdataset"])
def test_label_out_of_range(layout: str, label: int, tmp_path: Path) -> None:
    sources.put_source(LocalStorage(tmp_path), layout, [*sources.examples(5), (b"x", label)])
    with pytest.raises(DataError, match=f"label {label} is out of range, data.classes is 3. Set data.classes"):
        read(config(layout, str(tmp_path)))


@pytest.mark.parametrize("keep", [0, 0.3, 0.9, 0.99])
@pytest.mark.parametrize("layout", ["parquet", "webdataset"])
def test_files_cut_short_are_named(layout: str, keep: float, any_root: str) -> None:
    storage = open_storage(any_root)
    images = [(sources.encoded(sources.picture(i, 60, 40)), 0) for i in range(6)]
    content = sources.parquet(images) if layout == "parquet" else sources.webdataset(images).rstrip(b"\0")
    name = "a.parquet" if layout == "parquet" else "a.tar"
    storage.write(name, content[: int(len(content) * keep) // 2 * 2 + (1 if keep else 0)])
    with pytest.raises(DataError, match=f"{name} cannot be read as .*Copy it again") as caught:
        read(config(layout, any_root))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_files_that_go_while_we_read(layout: str, any_root: str) -> None:
    storage = open_storage(any_root)
    sources.put_source(storage, layout, sources.examples(6))
    data = config(layout, any_root)
    units = units_of(data)
    storage.delete_folder("")
    with pytest.raises(DataError, match="was removed since"):
        list(read_unit(units[0], data))


def test_parquet_that_holds_something_else(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path)
    storage.write("a.parquet", sources.parquet(sources.examples(3), ("picture", "label")))
    with pytest.raises(DataError, match=r"column is missing; it has picture, label"):
        units_of(config("parquet", str(tmp_path)))
    storage.write("a.parquet", sources.parquet([(b"x", None)]))
    with pytest.raises(DataError, match="label None is missing, not an integer"):
        read(config("parquet", str(tmp_path)))
    storage.write("a.parquet", sources.parquet([]))
    with pytest.raises(DataError, match="no rows"):
        units_of(config("parquet", str(tmp_path)))


def test_tar_without_labels(tmp_path: Path) -> None:
    storage, image = LocalStorage(tmp_path), sources.encoded(Image.new("L", (2, 2)))
    for members, message in (
        ([("1.png", image)], "the image has no label"),
        ([("1.png", image), ("1.json", b"{}")], '"label" is missing'),
        ([("1.png", image), ("1.cls", b"cat")], "label 'cat' is not an integer"),
    ):
        storage.write("a.tar", sources.tar(members))
        with pytest.raises(DataError, match=message):
            read(config("webdataset", str(tmp_path)))
    storage.write("a.tar", sources.tar([("1.txt", b"no image"), ("2.PNG", image), ("2.cls", b"2"), ("3.cls", b"1")]))
    assert read(config("webdataset", str(tmp_path))) == [("a.tar/2", 2, image)]


def test_real_photographs_in_folders(real_data: Path) -> None:
    data = config("folder", str(real_data / "imagenet-sample"), classes=256, shard_rows=100)
    units = units_of(data)
    assert len(units) == 3
    found = [example for unit in units for example in read_unit(unit, data)]
    assert [label for _, label, _ in found] == list(range(256))


def test_real_images_in_parquet(real_data: Path) -> None:
    data = config(
        "parquet",
        str(real_data / "cifar10-train.parquet"),
        validation_uri=str(real_data / "cifar10-test.parquet"),
        classes=10,
        shard_rows=2048,
    )
    units = units_of(data)
    assert [unit.split for unit in units] == ["train"] * 25 + ["validation"] * 5
    last = list(read_unit(units[24], data))
    assert len(last) == 50_000 - 24 * 2048
    assert last[-1].key == "cifar10-train.parquet#49999"
    assert decode_image(last[-1].image, None).size == (32, 32)
