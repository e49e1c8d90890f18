"""One contract, held on file:// and s3:// alike."""

import pickle
import threading
from pathlib import Path

import pytest

from pipeline.errors import ConfigError, StorageError
from pipeline.storage import LocalStorage, open_storage, split_uri


def test_what_is_written_is_read(any_root: str, tmp_path: Path) -> None:
    storage = open_storage(any_root)
    storage.write("a/b.txt", b"one")
    storage.write("a/b.txt", b"two")
    assert storage.read("a/b.txt") == b"two"
    assert storage.exists("a/b.txt")
    assert not storage.exists("a")
    with storage.open("a/b.txt") as stream:
        assert stream.read(1) + stream.read() == b"two"
    storage.download("a/b.txt", tmp_path / "new" / "copy")
    storage.upload(tmp_path / "new" / "copy", "c.txt")
    assert storage.read("c.txt") == b"two"
    assert storage.uri("c.txt") == f"{storage.root}/c.txt"


def test_listing_is_sorted_and_stays_below_its_folder(any_root: str) -> None:
    storage = open_storage(any_root)
    assert list(storage.list()) == []
    assert list(storage.folders()) == []
    for path in ("b/2", "b/1/x", "bb/3", "a"):
        storage.write(path, b"12")
    assert list(storage.list()) == [("a", 2), ("b/1/x", 2), ("b/2", 2), ("bb/3", 2)]
    assert [entry.path for entry in storage.list("b")] == ["b/1/x", "b/2"]
    assert list(storage.folders()) == ["b", "bb"]
    assert list(storage.folders("b")) == ["1"]
    storage.delete_folder("b")
    assert [entry.path for entry in storage.list()] == ["a", "bb/3"]


def test_absent_files(any_root: str, tmp_path: Path) -> None:
    storage = open_storage(any_root)
    for read in (storage.read, storage.read_tagged, storage.open):
        with pytest.raises(FileNotFoundError):
            read("absent")
    with pytest.raises(FileNotFoundError):
        storage.download("absent", tmp_path / "copy")
    storage.delete("absent")
    storage.delete_folder("absent")


def test_write_new_has_one_winner(any_root: str) -> None:
    storage = open_storage(any_root)
    storage.write("ready", b"")  # the client is made
    won = []

    def write(name: str) -> None:
        if storage.write_new("prize", name.encode()):
            won.append(name)

    threads = [threading.Thread(target=write, args=(f"writer {i}",)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert storage.read("prize").decode() == won[0]


def test_replace_needs_the_current_tag(any_root: str) -> None:
    storage = open_storage(any_root)
    assert not storage.replace("lease", b"mine", "no such tag")
    storage.write("lease", b"one")
    _, tag = storage.read_tagged("lease")
    assert storage.replace("lease", b"two", tag)
    assert not storage.replace("lease", b"three", tag)
    assert storage.read("lease") == b"two"


def test_storage_travels_between_processes(any_root: str) -> None:
    storage = open_storage(any_root)
    storage.write("a", b"1")
    assert pickle.loads(pickle.dumps(storage)).read("a") == b"1"


def test_split_uri(any_root: str) -> None:
    open_storage(any_root).write("folder/file", b"1")
    storage, name = split_uri(f"{any_root}/folder/file")
    assert storage.read(name) == b"1"


def test_nothing_half_written_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = LocalStorage(tmp_path)
    storage.write("a", b"old")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(StorageError, match="disk is full"):
        storage.write("a", b"new")
    assert storage.read("a") == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_refusals_name_the_place(tmp_path: Path, s3_root: str) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match="file"):
        LocalStorage(tmp_path / "file").write("x", b"")
    with pytest.raises(StorageError, match=r"NoSuchBucket.*Create the bucket"):
        open_storage("s3://no-such-bucket/x").write("x", b"")
    with pytest.raises(ConfigError, match="neither"):
        open_storage("http://somewhere/x")
    with pytest.raises(ConfigError, match="no bucket"):
        open_storage("s3:///x")


def test_a_server_that_is_away_is_said(s3_root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    monkeypatch.setattr("time.sleep", lambda _: None)  # botocore's back-off
    with pytest.raises(StorageError, match="AWS_ENDPOINT_URL"):
        open_storage(s3_root).read("x")
