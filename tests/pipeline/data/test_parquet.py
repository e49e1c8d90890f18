import io
import json
import math
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.config.schema import DataConfig
from pipeline.data.listing import list_source
from pipeline.data.parquet import ParquetUnit
from pipeline.data.raw import RawExample, as_label
from pipeline.data.sources import class_names, read_unit, work_units
from pipeline.errors import DataError
from pipeline.storage.local import LocalStorage
from tests.support import sources

IMAGES = [image for image, _ in sources.examples(6)]
LABELS = [0, 1, 2, 0, 1, 2]


def config(folder: Path, **more: object) -> DataConfig:
    return DataConfig.model_validate({"format": "parquet", "uri": str(folder), "classes": 3, "shard_rows": 4, **more})


def put(folder: Path, table: pa.Table, name: str = "a.parquet", **options: Any) -> None:
    file = io.BytesIO()
    pq.write_table(table, file, **options)
    LocalStorage(folder).write(name, file.getvalue())


def read(data: DataConfig) -> list[RawExample]:
    return [example for unit in work_units(list_source(data), data) for example in read_unit(unit, data)]


def labels_of(data: DataConfig) -> list[int]:
    return [label for unit in work_units(list_source(data), data) for _, label in unit.labels()]  # type: ignore[union-attr]


def struct(images: list[bytes | None], paths: list[str | None], kind: pa.DataType | None = None) -> pa.Array:
    return pa.StructArray.from_arrays(
        [pa.array(images, kind or pa.binary()), pa.array(paths, pa.string())], ["bytes", "path"]
    )


# --- labels ---


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (math.inf, "label inf is infinite, not an integer"),
        (-math.inf, "label -inf is infinite"),
        (math.nan, "label nan is not a number"),
        (1.5, r"label 1\.5 is not an integer"),
        (None, "label None is missing"),
        (True, "label True is a truth value, not an integer"),
        ("cat", "label 'cat' is not an integer"),
        ("inf", "label 'inf' is infinite"),
        ("1.5", r"label '1\.5' is not an integer"),
        ("", "label '' is not an integer"),
        ([1], r"label \[1\] is not an integer"),
        (b"1", "label b'1' is not an integer"),
        (Decimal("0.5"), r"label 0\.5 is not an integer"),
        ("x" * 1000, r"label 'x+\.\.\. is not an integer"),
    ],
)
def test_labels_that_are_no_whole_numbers(value: Any, said: str) -> None:
    with pytest.raises(DataError, match=f"a#7: {said}.* Use labels from 0"):
        as_label(value, "a#7")


@pytest.mark.parametrize("value", [3, 3.0, "3", " 3\n", "+3", "3.0", Decimal(3)])
def test_labels_that_are_whole_numbers(value: Any) -> None:
    assert as_label(value, "a") == 3
    assert as_label(2**60 + 1, "a") == 2**60 + 1
    assert as_label(str(2**60 + 1), "a") == 2**60 + 1


@pytest.mark.parametrize(
    "labels",
    [
        pa.array(LABELS, pa.uint8()),
        pa.array(LABELS, pa.float64()),
        pa.array(LABELS).dictionary_encode(),
        pa.array([str(label) for label in LABELS]),
        pa.array([str(label) for label in LABELS], pa.string_view()),
        pa.array([str(label) for label in LABELS]).dictionary_encode(),
    ],
    ids=lambda labels: str(labels.type),
)
def test_kinds_of_label_columns(labels: pa.Array, tmp_path: Path) -> None:
    put(tmp_path, pa.table({"image": struct([*IMAGES], [None] * 6), "label": labels}))
    data = config(tmp_path)
    assert [label for _, label, *_ in read(data)] == labels_of(data) == LABELS


# --- columns ---


@pytest.mark.parametrize(
    "images",
    [
        pa.array(IMAGES, pa.binary()),
        pa.array(IMAGES, pa.large_binary()),
        pa.array(IMAGES, pa.binary_view()),
        pa.array(IMAGES, pa.binary()).dictionary_encode(),
        struct([*IMAGES], ["x.png"] * 6),
        struct([*IMAGES], [None] * 6, pa.large_binary()),
        struct([*IMAGES], [None] * 6, pa.binary_view()),
    ],
    ids=lambda images: str(images.type),
)
def test_kinds_of_image_columns(images: pa.Array, tmp_path: Path) -> None:
    sliced: dict[str, Any] = (
        {} if "binary_view, path" in str(images.type) else {"row_group_size": 5}
    )  # Arrow cannot write these
    put(tmp_path, pa.table({"image": images, "label": LABELS}), **sliced)
    assert [example.image for example in read(config(tmp_path))] == IMAGES


@pytest.mark.parametrize("names", [("Image", "Label"), ("images", "labels"), ("jpg", "cls"), ("IMG", "class")])
def test_columns_by_other_names(names: tuple[str, str], tmp_path: Path) -> None:
    put(tmp_path, pa.table({names[0]: IMAGES, names[1]: LABELS, "note": ["x"] * 6}))
    assert [example.image for example in read(config(tmp_path))] == IMAGES


def test_columns_that_are_set(tmp_path: Path) -> None:
    put(tmp_path, pa.table({"photo": IMAGES, "breed": LABELS, "image": IMAGES[::-1], "label": LABELS[::-1]}))
    data = config(tmp_path, image_column="photo", label_column="breed")
    assert [(image, label) for _, label, image, *_ in read(data)] == list(zip(IMAGES, LABELS, strict=True))
    with pytest.raises(DataError, match=r"there is no column 'breeds'; it has photo, .*Correct data\.label_column"):
        read(config(tmp_path, label_column="breeds"))
    with pytest.raises(DataError, match=r"column 'label' contains int64, not encoded.*data\.image_column"):
        read(config(tmp_path, image_column="label"))


def test_columns_that_are_ambiguous(tmp_path: Path) -> None:
    put(tmp_path, pa.table({"image": IMAGES, "img": IMAGES, "label": LABELS}))
    with pytest.raises(DataError, match=r"the columns image, img may all be the images\. Set data\.image_column"):
        read(config(tmp_path))
    assert len(read(config(tmp_path, image_column="img"))) == 6
    put(tmp_path, pa.table({"image": IMAGES, "images": LABELS, "label": LABELS, "labels": [[1]] * 6}))
    assert len(read(config(tmp_path))) == 6  # one of each is of a kind that fits
    put(tmp_path, pa.table({"photo": IMAGES, "label": LABELS}))
    with pytest.raises(DataError, match=r"column is missing; it has photo, label\. Name them by data\.image_column"):
        read(config(tmp_path))


def test_images_that_are_stored_by_path(tmp_path: Path) -> None:
    put(tmp_path, pa.table({"image": struct([None] * 6, ["cat/1.png"] * 6), "label": LABELS}))
    with pytest.raises(DataError, match=r"a\.parquet#0: the image is stored by its path 'cat/1\.png'") as caught:
        read(config(tmp_path))
    assert "\n" not in str(caught.value)
    put(tmp_path, pa.table({"image": struct([None] * 6, [None] * 6), "label": LABELS}))
    assert [example.image for example in read(config(tmp_path))] == [b""] * 6


# --- names ---


def named(names: list[str], labels: list[int] = LABELS) -> pa.Table:
    feature = {"names": names, "_type": "ClassLabel"}
    info = {"info": {"features": {"image": {"_type": "Image"}, "label": feature}}}
    return pa.table({"image": IMAGES, "label": labels}).replace_schema_metadata({"huggingface": json.dumps(info)})


def names_of(data: DataConfig) -> tuple[str, ...]:
    return class_names(list_source(data), data)


def test_names_of_a_class_label(tmp_path: Path) -> None:
    put(tmp_path, named(["cat", "dog", "eel"]), "train-0.parquet")
    put(tmp_path, named(["cat", "dog", "eel"]), "test-0.parquet")
    assert names_of(config(tmp_path)) == ("cat", "dog", "eel")
    with pytest.raises(DataError, match=r"names 3 classes, but data\.classes is 4\. Set data\.classes=3"):
        names_of(config(tmp_path, classes=4))
    put(tmp_path, named(["cat", "eel", "dog"]), "test-0.parquet")
    with pytest.raises(DataError, match=r"test-0\.parquet: label 1 is 'eel', but 'dog' in .*train-0\.parquet"):
        names_of(config(tmp_path))
    put(tmp_path, named(["cat", "dog"]), "test-0.parquet")
    with pytest.raises(DataError, match=r"label 2 is nothing, but 'eel'"):
        names_of(config(tmp_path))


@pytest.mark.parametrize("metadata", [{}, {"huggingface": "{"}, {"huggingface": "[]"}, {"huggingface": '{"info": 3}'}])
def test_files_without_names(metadata: dict[str, str], tmp_path: Path) -> None:
    put(tmp_path, pa.table({"image": IMAGES, "label": LABELS}).replace_schema_metadata(metadata))
    assert names_of(config(tmp_path)) == ()


# --- how much is read ---


@pytest.mark.parametrize("group", [1, 7, 100])
def test_a_unit_has_its_rows_alone(group: int, tmp_path: Path) -> None:
    images = [image for image, _ in sources.examples(30)]
    put(tmp_path, pa.table({"image": images, "label": list(range(30))}), row_group_size=group)
    for start, stop in ((0, 30), (0, 1), (6, 8), (7, 14), (13, 30), (29, 30)):
        unit = ParquetUnit(0, None, str(tmp_path), "a.parquet", start, stop, "image", "label")
        assert [(key, label, image) for key, label, image, *_ in unit.read()] == [
            (f"a.parquet#{row}", row, images[row]) for row in range(start, stop)
        ]
        assert list(unit.labels()) == [(f"a.parquet#{row}", row) for row in range(start, stop)]


def test_a_unit_reads_no_more_than_its_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows behind those of a unit are not decoded, and large rows come one by one."""
    images = [bytes([i]) * (1 << 20) for i in range(96)]
    table = pa.table({"image": images, "label": [0] * 96})
    put(tmp_path, table, compression="none", use_dictionary=False, write_batch_size=8)
    decoded = []
    batches = pq.ParquetFile.iter_batches

    def counted(self: pq.ParquetFile, *args: Any, **more: Any) -> Any:
        for batch in batches(self, *args, **more):
            decoded.append(batch.num_rows)
            yield batch

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", counted)
    unit = ParquetUnit(0, None, str(tmp_path), "a.parquet", 0, 40, "image", "label")
    assert len(list(unit.read())) == 40
    assert max(decoded) <= 32
    assert sum(decoded) <= 64
    before = pa.total_allocated_bytes()
    reading = unit.read()
    next(reading)
    assert pa.total_allocated_bytes() - before < 80 << 20  # of a row group of 96 MiB
