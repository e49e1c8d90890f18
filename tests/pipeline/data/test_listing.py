import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.config.schema import DataConfig
from pipeline.data.listing import list_source
from pipeline.errors import DataError
from pipeline.storage.local import LocalStorage
from pipeline.storage.uri import open_storage
from tests.support import sources

LAYOUTS = ("folder", "parquet", "webdataset")


def config(layout: str, uri: str | None, **more: object) -> DataConfig:
    return DataConfig.model_validate({"format": layout, "uri": uri, "classes": 3, **more})


@pytest.mark.parametrize("layout", LAYOUTS)
def test_listing_is_the_same_wherever_the_files_lie(layout: str, tmp_path: Path, s3_root: str) -> None:
    listings = set()
    for root in (str(tmp_path / "one"), (tmp_path / "two").as_uri(), s3_root):
        sources.put_source(open_storage(root), layout, sources.examples(6))
        found = list[int]()
        listing = list_source(config(layout, root), found.append)
        assert found[-1] == listing.files == (6 if layout == "folder" else 2)
        assert listing.bytes == sum(entry.bytes for entry in listing.train)
        assert listing.classes == (("class0", "class1", "class2") if layout == "folder" else ())
        listings.add(tuple((entry.path, entry.bytes) for entry in listing.train))
    assert len(listings) == 1


@pytest.mark.parametrize("layout", ["parquet", "webdataset"])
def test_uri_may_name_one_file(layout: str, any_root: str) -> None:
    sources.put_source(open_storage(any_root), layout, sources.examples(6))
    suffix = "parquet" if layout == "parquet" else "tar"
    listing = list_source(config(layout, f"{any_root}/b.{suffix}"))
    assert [entry.path for entry in listing.train] == [f"b.{suffix}"]
    with pytest.raises(DataError, match=r"does not exist|empty"):
        list_source(config(layout, f"{any_root}/c.{suffix}"))


def test_digits_need_nothing() -> None:
    assert list_source(DataConfig(format="digits")).files == 0


@pytest.mark.parametrize("layout", LAYOUTS)
def test_missing_and_empty_sources_are_refused(layout: str, any_root: str) -> None:
    with pytest.raises(DataError, match=r"data.uri is not set. Set it"):
        list_source(config(layout, None))
    with pytest.raises(DataError, match=r"data.uri .*(does not exist|empty)"):
        list_source(config(layout, any_root))
    open_storage(any_root).write("README.md", b"nothing else")
    with pytest.raises(DataError, match="the source is empty"):
        list_source(config(layout, any_root))
    with pytest.raises(DataError, match=r"data.uri s3://no-such-bucket: NoSuchBucket|data.uri"):
        list_source(config(layout, "s3://no-such-bucket" if any_root.startswith("s3") else "/no/such/folder"))


def test_class_folders_must_fit(tmp_path: Path) -> None:
    sources.put_folder(LocalStorage(tmp_path / "train"), sources.examples(6))
    train = str(tmp_path / "train")
    with pytest.raises(DataError, match=r"label out of range, 3 class folders but data.classes is 2"):
        list_source(config("folder", train, classes=2))
    LocalStorage(tmp_path / "validation").write("other/1.png", b"x")
    with pytest.raises(DataError, match="'other' is not among the training classes"):
        list_source(config("folder", train, validation_uri=str(tmp_path / "validation")))


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ([str(i) for i in range(1, 13)], [str(i) for i in range(1, 13)]),
        (["10", "9", "007", "7", "07"], ["007", "07", "7", "9", "10"]),
        (["10", "9", "x"], ["10", "9", "x"]),
        (["n02", "n01", "n10"], ["n01", "n02", "n10"]),
        (["2", "１０", "1"], ["1", "2", "１０"]),
        (["1.5", "10"], ["1.5", "10"]),
    ],
)
def test_order_of_the_classes(names: list[str], expected: list[str], tmp_path: Path) -> None:
    for name in names:
        LocalStorage(tmp_path).write(f"{name}/1.png", b"x")
    listing = list_source(config("folder", str(tmp_path), classes=None))
    assert list(listing.classes) == expected


def test_folder_without_permission_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests may run as root, who may read anything: the refusal is made by hand."""
    sources.put_folder(LocalStorage(tmp_path), sources.examples(6))
    scandir = os.scandir

    def refuse(path: str) -> object:
        if str(path).endswith("class1"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr("os.scandir", refuse)
    with pytest.raises(DataError, match=r"data.uri .*class1: Permission denied. Give this user permission"):
        list_source(config("folder", str(tmp_path)))


def test_index_is_light() -> None:
    heavy = "'torch', 'ray', 'mlflow', 'pyarrow', 'PIL', 'sklearn', 'boto3'"
    code = f"import sys, pipeline.data.index; print([name for name in ({heavy}) if name in sys.modules])"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"


def test_endings_without_number_are_one_line(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path)
    for i in range(300):
        storage.write(f"ant/scan.{i:04d}", b"x")
    for i in range(3):
        storage.write(f"ant/{i}.txt", b"x")
    sources.put_folder(storage, sources.examples(3))
    storage.delete("loose.png")
    storage.write("ant/1.png", sources.examples(1)[0][0])
    found = list_source(DataConfig(uri=tmp_path.as_uri()))
    assert sum(found.skipped.values()) == 304
    (remark,) = found.remarks
    assert remark.startswith("not read: 4 .txt, 1 .0000, ")
    assert remark.endswith(", 291 with 291 other endings")


def test_classes_one_folder_deeper_are_told(any_root: str) -> None:
    """An archive that was unpacked into a folder of its own makes one class of all of them."""
    storage, image = open_storage(any_root), sources.examples(1)[0][0]
    for name in ("cat/1.png", "dog/1.png"):
        storage.write(f"pets/{name}", image)
    found = list_source(DataConfig(uri=any_root))
    assert found.classes == ("pets",)
    (line,) = found.remarks
    assert "one class, pets/, with the images of its 2 folders (cat, dog)" in line
    assert list_source(DataConfig(uri=line.rpartition("data.uri=")[2])).classes == ("cat", "dog")
    storage.write("pets/1.png", image)
    assert list_source(DataConfig(uri=any_root)).remarks == ()
