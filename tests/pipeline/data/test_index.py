from pathlib import Path

from pipeline.config.schema import DataConfig
from pipeline.data.index import index_path, read_index, recorded_revision, revision_of, write_index
from pipeline.data.listing import DIGITS_REVISION, list_source
from pipeline.storage.local import LocalStorage
from pipeline.storage.uri import open_storage
from tests.support import sources


def test_index_is_recorded(any_root: str, tmp_path: Path) -> None:
    source, storage = LocalStorage(tmp_path / "source"), open_storage(any_root)
    sources.put_folder(source, sources.examples(6))
    data = DataConfig(format="folder", uri=source.root, classes=3)
    assert read_index(storage, data) is None
    assert recorded_revision(data, storage) is None
    listing = list_source(data)
    written = write_index(storage, data, listing)
    read = read_index(storage, data)
    assert read == written
    assert (read.digest, read.files, read.bytes) == (listing.digest, 6, listing.bytes)
    assert 0 <= read.age_seconds < 60
    assert recorded_revision(data, storage) == listing.digest
    assert read_index(storage, DataConfig(format="folder", uri=source.root, validation_uri="x")) is None
    storage.write(index_path(data), b"not ours")
    assert read_index(storage, data) is None


def test_local_sources_are_listed_each_time(tmp_path: Path) -> None:
    source, storage = LocalStorage(tmp_path / "source"), LocalStorage(tmp_path / "root")
    sources.put_folder(source, sources.examples(6))
    data = DataConfig(format="folder", uri=source.root, classes=3)
    first = revision_of(data, storage, fresh=False)
    assert recorded_revision(data, storage) == first
    source.write("class0/new.png", b"x")
    assert revision_of(data, storage, fresh=False) != first


def test_remote_sources_are_listed_when_asked(s3_root: str, tmp_path: Path) -> None:
    source, storage = open_storage(s3_root), LocalStorage(tmp_path / "root")
    sources.put_folder(source, sources.examples(6))
    data = DataConfig(format="folder", uri=source.root, classes=3)
    first = revision_of(data, storage, fresh=False)
    source.write("class0/new.png", b"x")
    assert revision_of(data, storage, fresh=False) == first
    second = revision_of(data, storage, fresh=True)
    assert second != first
    assert revision_of(data, storage, fresh=False) == second
    pinned = data.model_copy(update={"revision": "0" * 64})
    assert revision_of(pinned, storage, fresh=False) == "0" * 64


def test_sources_without_files(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path)
    assert revision_of(DataConfig(format="digits"), storage, fresh=True) == DIGITS_REVISION
    assert recorded_revision(DataConfig(format="digits"), storage) == DIGITS_REVISION
    assert revision_of(DataConfig(format="folder"), storage, fresh=True) is None
