"""The revision goes by what a source holds, not by where it lies, when it was touched, or how large its files are."""

import os
import shutil
from pathlib import Path
from typing import Any

import boto3
import pytest

from pipeline.config.schema import DataConfig
from pipeline.data import hashes
from pipeline.data.listing import list_source
from pipeline.data.prepare import prepare_unit
from pipeline.data.revision import Listener, revision
from pipeline.data.sources import work_units
from pipeline.errors import DataError
from pipeline.storage.base import Storage
from pipeline.storage.local import LocalStorage
from pipeline.storage.uri import open_storage
from tests.support import sources
from tests.support.ceph import act_as

LAYOUTS = ("folder", "parquet", "webdataset")


@pytest.fixture
def root(tmp_path: Path) -> Storage:
    return LocalStorage(tmp_path / "root")


def revision_at(root: Storage, layout: str, uri: str, **more: Any) -> str:
    data = DataConfig.model_validate({"format": layout, "uri": uri, "classes": 3, **more})
    return revision(list_source(data), root, Listener())


def copy(source: Path, target: Storage) -> None:
    """A plain upload of each file."""
    for path in sorted(source.rglob("*")):
        if path.is_file():
            target.write(path.relative_to(source).as_posix(), path.read_bytes())


def test_corrected_labels_in_a_tar_of_the_same_size(tmp_path: Path, root: Storage) -> None:
    source = LocalStorage(tmp_path / "source")
    images = sources.examples(6)
    source.write("a.tar", sources.webdataset([(image, 0) for image, _ in images]))
    before, size = revision_at(root, "webdataset", source.root), (tmp_path / "source/a.tar").stat().st_size
    source.write("a.tar", sources.webdataset(images))
    assert (tmp_path / "source/a.tar").stat().st_size == size
    assert revision_at(root, "webdataset", source.root) != before


def test_a_corrected_file_that_keeps_size_and_time(
    tmp_path: Path, root: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one that is unpacked from an archive whose members all have one time."""
    monkeypatch.setattr(hashes, "_SETTLED_NS", -1)  # the first one is remembered, young as it is
    path, found = tmp_path / "source/a.tar", set[str]()
    for label in (0, 1):
        LocalStorage(path.parent).write(path.name, sources.webdataset([(sources.encoded(sources.picture(1)), label)]))
        os.utime(path, (1e9, 1e9))
        found.add(revision_at(root, "webdataset", str(path.parent)))
    assert len(found) == 2


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_source_that_was_touched_moved_or_copied_is_the_same(
    layout: str, tmp_path: Path, root: Storage, s3_root: str
) -> None:
    source = tmp_path / "source"
    sources.put_source(LocalStorage(source), layout, sources.examples(6))
    found = [revision_at(root, layout, source.as_uri())]
    for path in source.rglob("*.*"):
        os.utime(path, (1e9, 1e9))
    found.append(revision_at(root, layout, str(source)))
    shutil.move(source, tmp_path / "elsewhere")
    found.append(revision_at(root, layout, str(tmp_path / "elsewhere")))
    copy(tmp_path / "elsewhere", open_storage(s3_root))
    found.append(revision_at(root, layout, s3_root))
    assert len(set(found)) == 1


def test_a_copy_on_a_real_server_is_the_same(
    tmp_path: Path, root: Storage, ceph_owner: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    act_as(monkeypatch, ceph_owner)
    sources.put_source(LocalStorage(tmp_path / "source"), "webdataset", sources.examples(6))
    copy(tmp_path / "source", open_storage("s3://tests/revision"))
    here, there = (revision_at(root, "webdataset", uri) for uri in (str(tmp_path / "source"), "s3://tests/revision"))
    assert here == there


@pytest.mark.parametrize("suffix", ["parquet", "webdataset"])
def test_one_file_by_its_name(suffix: str, tmp_path: Path, root: Storage) -> None:
    """Its folder does not count, its name does: the keys of examples begin with it."""
    ending = {"parquet": "parquet", "webdataset": "tar"}[suffix]
    sources.put_source(LocalStorage(tmp_path / "one"), suffix, sources.examples(6))
    sources.put_source(LocalStorage(tmp_path / "two"), suffix, sources.examples(6))
    shutil.copy(tmp_path / f"one/a.{ending}", tmp_path / f"two/c.{ending}")
    one, two, named = (revision_at(root, suffix, f"{tmp_path}/{name}.{ending}") for name in ("one/a", "two/a", "two/c"))
    assert one == two != named


def test_names_contents_splits_and_format_count(tmp_path: Path, root: Storage) -> None:
    first, second = LocalStorage(tmp_path / "a"), LocalStorage(tmp_path / "b")
    sources.put_folder(first, sources.examples(6))
    found = [revision_at(root, "folder", first.root)]
    os.rename(tmp_path / "a/class1/001.png", tmp_path / "a/class1/x.png")
    found.append(revision_at(root, "folder", first.root))
    first.write("class1/x.png", sources.encoded(sources.picture(9)))
    found.append(revision_at(root, "folder", first.root))
    first.write("class1/new.png", b"x")
    found.append(revision_at(root, "folder", first.root))
    sources.put_folder(second, sources.examples(3))
    found.append(revision_at(root, "folder", first.root, validation_uri=second.root))
    first.write("class1/new.parquet", b"x")
    first.write("class1/new.tar", b"x")
    found += [revision_at(root, layout, first.root) for layout in ("parquet", "webdataset")]
    assert len(set(found)) == len(found)


def test_both_splits_below_one_root(tmp_path: Path, root: Storage) -> None:
    """Nothing that one split remembers is lost by the other."""
    storage = LocalStorage(tmp_path / "a")
    sources.put_folder(storage, sources.examples(6))
    twice = revision_at(root, "folder", storage.root, validation_uri=storage.root)
    sources.put_folder(LocalStorage(tmp_path / "b"), sources.examples(6))
    assert twice == revision_at(root, "folder", storage.root, validation_uri=str(tmp_path / "b"))
    assert twice != revision_at(root, "folder", storage.root)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_prepared_shards_do_not_depend_on_the_place(layout: str, tmp_path: Path, s3_root: str) -> None:
    """Keys of examples are relative, so that the same revision is the same result."""
    made = []
    for place in (str(tmp_path / "one"), f"{s3_root}/two"):
        sources.put_source(open_storage(place), layout, sources.examples(9))
        data = DataConfig.model_validate({"format": layout, "uri": place, "classes": 3, "validation_share": 0.3})
        units = work_units(list_source(data), data)
        made.append([prepare_unit(unit, data, 0, LocalStorage(tmp_path / "root"), "prepare") for unit in units])
    assert made[0] == made[1]


def test_tags_that_are_no_md5_are_said(root: Storage, s3_root: str, tmp_path: Path) -> None:
    """An upload in two parts: its tag is used as it is."""
    client, (bucket, _, prefix) = boto3.client("s3"), s3_root.removeprefix("s3://").partition("/")
    content = sources.webdataset(sources.examples(6)) + bytes(10240 * 600)
    upload = client.create_multipart_upload(Bucket=bucket, Key=f"{prefix}/a.tar")
    parts = []
    for number, part in enumerate((content[: 5 << 20], content[5 << 20 :]), 1):
        name = {"Bucket": bucket, "Key": f"{prefix}/a.tar", "UploadId": upload["UploadId"], "PartNumber": number}
        parts.append({"PartNumber": number, "ETag": client.upload_part(**name, Body=part)["ETag"]})
    name = {"Bucket": bucket, "Key": f"{prefix}/a.tar", "UploadId": upload["UploadId"]}
    client.complete_multipart_upload(**name, MultipartUpload={"Parts": parts})
    open_storage(s3_root).write("b.tar", b"plain")
    said = list[str]()
    data = DataConfig(format="webdataset", uri=s3_root, classes=3)
    remote = revision(list_source(data), root, Listener(say=said.append))
    (line,) = said
    assert line.startswith(f"{s3_root}: the revision of 1 of 2 files goes by S3's tags of multipart uploads")
    for path, text in (("a.tar", content), ("b.tar", b"plain")):
        LocalStorage(tmp_path / "copy").write(path, text)
    assert revision_at(root, "webdataset", str(tmp_path / "copy")) != remote


def test_a_bucket_that_is_encrypted_with_a_key_is_said(root: Storage, s3_root: str) -> None:
    """Its tags look like MD5s."""
    bucket, _, prefix = s3_root.removeprefix("s3://").partition("/")
    client, said = boto3.client("s3"), list[str]()
    client.put_object(Bucket=bucket, Key=f"{prefix}/a.tar", Body=b"x", ServerSideEncryption="aws:kms")
    data = DataConfig(format="webdataset", uri=s3_root, classes=3)
    revision(list_source(data), root, Listener(say=said.append))
    assert ["1 of 1 files goes by S3's tags of encryption with a key" in line for line in said] == [True]
    client.put_object(Bucket=bucket, Key=f"{prefix}/a.tar", Body=b"x")
    revision(list_source(data), root, Listener(say=said.append))
    assert len(said) == 1


def test_names_that_are_not_text_are_refused(tmp_path: Path, root: Storage) -> None:
    sources.put_folder(LocalStorage(tmp_path / "source"), sources.examples(3))
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/source/class0/\xff.png")).write_bytes(b"x")
    with pytest.raises(DataError, match="not UTF-8"):
        revision_at(root, "folder", str(tmp_path / "source"))


def test_a_removed_file_is_named(tmp_path: Path, root: Storage) -> None:
    sources.put_folder(LocalStorage(tmp_path / "source"), sources.examples(3))
    listing = list_source(DataConfig(uri=str(tmp_path / "source")))
    (tmp_path / "source/class1/001.png").unlink()
    with pytest.raises(DataError, match=r"class1/001.png: the file was removed since the source was listed. Run again"):
        revision(listing, root, Listener())
