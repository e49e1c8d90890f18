"""One contract, held on file:// and s3:// alike; s3:// on moto and, where it is installed, on Ceph."""

import hashlib
import io
import pickle
import random
import threading
import time
import uuid
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow.fs import FileSelector

from pipeline.errors import ConfigError, StorageError
from pipeline.storage import arrow_files, local
from pipeline.storage.local import LocalStorage
from pipeline.storage.s3_upload import Joined, parts_of
from pipeline.storage.uri import open_storage, split_uri
from tests.support.ceph import act_as, s3_servers


@pytest.fixture
def ceph_root(ceph_owner: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> str:
    act_as(monkeypatch, ceph_owner)
    return f"s3://tests/{uuid.uuid4().hex}"


@pytest.fixture(params=["file", *s3_servers("s3")])
def any_root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "file":
        return (tmp_path / "root").as_uri()
    root: str = request.getfixturevalue(f"{request.param}_root")
    return root


def test_what_is_written_is_read(any_root: str, tmp_path: Path) -> None:
    storage = open_storage(any_root)
    storage.write("a/b.txt", b"one")
    storage.write("a/b.txt", b"two")
    assert storage.read("a/b.txt") == b"two"
    assert storage.exists("a/b.txt")
    assert not storage.exists("a")
    with storage.open("a/b.txt") as stream:
        assert stream.read(1) + stream.read() == b"two"
    with storage.open("a/b.txt", 1) as stream:
        assert stream.read() == b"wo"
    storage.download("a/b.txt", tmp_path / "new" / "copy")
    storage.upload(tmp_path / "new" / "copy", "c.txt")
    assert storage.read("c.txt") == b"two"
    assert storage.uri("c.txt") == f"{storage.root}/c.txt"


@pytest.mark.parametrize("size", [0, 1, 100_000])
def test_a_file_is_read_here_and_there(any_root: str, size: int) -> None:
    storage, content = open_storage(any_root), random.Random(size).randbytes(size)
    storage.write("a", content)
    with storage.open_ranges("a") as file:
        assert file.seek(0, io.SEEK_END) == size
        for start, length in ((0, 10), (size // 2, 40_000), (size - 1, 5), (size, 5), (size + 3, 5), (0, -1)):
            file.seek(max(start, 0))
            assert file.read(length) == (content[max(start, 0) :][:length] if length >= 0 else content)
        assert file.tell() == size
    with pytest.raises(FileNotFoundError):
        storage.open_ranges("missing")


def test_the_file_system_for_ray_train(any_root: str) -> None:
    storage = open_storage(any_root)
    files = pickle.loads(pickle.dumps(arrow_files(storage)))
    assert files == arrow_files(storage)
    files.create_dir("run", recursive=True)
    for path in ("run/a.json", "run/deep/b.json"):
        with files.open_output_stream(path) as stream:
            stream.write(path.encode())
    assert storage.read("run/a.json") == b"run/a.json"
    with files.open_input_file("run/deep/b.json") as file:
        assert file.read_at(4, 4) == b"deep"
    kinds = {info.path: info.type for info in files.get_file_info(["run", "run/a.json", "run/deep", "run/c", "ru"])}
    assert [kind.name for kind in kinds.values()] == ["Directory", "File", "Directory", "NotFound", "NotFound"]
    flat = files.get_file_info(FileSelector("run"))
    assert [(info.path, info.type.name) for info in flat] == [("run/a.json", "File"), ("run/deep", "Directory")]
    assert files.get_file_info(FileSelector("none", allow_not_found=True)) == []
    with pytest.raises(FileNotFoundError):
        files.get_file_info(FileSelector("none"))
    files.delete_dir("run/deep")
    files.delete_file("run/a.json")
    assert list(storage.list()) == []


def test_listing_is_sorted_and_stays_below_its_folder(any_root: str) -> None:
    storage = open_storage(any_root)
    assert list(storage.list()) == []
    assert list(storage.folders()) == []
    for path in ("b/2", "b/1/x", "bb/3", "a"):
        storage.write(path, b"12")
    assert [entry[:2] for entry in storage.list()] == [("a", 2), ("b/1/x", 2), ("b/2", 2), ("bb/3", 2)]
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


def test_replace_has_one_winner(any_root: str) -> None:
    storage = open_storage(any_root)
    for turn in range(5):
        storage.write("lease", f"free {turn}".encode())
        _, tag = storage.read_tagged("lease")
        won = list[str]()

        def take(name: str, tag: str = tag, won: list[str] = won) -> None:
            if storage.replace("lease", name.encode(), tag):
                won.append(name)

        threads = [threading.Thread(target=take, args=(f"taker {turn}-{i}",)) for i in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(won) == 1
        assert storage.read("lease").decode() == won[0]


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


def test_what_is_larger_than_one_part(any_root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.storage.s3._ONE_PUT", 1024**2)
    storage, content = open_storage(any_root), random.Random(0).randbytes(20_000_000)
    storage.write("large", content)
    assert storage.read("large") == content
    storage.download("large", tmp_path / "large")
    storage.upload(tmp_path / "large", "again")
    with storage.open("again") as stream:
        assert stream.read(7) == content[:7]
        assert stream.read() == content[7:]


def test_a_tag_is_another_with_other_content(any_root: str) -> None:
    """On S3 it is the MD5 of the content, as far as the server says."""
    storage, tags = open_storage(any_root), []
    for content in (b"one", b"two"):
        storage.write("a", content)
        (entry,) = storage.list()
        tags.append(entry.tag)
        if storage.local_path() is None:
            assert entry.tag == hashlib.md5(content).hexdigest()
            assert storage.tag_is_md5("a")
        time.sleep(0.02)  # more than a tick of the file system's clock
    assert len(set(tags)) == 2


def test_what_is_streamed_is_read(any_root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks that are smaller and larger than a part, more than one part and less, none at all."""
    monkeypatch.setattr("pipeline.storage.s3_upload._PART", 5 * 1024**2)
    storage, chance = open_storage(any_root), random.Random(0)
    for sizes in ([], [0], [3], [1000, 0, 7_000_000, 1, 13_000_000], [5 * 1024**2] * 2, [400_000] * 40):
        blocks = [chance.randbytes(size) for size in sizes]
        storage.write_stream("a/streamed", (memoryview(block) for block in blocks))
        assert storage.read("a/streamed") == b"".join(blocks)


def test_a_stream_that_fails_leaves_the_old_file(any_root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.storage.s3_upload._PART", 5 * 1024**2)
    storage = open_storage(any_root)
    storage.write("a/streamed", b"old")

    def blocks() -> Iterator[bytes]:
        for _ in range(10):
            yield bytes(4 * 1024**2)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        storage.write_stream("a/streamed", blocks())
    assert storage.read("a/streamed") == b"old"
    if isinstance(storage, LocalStorage):
        assert [path.name for path in storage.local_path("a").iterdir()] == ["streamed"]
    else:
        uploads = storage.client.list_multipart_uploads(Bucket="tests")  # type: ignore[attr-defined]
        assert not [upload for upload in uploads.get("Uploads", []) if any_root.endswith(upload["Key"].split("/")[0])]


@given(st.lists(st.binary(max_size=9), max_size=9), st.integers(1, 9), st.data())
def test_parts_have_one_size_and_the_same_bytes(blocks: list[bytes], size: int, data: st.DataObject) -> None:
    parts = [Joined(views) for views in parts_of(blocks, size)]
    whole = b"".join(blocks)
    assert [part.seek(0, io.SEEK_END) for part in parts] == [
        len(whole[i : i + size]) for i in range(0, len(whole), size)
    ]
    read = b""
    for part in parts:
        start = data.draw(st.integers(0, size))
        part.seek(start)
        assert part.tell() == start
        tail = b"".join(iter(partial(part.read, 2), b""))
        part.seek(0)
        content = part.readall()
        assert content[start:] == tail
        read += content
    assert read == whole


def test_the_start_of_a_file(any_root: str) -> None:
    storage = open_storage(any_root)
    storage.write("a", b"0123456789")
    storage.write("empty", b"")
    assert [storage.read_start("a", size) for size in (1, 4, 10, 99)] == [b"0", b"0123", b"0123456789", b"0123456789"]
    assert storage.read_start("empty", 4) == b""
    with pytest.raises(FileNotFoundError):
        storage.read_start("absent", 4)


def test_an_empty_file(any_root: str, tmp_path: Path) -> None:
    storage = open_storage(any_root)
    storage.write("empty", b"")
    storage.download("empty", tmp_path / "empty")
    storage.upload(tmp_path / "empty", "again")
    with storage.open("again") as stream:
        assert stream.read() == b""
    assert storage.read("empty") == b""
    assert [entry[:2] for entry in storage.list()] == [("again", 0), ("empty", 0)]


@pytest.mark.slow
def test_more_files_than_a_page_of_a_listing(any_root: str) -> None:
    storage = open_storage(any_root)
    names = [f"many/{i:04d}/x" for i in range(1003)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda name: storage.write(name, b"1"), names))
    assert [entry.path for entry in storage.list("many")] == names
    assert list(storage.folders("many")) == [name.split("/")[1] for name in names]


def test_split_uri(any_root: str) -> None:
    open_storage(any_root).write("folder/file", b"1")
    storage, name = split_uri(f"{any_root}/folder/file")
    assert storage.read(name) == b"1"


@pytest.mark.parametrize("write", ["write", "write_new"])
def test_a_folder_that_another_process_deletes_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: str
) -> None:
    """As on an object storage, which has none: two deliverers of one root delete the folder of their lease."""
    storage, through, times = LocalStorage(tmp_path), local._write_through, []

    def deleted_after(temporary: Path, blocks: Iterable[bytes]) -> None:
        through(temporary, blocks)
        times.append(temporary)
        if len(times) == 1:
            storage.delete_folder("work")

    monkeypatch.setattr(local, "_write_through", deleted_after)
    getattr(storage, write)("work/lease.json", b"mine")
    assert storage.read("work/lease.json") == b"mine"
    assert len(times) == 2
    storage.delete_folder("work")
    assert not storage.replace("work/lease.json", b"alive", "tag"), "a heartbeat makes none anew"
    assert not storage.exists("work/lease.json")


def test_nothing_half_written_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = LocalStorage(tmp_path)
    storage.write("a", b"old")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(StorageError, match="Free some disk space"):
        storage.write("a", b"new")
    assert storage.read("a") == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_refusals_name_the_place(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match="file"):
        LocalStorage(tmp_path / "file").write("x", b"")
    with pytest.raises(ConfigError, match="neither"):
        open_storage("http://somewhere/x")
    with pytest.raises(ConfigError, match="no bucket"):
        open_storage("s3:///x")
