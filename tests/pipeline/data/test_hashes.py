"""MD5s of local files are taken once, and never taken for those of other content."""

import hashlib
import itertools
import os
import threading
import time
import tracemalloc
from pathlib import Path
from typing import BinaryIO

import pytest

from pipeline.data import hashes
from pipeline.data.hashes import LocalSums, Remembered, identity_of
from pipeline.errors import DataError
from pipeline.storage.base import Entry
from pipeline.storage.local import LocalStorage, local_entry


class Source(LocalStorage):
    """A folder that remembers what was read from it."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.opened: list[str] = []

    def open(self, path: str, start: int = 0) -> BinaryIO:
        self.opened.append(path)
        return super().open(path, start)


@pytest.fixture
def source(tmp_path: Path) -> Source:
    storage = Source(tmp_path / "source")
    for index in range(20):
        storage.write(f"{index:02d}", bytes([index]) * index * 1000)
    return storage


@pytest.fixture
def root(tmp_path: Path) -> LocalStorage:
    return LocalStorage(tmp_path / "root")


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that is ten seconds ahead, so that the files are old enough to be remembered."""
    now = time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: now() + 10**10)


def sums(source: LocalStorage, root: LocalStorage) -> list[str]:
    taken = LocalSums(source, list(source.list()), root)
    taken.take(lambda done: None)
    return list(taken)


def truth(source: LocalStorage) -> list[str]:
    return [hashlib.md5(source.read(entry.path)).hexdigest() for entry in source.list()]


@pytest.mark.usefixtures("later")
def test_a_file_is_read_once(source: Source, root: LocalStorage) -> None:
    heard = list[int]()
    first = LocalSums(source, list(source.list()), root)
    assert first.missing_bytes == 190_000
    first.take(heard.append)
    assert heard == sorted(heard)
    assert heard[-1] == 190_000
    assert list(first) == truth(source)
    assert len(source.opened) == 20
    assert sums(source, root) == truth(source)
    assert len(source.opened) == 20, "a file was read again"
    (memory,) = root.list(".index")
    assert memory.bytes < 20 * 32 + 100


@pytest.mark.usefixtures("later")
def test_only_what_changed_is_read_again(source: Source, root: LocalStorage) -> None:
    sums(source, root)
    source.opened.clear()
    source.write("05", b"x" * 5000)  # of the same size
    os.utime(source.local_path("07"), (1e9, 1e9))
    source.write("new", b"x")
    source.delete("09")
    assert sums(source, root) == truth(source)
    assert sorted(source.opened) == ["05", "07", "new"]
    source.opened.clear()
    assert sums(source, root) == truth(source)
    assert source.opened == []


@pytest.mark.usefixtures("later")
@pytest.mark.parametrize(("most", "more"), [(100, 32), (1, 32), (0, 0)])
def test_what_is_gone_is_forgotten_if_it_is_much(
    source: Source, root: LocalStorage, most: int, more: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hashes, "_OTHERS", most)
    sums(source, root)
    (before,) = root.list(".index")
    source.delete("09")
    source.write("new", b"x")
    sums(source, root)
    (after,) = root.list(".index")
    assert after.bytes == before.bytes + more


@pytest.mark.usefixtures("later")
def test_a_part_of_the_folder_does_not_forget_the_rest(source: Source, root: LocalStorage) -> None:
    """As data.uri=FOLDER, then FOLDER/{cat,dog}, then FOLDER again."""
    everything = list(source.list())
    sums(source, root)
    source.write("new", b"x")
    source.opened.clear()
    part = LocalSums(source, [*everything[:3], local_entry("new", source.local_path("new").stat())], root)
    part.take(lambda done: None)
    assert sums(source, root) == truth(source)
    assert set(source.opened) == {"new"}


def test_a_file_that_was_just_written_is_not_remembered(source: Source, root: LocalStorage) -> None:
    """It may be written once more within the resolution of its file system's clock, and keep size and times."""
    assert sums(source, root) == truth(source)
    assert sums(source, root) == truth(source)
    assert len(source.opened) == 40


@pytest.mark.usefixtures("later")
def test_a_file_that_changes_after_the_listing_is_not_remembered(source: Source, root: LocalStorage) -> None:
    listed = list(source.list())
    time.sleep(0.02)  # more than a tick of the file system's clock
    source.write("03", b"y" * 3000)
    taken = LocalSums(source, listed, root)
    taken.take(lambda done: None)
    assert list(taken) == truth(source)
    assert LocalSums(source, listed, root).missing_bytes == 3000, "remembered under the time of the old content"


def test_a_file_that_changes_while_it_is_read_is_refused(
    source: Source, root: LocalStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At each look at it, before it is read and after, it has another time."""
    fstat, looks = os.fstat, itertools.count()

    def look(number: int) -> os.stat_result:
        os.utime(number, ns=(0, next(looks)))
        return fstat(number)

    monkeypatch.setattr(os, "fstat", look)
    with pytest.raises(DataError, match=r"changes while it is read. Run again when nothing writes to the source"):
        sums(source, root)


@pytest.mark.usefixtures("later")
@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_an_interruption_keeps_what_was_read(
    source: Source, root: LocalStorage, error: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hashes, "_THREADS", 1)
    reached, interrupted = threading.Event(), threading.Event()

    class Slow(Source):
        def open(self, path: str, start: int = 0) -> BinaryIO:
            if path == "15":
                if error is OSError:
                    raise OSError(5, "Input/output error")
                reached.set()
                assert interrupted.wait(30)
            return super().open(path, start)

    def interrupt(done: int) -> None:
        if reached.is_set():
            interrupted.set()
            raise KeyboardInterrupt

    slow = Slow(source.folder)
    sums(source, root)
    source.opened.clear()
    for index in range(8, 20):
        source.write(f"{index:02d}", b"z" * 100)
    with pytest.raises(error):
        LocalSums(slow, list(slow.list()), root).take(interrupt)
    assert slow.opened[:7] == [f"{index:02d}" for index in range(8, 15)]
    assert sums(source, root) == truth(source)
    assert not set(source.opened) & set(slow.opened[:7]), "a file was read again"


@pytest.mark.usefixtures("later")
def test_what_was_read_is_saved_from_time_to_time(
    source: Source, root: LocalStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine that dies loses little."""
    monkeypatch.setattr(hashes, "_SAVE_SECONDS", 0.0)
    saved = list[int]()
    write = root.write

    def count(path: str, data: bytes) -> None:
        saved.append(len(data))
        write(path, data)

    monkeypatch.setattr(root, "write", count)
    sums(source, root)
    assert len(saved) > 1
    assert saved == sorted(saved)


@pytest.mark.usefixtures("later")
@pytest.mark.parametrize("damage", ["cut", "bit", "empty", "other"])
def test_a_damaged_memory_is_said_and_made_anew(source: Source, root: LocalStorage, damage: str) -> None:
    sums(source, root)
    (memory,) = root.list(".index")
    content = bytearray(root.read(memory.path))
    content[100] ^= 1
    damaged = {"cut": bytes(content[:-40]), "bit": bytes(content), "empty": b"", "other": b"{}" * 500}[damage]
    root.write(memory.path, damaged)
    said = list[str]()
    taken = LocalSums(source, list(source.list()), root, said.append)
    taken.take(lambda done: None)
    assert list(taken) == truth(source)
    assert said == [f"{root.uri(memory.path)} is damaged: the files of {source.root} are read again"]
    assert len(source.opened) == 40
    sums(source, root)
    assert len(source.opened) == 40


@pytest.mark.usefixtures("later")
def test_another_folder_of_the_same_names_is_another(source: Source, root: LocalStorage, tmp_path: Path) -> None:
    sums(source, root)
    other = LocalStorage(tmp_path / "other")
    for entry in source.list():
        other.write(entry.path, b"o" * entry.bytes)
        os.utime(other.local_path(entry.path), ns=(0, source.local_path(entry.path).stat().st_mtime_ns))
    assert sums(other, root) == truth(other)


def test_records_are_found_at_their_own_place() -> None:
    """An identity that lies across a record of the same bucket is none."""
    memory, first = Remembered(), bytes(range(16))
    memory.add(first, first)
    across = memory.records()[8:24]
    assert memory.find(across) is None
    memory.add(across, b"m" * 16)
    assert memory.find(across) == b"m" * 16
    assert memory.find(first) == first
    assert Remembered(memory.records()).find(across) == b"m" * 16


@pytest.mark.parametrize("count", [20_000, pytest.param(200_000, marks=pytest.mark.slow)])
def test_memory_for_many_files(root: LocalStorage, tmp_path: Path, count: int) -> None:
    """Bytes a file, beside the listing: 32 for what is remembered, as many for what is to be, 16 for the sums."""
    folder = LocalStorage(tmp_path / "source")
    folder.write("last", b"x")
    listing = [Entry(f"class/{i}.png", i, f"{i}.{i}") for i in range(count - 1)]
    records = b"".join(identity_of(entry) + b"m" * 16 for entry in listing)
    memory = hashes._MAGIC + records + hashlib.sha256(records).digest()
    root.write(LocalSums(folder, [], root)._path, memory)
    listing += folder.list()
    del records, memory
    tracemalloc.start()
    taken = LocalSums(folder, listing, root)
    lasting = tracemalloc.get_traced_memory()[0]
    taken.take(lambda done: None)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert taken.missing_bytes == 1
    assert lasting < 120 * count
    assert peak < 250 * count
