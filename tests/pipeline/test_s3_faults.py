"""S3 behind a proxy that spoils requests: operations do as without it, and what a user has to mend is said."""

import datetime
import random
import socket
import ssl
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ceph import Ceph, act_as, running_ceph
from fault_proxy import FAULTS, FaultProxy, Seen, fault_proxy
from groups import free_port
from tls import certificate

from pipeline import s3
from pipeline.artifacts import Lease
from pipeline.errors import LeaseError, StorageError
from pipeline.storage import LocalStorage, Storage, open_storage

KEYS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}


@pytest.fixture(scope="module")
def ceph() -> Iterator[tuple[Ceph, dict[str, str]]]:
    with running_ceph() as server:
        yield server, server.add_user("owner")


@pytest.fixture(params=["moto", "ceph"])
def proxy(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    """In front of an S3 server that has the bucket `tests`; the environment leads through it."""
    if request.param == "ceph":
        server, environment = request.getfixturevalue("ceph")
        upstream = server.endpoint
    else:
        upstream, environment = request.getfixturevalue("s3_endpoint"), KEYS
    with fault_proxy(upstream) as made:
        act_as(monkeypatch, {**environment, "AWS_ENDPOINT_URL": made.url})
        s3.S3Storage("tests", "").client.create_bucket(Bucket="tests")
        yield made


@pytest.fixture
def root(proxy: FaultProxy) -> str:
    return f"s3://tests/{uuid.uuid4().hex}"


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses between attempts are short."""
    sleep = time.sleep
    monkeypatch.setattr(time, "sleep", lambda seconds: sleep(min(seconds, 0.005)))


def puts(seen: Seen) -> bool:
    return seen.method == "PUT"


def gets(seen: Seen) -> bool:
    return seen.method == "GET" and "list-type" not in seen.path


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
        storage.write, storage.write_new, read_tagged, stream, upload, download,
        lambda path, _: storage.read(path),
        lambda path, data: storage.replace(path, data, tags.get(path, "0")),
        lambda path, _: storage.exists(path),
        lambda path, _: list(storage.list(path[:1])),
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


@pytest.mark.parametrize("share", [0.05, 0.2])
def test_every_operation_does_the_same(
    proxy: FaultProxy, root: str, tmp_path: Path, hurried: None, share: float
) -> None:
    proxy.fail(share, seed=1)
    given = operate(open_storage(root), tmp_path, seed=int(100 * share), count=120)
    assert given == operate(LocalStorage(tmp_path / "root"), tmp_path, seed=int(100 * share), count=120)
    assert len([fault for fault in FAULTS if proxy.counts[fault]]) > (4 if share > 0.1 else 0), proxy.counts


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
        won = []

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
    again = s3._Body._reopened

    def changed(body: Any) -> Any:
        writer.write("a", new)
        return again(body)

    monkeypatch.setattr(s3._Body, "_reopened", changed)
    proxy.spoil_next("truncated", gets)
    data, tag = storage.read_tagged("a")
    assert data == new
    assert storage.replace("a", b"", tag)


# --- outages ---


@pytest.mark.parametrize("fault", ["500", "reset"])
@pytest.mark.parametrize("proxy", ["moto"], indirect=True)
def test_an_outage_is_waited_for(proxy: FaultProxy, root: str, fault: str) -> None:
    """Longer than botocore's own attempts, which are over after seconds."""
    storage = open_storage(root)
    storage.write("a", b"1")
    proxy.outage(7, fault)
    assert storage.read("a") == b"1"
    assert proxy.counts[fault] > s3._ATTEMPTS


@pytest.mark.parametrize("proxy", ["moto"], indirect=True)
def test_a_process_that_begins_in_an_outage(proxy: FaultProxy, root: str) -> None:
    """The server's own word that it is busy is no wrong endpoint."""
    proxy.outage(7, "500")
    open_storage(root).write("a", b"1")
    assert proxy.counts["500"] > s3._ATTEMPTS


@pytest.fixture
def impatient(hurried: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3, "_PATIENCE_SECONDS", 0.2)


def test_an_outage_without_end_is_said(proxy: FaultProxy, root: str, impatient: None) -> None:
    storage = open_storage(root)
    storage.write("a", b"1")
    for fault, said in {
        "503": f"{root}/a: S3 is busy or in trouble (GetObject: SlowDown by the fault proxy). Run again when it is "
        "well; the same command goes on.",
        "reset": f"{root}/a: {proxy.url} does not answer, or breaks off ([Errno 104] Connection reset "
        "by peer). Is it up and in reach? Then run again.",
    }.items():
        proxy.outage(60, fault)
        with pytest.raises(StorageError) as refused:
            storage.read("a")
        assert str(refused.value) == said


# --- Arrow's own client ---


def test_arrow_reads_through_faults(proxy: FaultProxy, root: str) -> None:
    storage, content = s3.S3Storage("tests", root.removeprefix("s3://tests/")), random.Random(0).randbytes(2_000_000)
    storage.write("a", content)
    proxy.fail(0.2, seed=5)
    with storage.arrow_files().open_input_file(storage.arrow_path("a")) as file:
        assert b"".join(file.read_at(100_000, at) for at in range(0, 2_000_000, 100_000)) == content
    assert proxy.counts["truncated"]


def test_arrow_is_refused(ceph: tuple[Ceph, dict[str, str]], monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeline.data.sources import ParquetUnit

    act_as(monkeypatch, ceph[1])
    owned = s3.S3Storage("tests", "x")
    owned.client.create_bucket(Bucket="tests")
    owned.write("a.parquet", b"1")
    act_as(monkeypatch, {**ceph[1], "AWS_SECRET_ACCESS_KEY": "wrong"})
    assert refusal(lambda: list(ParquetUnit(0, "train", "s3://tests/x", "a.parquet", 0, 1).read())) == (
        "s3://tests/x/a.parquet: the credentials may not read this (ACCESS_DENIED during HeadObject operation: No "
        "response body.). Give them s3:GetObject on it."
    )


def test_what_is_configured_reaches_both_clients(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
    given = list[dict[str, Any]]()
    monkeypatch.setattr("pyarrow.fs.S3FileSystem", lambda **settings: given.append(settings))
    storage = s3.S3Storage("bucket", "x")
    assert storage.client.generate_presigned_url("get_object", storage._arguments("a")).startswith(
        "https://bucket.s3.example:9000/x/a?"
    )
    storage.arrow_files()
    wanted = {
        "region": "eu-west-3", "endpoint_override": "https://s3.example:9000", "force_virtual_addressing": True,
        "tls_ca_file_path": "/ca.pem", "access_key": "key", "secret_key": "secret",
    }  # fmt: skip
    assert given[0].items() >= wanted.items()


def test_a_server_of_ones_own_is_addressed_by_path(monkeypatch: pytest.MonkeyPatch) -> None:
    act_as(monkeypatch, {**KEYS, "AWS_ENDPOINT_URL_S3": "http://s3.example"})
    url = s3.S3Storage("bucket", "").client.generate_presigned_url("get_object", {"Bucket": "bucket", "Key": "a"})
    assert url.startswith("http://s3.example/bucket/a?")


# --- what a user has to mend ---


def refusal(work: Callable[[], Any]) -> str:
    with pytest.raises(StorageError) as refused:
        work()
    (line,) = str(refused.value).splitlines()
    print(f"error: {line}")
    return line


OPERATIONS: dict[str, Callable[[Storage], Any]] = {
    "read": lambda storage: storage.read("a"),
    "write": lambda storage: storage.write("a", b""),
    "write_new": lambda storage: storage.write_new("a", b""),
    "replace": lambda storage: storage.replace("a", b"", "0"),
    "exists": lambda storage: storage.exists("a"),
    "list": lambda storage: list(storage.list()),
    "open": lambda storage: storage.open("a"),
    "download": lambda storage: storage.download("a", Path("/dev/null")),
    "upload": lambda storage: storage.upload(Path(__file__), "a"),
}
PERMIT = (
    "the credentials may not do this. Give them s3:ListBucket on the bucket tests, and s3:GetObject, s3:PutObject and "
    "s3:DeleteObject on what is below the prefix."
)


def real_refusals(ceph: Ceph, owner: dict[str, str]) -> dict[str, tuple[dict[str, str], str, str]]:
    """name -> (the environment, the root, what is said after it)"""
    return {
        "bucket": (
            owner, "s3://no-such-bucket/x",
            f"NoSuchBucket, {ceph.endpoint} has no bucket 'no-such-bucket'. Create the bucket, or correct the URI.",
        ),
        "permission": (ceph.add_user("stranger"), "s3://tests/x", PERMIT),
        "key": (
            {**owner, "AWS_ACCESS_KEY_ID": "NOBODY"}, "s3://tests/x",
            f"{ceph.endpoint} does not know this access key. Check AWS_ACCESS_KEY_ID or AWS_PROFILE, and that "
            "AWS_ENDPOINT_URL is the server they belong to.",
        ),
        "secret": (
            {**owner, "AWS_SECRET_ACCESS_KEY": "wrong"}, "s3://tests/x",
            "the secret key is not that of the access key. Check AWS_SECRET_ACCESS_KEY; where it is right, a proxy on "
            "the way alters the requests.",
        ),
    }  # fmt: skip


def test_refusals_of_a_real_server(ceph: tuple[Ceph, dict[str, str]], monkeypatch: pytest.MonkeyPatch) -> None:
    server, owner = ceph
    act_as(monkeypatch, owner)
    s3.S3Storage("tests", "").client.create_bucket(Bucket="tests")
    for environment, root, said in real_refusals(server, owner).values():
        act_as(monkeypatch, environment)
        for operation in OPERATIONS.values():
            where, _, line = refusal(lambda o=operation, r=root: o(open_storage(r))).partition(": ")
            assert where in (root, f"{root}/a")
            assert line == said


def test_a_clock_that_is_wrong(ceph: tuple[Ceph, dict[str, str]], monkeypatch: pytest.MonkeyPatch) -> None:
    act_as(monkeypatch, ceph[1])
    s3.S3Storage("tests", "").client.create_bucket(Bucket="tests")
    behind = datetime.timedelta(hours=3)

    class Clock(datetime.datetime):
        @classmethod
        def now(cls, zone: Any = None) -> datetime.datetime:
            return datetime.datetime.now(zone) - behind

    monkeypatch.setattr("botocore.auth.get_current_datetime", lambda *_: Clock.now(datetime.UTC).replace(tzinfo=None))
    monkeypatch.setattr("pipeline.s3_errors.datetime", Clock)
    for operation in OPERATIONS.values():
        line = refusal(lambda o=operation: o(open_storage("s3://tests/x"))).partition(": ")[2]
        assert line in {
            f"this machine's clock is {seconds} s behind the server's. Set the clock (NTP), then run again."
            for seconds in (10799, 10800, 10801)
        }


ANSWERS = {  # what a server answers -> what is said
    "400 ExpiredToken": "the credentials have expired. Log in again (`aws sso login`), or renew AWS_SESSION_TOKEN.",
    "400 InvalidToken": "the session token is not that of the access key. Unset AWS_SESSION_TOKEN, or set all three of "
    "one login.",
    "301 PermanentRedirect": "the bucket is in another region. Set AWS_REGION to the bucket's.",
    "400 AuthorizationHeaderMalformed": "the bucket is in another region. Set AWS_REGION to the bucket's.",
    "403 AccessDenied": PERMIT,
    "403 QuotaExceeded": "the quota is used up. Free some space (see `python -m pipeline artifact gc`), or raise it.",
    "400 InvalidRequest": "S3 refuses (GetObject: InvalidRequest by the fault proxy). See what your S3 server's "
    "documentation says of that.",
}


@pytest.mark.parametrize("answer", ANSWERS)
@pytest.mark.parametrize("proxy", ["moto"], indirect=True)
def test_refusals_by_their_code(proxy: FaultProxy, root: str, answer: str) -> None:
    proxy.spoil_next(answer, gets, times=3)
    assert refusal(lambda: open_storage(root).read("a")) == f"{root}/a: {ANSWERS[answer]}"


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, hurried: None) -> dict[str, str]:
    """An environment without any other setting for AWS."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)
    nothing = str(tmp_path / "nothing")
    return {
        "AWS_CONFIG_FILE": nothing, "AWS_SHARED_CREDENTIALS_FILE": nothing, "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_DEFAULT_REGION": "us-east-1",
    }  # fmt: skip


def endpoints(s3_endpoint: str) -> dict[str, tuple[str, str]]:
    """name -> (AWS_ENDPOINT_URL, what is said)"""
    port = free_port()
    return {
        "nothing there": (
            f"http://127.0.0.1:{port}",
            f"nothing listens at http://127.0.0.1:{port}. Check AWS_ENDPOINT_URL; is the server up?",
        ),
        "host": (
            "http://s3.nowhere.invalid",
            "the host of http://s3.nowhere.invalid is not known (",
        ),
        "no URL": ("127.0.0.1:9000", "AWS_ENDPOINT_URL is no URL (Invalid endpoint: 127.0.0.1:9000). Write "),
        "no TLS": (
            s3_endpoint.replace("http:", "https:"),
            f"{s3_endpoint.replace('http:', 'https:')} does not speak TLS. Write http:// in AWS_ENDPOINT_URL, or "
            "correct the port.",
        ),
    }


@pytest.mark.parametrize("name", ["AWS_ACCESS_KEY_ID", "AWS_SESSION_TOKEN"])
def test_a_key_with_a_line_end_is_not_shown(
    s3_endpoint: str, alone: dict[str, str], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """As from a Secret that was made of a file."""
    act_as(monkeypatch, {**alone, **KEYS, "AWS_ENDPOINT_URL": s3_endpoint, name: "geheim\n"})
    line = refusal(lambda: open_storage("s3://tests/x").read("a"))
    assert "the credentials hold a line end or the like" in line
    assert "geheim" not in line


@pytest.mark.parametrize("proxy", ["moto"], indirect=True)
def test_what_comes_damaged_every_time_is_given_up(
    proxy: FaultProxy, root: str, hurried: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_storage(root).write("a", b"a")
    tries = list[str]()

    def damaged(body: Any) -> bytes:
        tries.append("one")
        raise body._broken("came damaged")

    monkeypatch.setattr(s3._Body, "readall", damaged)
    assert refusal(lambda: open_storage(root).read("a")) == f"{root}/a came damaged. Run again."
    assert len(tries) == 8


@pytest.mark.parametrize("wrong", ["nothing there", "host", "no URL", "no TLS"])
def test_wrong_endpoints(s3_endpoint: str, alone: dict[str, str], monkeypatch: pytest.MonkeyPatch, wrong: str) -> None:
    endpoint, said = endpoints(s3_endpoint)[wrong]
    act_as(monkeypatch, {**alone, **KEYS, "AWS_ENDPOINT_URL": endpoint})
    for name in ("read", "write_new", "list"):
        assert said in refusal(lambda o=OPERATIONS[name]: o(open_storage("s3://tests/x")))


def test_an_address_that_drops_what_comes(alone: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Here a server that takes no more connections."""
    monkeypatch.setattr(s3, "_CONNECT_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full:
        endpoint = f"http://127.0.0.1:{full.getsockname()[1]}"
        with socket.create_connection(full.getsockname()):
            act_as(monkeypatch, {**alone, **KEYS, "AWS_ENDPOINT_URL": endpoint})
            line = refusal(lambda: open_storage("s3://tests/x").read("a"))
    assert f"{endpoint} does not answer, or breaks off (" in line
    assert line.endswith(". Is it up and in reach? Then run again.")


class Web:
    """A server of something else: it answers every request with these bytes."""

    def __init__(self, answer: bytes, context: ssl.SSLContext | None = None) -> None:
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.port = self.socket.getsockname()[1]
        self.answer, self.context = answer, context
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self.socket.accept()
            except OSError:
                return
            try:
                with self.context.wrap_socket(connection, server_side=True) if self.context else connection as stream:
                    stream.settimeout(5)
                    stream.recv(65536)
                    stream.sendall(self.answer)
            except OSError:
                continue


PAGE = b"<html>hello</html>"


@pytest.mark.parametrize("status", ["404 Not Found", "405 Method Not Allowed", "200 OK"])
def test_a_server_that_is_not_s3(alone: dict[str, str], monkeypatch: pytest.MonkeyPatch, status: str) -> None:
    head = f"HTTP/1.1 {status}\r\nContent-Type: text/html\r\nConnection: close\r\nContent-Length: {len(PAGE)}\r\n\r\n"
    web = Web(head.encode() + PAGE)
    monkeypatch.setattr(s3, "_WORDLESS_SECONDS", 0.1)
    act_as(monkeypatch, {**alone, **KEYS, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{web.port}"})
    for name in ("read", "exists", "list", "open"):
        line = refusal(lambda o=OPERATIONS[name]: o(open_storage("s3://tests/x")))
        assert f"what answers at http://127.0.0.1:{web.port} is no S3 server (" in line
        assert line.endswith(". Check AWS_ENDPOINT_URL: the address, the port, and http or https.")
    web.socket.close()


def test_a_certificate_of_an_unknown_authority(
    alone: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pem = certificate(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    body = b"<ListBucketResult><IsTruncated>false</IsTruncated></ListBucketResult>"
    head = f"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    web = Web(head + body, context)
    act_as(monkeypatch, {**alone, **KEYS, "AWS_ENDPOINT_URL": f"https://127.0.0.1:{web.port}"})
    line = refusal(lambda: open_storage("s3://tests/x").exists("a"))
    assert f"TLS fails at https://127.0.0.1:{web.port} (" in line
    assert line.endswith(". Name the file of the server's CA in AWS_CA_BUNDLE.")
    act_as(monkeypatch, {"AWS_CA_BUNDLE": str(pem)})
    assert not open_storage("s3://tests/x").exists("a")
    web.socket.close()


def test_credentials_that_are_not_there(
    s3_endpoint: str, alone: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    said = {
        "": "there are no credentials for S3 (Unable to locate credentials). Set AWS_ACCESS_KEY_ID and "
        "AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or give this pod or machine a role.",
        "AWS_ACCESS_KEY_ID": "there are no credentials for S3 (Partial credentials found in env, missing: "
        "AWS_SECRET_ACCESS_KEY). Set ",
        "AWS_PROFILE": "The config profile (x) could not be found. Check AWS_PROFILE and ~/.aws/config.",
    }
    for name, text in said.items():
        with monkeypatch.context() as patch:
            act_as(patch, {**alone, "AWS_ENDPOINT_URL": s3_endpoint, **({name: "x"} if name else {})})
            assert text in refusal(lambda: open_storage("s3://tests/x").read("a"))
