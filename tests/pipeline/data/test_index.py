from pathlib import Path

import pytest

from pipeline.config.schema import DataConfig
from pipeline.data.index import index_path, index_source, known_classes, read_index, recorded_revision, revision_of
from pipeline.data.revision import DIGITS_REVISION
from pipeline.errors import DataError
from pipeline.storage.local import LocalStorage
from pipeline.storage.uri import open_storage
from tests.support import sources


def test_index_is_recorded(any_root: str, tmp_path: Path) -> None:
    source, storage = LocalStorage(tmp_path / "source"), open_storage(any_root)
    sources.put_folder(source, sources.examples(6))
    data = DataConfig(format="folder", uri=source.root)
    assert read_index(storage, data) is None
    assert recorded_revision(data, storage) is None
    assert known_classes(data, storage) is None
    written = index_source(data, storage)
    read = read_index(storage, data)
    assert read == written
    assert (read.files, read.classes) == (6, 3)
    assert read.bytes == sum(len(image) for image, _ in sources.examples(6))
    assert 0 <= read.age_seconds < 60
    assert recorded_revision(data, storage) == written.revision
    assert known_classes(data, storage) == 3
    assert read_index(storage, DataConfig(format="folder", uri=source.root, validation_uri="x")) is None
    storage.write(index_path(data), b"not ours")
    assert read_index(storage, data) is None


def test_local_sources_are_listed_each_time(tmp_path: Path) -> None:
    source, storage = LocalStorage(tmp_path / "source"), LocalStorage(tmp_path / "root")
    sources.put_folder(source, sources.examples(6))
    data = DataConfig(format="folder", uri=source.root, classes=3)
    first = revision_of(data, storage)
    assert recorded_revision(data, storage) == first
    source.write("class0/new.png", b"x")
    assert recorded_revision(data, storage) == first, "a plan lists nothing"
    assert revision_of(data, storage) != first


def test_remote_sources_are_listed_when_asked(s3_root: str, tmp_path: Path) -> None:
    source, storage = open_storage(s3_root), LocalStorage(tmp_path / "root")
    sources.put_folder(source, sources.examples(6))
    data = DataConfig(format="folder", uri=source.root, classes=3)
    first = revision_of(data, storage)
    source.write("class0/new.png", b"x")
    assert revision_of(data, storage) == first
    second = index_source(data, storage).revision
    assert second != first
    assert revision_of(data, storage) == second
    pinned = data.model_copy(update={"revision": "0" * 64})
    assert revision_of(pinned, storage) == "0" * 64


@pytest.mark.parametrize("local", ["uri", "validation_uri"])
def test_the_local_part_of_a_source_is_listed_each_time(s3_root: str, tmp_path: Path, local: str) -> None:
    here, there, root = LocalStorage(tmp_path / "source"), open_storage(s3_root), LocalStorage(tmp_path / "root")
    for storage in (here, there):
        sources.put_folder(storage, sources.examples(6))
    (remote,) = {"uri", "validation_uri"} - {local}
    data = DataConfig.model_validate({"classes": 3, local: here.root, remote: there.root})
    first = revision_of(data, root)
    here.write("class0/new.png", b"x")
    assert revision_of(data, root) != first


def test_a_pinned_revision_must_be_the_sources(tmp_path: Path) -> None:
    source, storage = LocalStorage(tmp_path / "source"), LocalStorage(tmp_path / "root")
    sources.put_folder(source, sources.examples(6))
    data = DataConfig(uri=source.root)
    revision = revision_of(data, storage)
    pinned = data.model_copy(update={"revision": revision})
    assert revision_of(pinned, storage) == revision
    source.write("class1/000.png", sources.encoded(sources.picture(9)))
    with pytest.raises(DataError, match=rf"the source has revision .*, not {(revision or '')[:12]}.*data index"):
        revision_of(pinned, storage)
    with pytest.raises(DataError, match="has revision"):
        revision_of(DataConfig(format="digits", revision="ab"), storage)


def test_sources_without_files(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path)
    assert revision_of(DataConfig(format="digits"), storage) == DIGITS_REVISION
    assert recorded_revision(DataConfig(format="digits"), storage) == DIGITS_REVISION
    assert revision_of(DataConfig(format="folder"), storage) is None
