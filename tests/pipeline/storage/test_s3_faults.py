"""S3 behind a proxy that spoils requests: operations do as without it."""

import pickle
import random
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import pytest
from pyarrow.fs import FileSelector, FileType

from pipeline.artifacts.lease import Lease
from pipeline.errors import LeaseError, StorageError
from pipeline.storage import arrow_files, s3, s3_upload
from pipeline.storage.base import Storage
from pipeline.storage.local import LocalStorage
from pipeline.storage.uri import open_storage
from tests.support.ceph import act_as
from tests.support.fault_proxy import FAULTS, FaultProxy, Seen
from tests.support.spoiled_requests import KEYS, begins, ends, gets, puts


def together(work: Callable[[int], None], count: int = 6) -> None:
    threads = [threading.Thread(target=work, args=(i,)) for i in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


# --- the same as without ---


def operate(storage: Storage, scratch: Path, seed: int, count: int) -> list[Any]:
    """Operations drawn by the seed, and what each gave."""
    chance, tags = random.Random(seed), dict[str, str]()

    def read_tagged(path: str, _: bytes) -> bytes:
        data, tags[path] = storage.read_tagged(path)
        return data

    def own(data: bytes) -> bytes:
        """Content that no other writer has: equal content counts as the writer's own if an answer was lost."""
        return data or chance.randbytes(8)

    def stream(path: str, _: bytes) -> bytes:
        with storage.open(path) as opened:
            return opened.read(5) + opened.read()

    def upload(path: str, data: bytes) -> None:
        (scratch / "up").write_bytes(data)
        storage.upload(scratch / "up", path)

    def download(path: str, _: bytes) -> bytes:
        storage.download(path, scratch / "down")
        return (scratch / "down").read_bytes()

    operations: list[Callable[[str, bytes], Any]] = [
        storage.write, lambda path, data: storage.write_new(path, own(data)), read_tagged, stream, upload, download,
        lambda path, data: storage.write_stream(path, [data[:7], data[7:]]),
        lambda path, _: storage.read(path),
        lambda path, data: storage.replace(path, own(data), tags.get(path, "0")),
        lambda path, _: storage.exists(path),
        lambda path, _: [entry[:2] for entry in storage.list(path[:1])],  # tags are the storage's own
        lambda path, _: list(storage.folders(path[:1])),
        lambda path, _: storage.delete(path),
        lambda path, _: storage.delete_folder(path[:1]),
    ]  # fmt: skip
    given = list[Any]()
    for _ in range(count):
        path, index = f"{chance.choice('ab')}/{chance.choice('cd')}", chance.randrange(len(operations))
        try:
            given.append((index, path, operations[index](path, chance.randbytes(chance.choice((0, 10, 3000))))))
        except FileNotFoundError:
            given.append((index, path, "absent"))
    return given


def test_every_operation_does_the_same(proxy: FaultProxy, root: str, tmp_path: Path, hurried: None) -> None:
    proxy.fail(0.2, seed=1)
    given = operate(open_storage(root), tmp_path, seed=20, count=120)
    assert given == operate(LocalStorage(tmp_path / "root"), tmp_path, seed=20, count=120)
    assert all(proxy.counts[fault] for fault in FAULTS), proxy.counts


def test_what_goes_in_parts(
    proxy: FaultProxy, root: str, tmp_path: Path, hurried: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3, "_ONE_PUT", 1024**2)
    proxy.fail(0.2, seed=2)
    storage, content = open_storage(root), random.Random(0).randbytes(40_000_000)
    storage.write("large", content)
    storage.download("large", tmp_path / "large")
    assert (tmp_path / "large").read_bytes() == content
    storage.upload(tmp_path / "large", "again")
    assert storage.read("again") == content
    monkeypatch.setattr(s3_upload, "_PART", 5 * 1024**2)
    storage.write_stream("streamed", [content[:10], content[10:]])
    assert storage.read("streamed") == content


@pytest.mark.parametrize("fault", ["lost", "truncated", "reset", "503"])
def test_a_stream_whose_end_is_not_answered(
    proxy: FaultProxy, root: str, hurried: None, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    """Where the answer is lost, the upload is gone and the object there."""
    monkeypatch.setattr(s3_upload, "_PART", 5 * 1024**2)
    storage, content = open_storage(root), random.Random(0).randbytes(12_000_000)
    for asked in (begins, puts, ends):
        proxy.spoil_next(fault, asked, times=2)
    storage.write_stream("streamed", [content])
    assert storage.read("streamed") == content


@pytest.mark.parametrize("asked", [puts, ends])
def test_an_upload_that_another_aborts(
    proxy: FaultProxy, root: str, monkeypatch: pytest.MonkeyPatch, asked: Callable[[Seen], bool]
) -> None:
    """Refused at once: the blocks cannot be read again."""
    monkeypatch.setattr(s3_upload, "_PART", 5 * 1024**2)
    proxy.spoil_next("404 NoSuchUpload", asked)
    with pytest.raises(StorageError, match=r"streamed: the upload was aborted on the server\. Run again"):
        open_storage(root).write_stream("streamed", [bytes(11 * 1024**2)])
    assert not open_storage(root).exists("streamed")


# --- conditions, and answers that are lost ---


@pytest.mark.parametrize("fault", ["lost", "truncated", "reset", "503", "409 ConditionalRequestConflict"])
def test_a_condition_that_this_writer_has_broken_itself(
    proxy: FaultProxy, root: str, hurried: None, fault: str
) -> None:
    storage = open_storage(root)
    proxy.spoil_next(fault, puts, times=2)
    assert storage.write_new("lease", b"mine")
    _, tag = storage.read_tagged("lease")
    proxy.spoil_next(fault, puts, times=2)
    assert storage.replace("lease", b"mine, later", tag)
    proxy.spoil_next(fault, puts, times=2)
    assert not storage.write_new("lease", b"another's")
    proxy.spoil_next(fault, puts, times=2)
    assert not storage.replace("lease", b"another's", tag)
    assert storage.read("lease") == b"mine, later"


def test_the_same_content_is_still_another_writer(proxy: FaultProxy, root: str) -> None:
    """Where no answer was lost, equal bytes prove nothing."""
    storage = open_storage(root)
    assert storage.write_new("a", b"same")
    assert not storage.write_new("a", b"same")


def test_one_winner_though_answers_are_lost(proxy: FaultProxy, root: str, hurried: None) -> None:
    proxy.fail(0.5, ("lost", "truncated", "reset", "503"), seed=3)
    for turn in range(5):
        won = list[bytes]()

        def write(writer: int, path: str = f"prize {turn}", won: list[bytes] = won) -> None:
            storage, content = open_storage(root), f"writer {writer}".encode()
            if storage.write_new(path, content):
                won.append(content)

        together(write)
        assert won == [open_storage(root).read(f"prize {turn}")]
    assert proxy.counts["lost"]


def test_a_lease_has_one_holder_though_answers_are_lost(proxy: FaultProxy, root: str, hurried: None) -> None:
    proxy.fail(0.5, ("lost", "reset", "503"), seed=4)
    held, refused = list[Lease](), list[LeaseError]()

    def take(_: int) -> None:
        try:
            held.append(Lease(open_storage(root), "encode", "0" * 64))
        except LeaseError as error:
            refused.append(error)

    together(take)
    assert (len(held), len(refused)) == (1, 5)
    for _ in range(5):
        held[0].renew()
    held[0].check()
    held[0].release(finished=True)


# --- bodies that break off ---


def test_a_body_that_breaks_off_goes_on_where_it_was(proxy: FaultProxy, root: str, hurried: None) -> None:
    storage, content = open_storage(root), random.Random(0).randbytes(3_000_000)
    storage.write("a", content)
    ranges = []

    def asked(seen: Seen) -> bool:
        if gets(seen):
            ranges.append(seen.headers.get("range"))
        return gets(seen)

    proxy.spoil_next("truncated", asked, times=4)
    assert storage.read("a") == content
    assert ranges[:2] == [None, "bytes=1500000-"]
    proxy.spoil_next("truncated", gets, times=4)
    with storage.open("a") as stream:
        assert b"".join(iter(lambda: stream.read(100_000), b"")) == content
    proxy.spoil_next("truncated", gets, times=4)
    with storage.open("a", 2_000_000) as stream:
        assert stream.read() == content[2_000_000:]


def test_two_versions_are_never_mixed(proxy: FaultProxy, root: str, hurried: None) -> None:
    storage, old = open_storage(root), b"o" * 8_000_000
    storage.write("a", old)
    proxy.spoil_next("truncated", gets)
    with storage.open("a") as stream:
        assert stream.read(10) == old[:10]
        storage.write("a", b"n" * 8_000_000)
        with pytest.raises(StorageError, match=r"changed while it was read\. Run again"):
            stream.read()


def test_a_whole_object_that_changes_is_read_anew(
    proxy: FaultProxy, root: str, hurried: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage, writer, new = open_storage(root), open_storage(root), b"n" * 5_000_000
    storage.write("a", b"o" * 6_000_000)
    again = s3.Body._reopened

    def changed(body: Any) -> Any:
        writer.write("a", new)
        return again(body)

    monkeypatch.setattr(s3.Body, "_reopened", changed)
    proxy.spoil_next("truncated", gets)
    data, tag = storage.read_tagged("a")
    assert data == new
    assert storage.replace("a", b"", tag)


# --- outages ---


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["500", "reset"])
@pytest.mark.parametrize("proxy", ["moto"], indirect=True)
def test_an_outage_is_waited_for(proxy: FaultProxy, root: str, fault: str) -> None:
    """Longer than botocore's own attempts, which are over after seconds."""
    storage = open_storage(root)
    storage.write("a", b"1")
    proxy.outage(7, fault)
    assert storage.read("a") == b"1"
    assert proxy.counts[fault] > s3._ATTEMPTS


@pytest.mark.slow
@pytest.mark.parametrize("proxy", ["moto"], indirect=True)
def test_a_process_that_begins_in_an_outage(proxy: FaultProxy, root: str) -> None:
    """The server's own word that it is busy is no wrong endpoint."""
    proxy.outage(7, "500")
    open_storage(root).write("a", b"1")
    assert proxy.counts["500"] > s3._ATTEMPTS


@pytest.fixture
def impatient(hurried: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3, "_RETRY_SECONDS", 0.2)


def test_an_outage_without_end_is_said(proxy: FaultProxy, root: str, impatient: None) -> None:
    storage = open_storage(root)
    storage.write("a", b"1")
    for fault, said in {
        "503": f"{root}/a: S3 is overloaded or unavailable (GetObject: SlowDown by the fault proxy). Run the same "
        "command again later to resume.",
        "reset": f"{root}/a: {proxy.url} does not answer, or breaks the connection ([Errno 104] Connection "
        "reset by peer). Check that the server is running and reachable, then run again.",
    }.items():
        proxy.outage(60, fault)
        with pytest.raises(StorageError) as refused:
            storage.read("a")
        assert str(refused.value) == said


# --- here and there ---


def test_ranges_are_read_through_faults(proxy: FaultProxy, root: str) -> None:
    storage, content = open_storage(root), random.Random(0).randbytes(2_000_000)
    storage.write("a", content)
    proxy.fail(0.2, seed=5)
    with storage.open_ranges("a") as file:
        assert b"".join(read_at(file, at, 100_000) for at in range(0, 2_000_000, 100_000)) == content
    assert proxy.counts["truncated"]


def read_at(file: BinaryIO, position: int, size: int) -> bytes:
    file.seek(position)
    return file.read(size)


def test_ranges_of_an_object_that_is_replaced(root: str) -> None:
    storage = open_storage(root)
    storage.write("a", bytes(200_000))
    with storage.open_ranges("a") as file:
        storage.write("a", b"1" * 200_000)
        with pytest.raises(StorageError, match="a changed while it was read"):
            file.read(10)


def test_ray_trains_files_go_through_faults(proxy: FaultProxy, root: str) -> None:
    """By the same client as everything, with its proxies, regions and credentials; and in the workers too."""
    files = pickle.loads(pickle.dumps(arrow_files(open_storage(root))))
    proxy.fail(0.2, seed=5)
    for number in range(9):
        with files.open_output_stream(f"train/run/{number}.json") as stream:
            stream.write(b"{}")
    assert len(files.get_file_info(FileSelector("train", recursive=True))) == 10
    with files.open_input_stream("train/run/7.json") as stream:
        assert stream.read() == b"{}"
    files.delete_dir("train/run")
    assert files.get_file_info("train/run").type == FileType.NotFound
    assert proxy.counts["500"] + proxy.counts["503"]


def test_what_is_configured_reaches_the_client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config").write_text(
        "[profile there]\nregion = eu-west-3\nendpoint_url = https://s3.example:9000\nca_bundle = /ca.pem\n"
        "aws_access_key_id = key\naws_secret_access_key = secret\ns3 =\n  addressing_style = virtual\n"
    )
    act_as(monkeypatch, {"AWS_CONFIG_FILE": str(tmp_path / "config"), "AWS_PROFILE": "there"})
    for name in (
        "AWS_ENDPOINT_URL",
        "AWS_DEFAULT_REGION",
        "AWS_ACCESS_KEY_ID",
        "AWS_SECRET_ACCESS_KEY",
        "AWS_CA_BUNDLE",
    ):
        monkeypatch.delenv(name, raising=False)
    storage = s3.S3Storage("bucket", "x")
    assert storage.client.generate_presigned_url("get_object", storage.arguments("a")).startswith(
        "https://bucket.s3.example:9000/x/a?"
    )
    assert storage.authority == "/ca.pem"


def test_a_server_of_ones_own_is_addressed_by_path(monkeypatch: pytest.MonkeyPatch) -> None:
    act_as(monkeypatch, {**KEYS, "AWS_ENDPOINT_URL_S3": "http://s3.example"})
    url = s3.S3Storage("bucket", "").client.generate_presigned_url("get_object", {"Bucket": "bucket", "Key": "a"})
    assert url.startswith("http://s3.example/bucket/a?")
