"""S3 that does not answer as it should, for good: what a user has to put right is said in one line."""

import datetime
import socket
import ssl
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from pipeline.storage import s3, s3_errors
from pipeline.storage.base import Storage
from pipeline.storage.uri import open_storage
from tests.support.ceph import Ceph, act_as
from tests.support.fault_proxy import FaultProxy
from tests.support.groups import free_port
from tests.support.spoiled_requests import KEYS, gets, refusal
from tests.support.tls import certificate

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
    "permission denied for these credentials. Grant s3:ListBucket on the bucket tests, and s3:GetObject, s3:PutObject "
    "and s3:DeleteObject below the prefix."
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
            "the secret key does not match the access key. Check AWS_SECRET_ACCESS_KEY; if it is right, a proxy alters "
            "the requests.",
        ),
    }  # fmt: skip


def test_refusals_of_a_real_server(ceph: Ceph, ceph_owner: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for environment, root, said in real_refusals(ceph, ceph_owner).values():
        act_as(monkeypatch, environment)
        for operation in OPERATIONS.values():
            where, _, line = refusal(partial(operation, open_storage(root))).partition(": ")
            assert where in (root, f"{root}/a")
            assert line == said


def test_parquet_is_refused_in_the_same_words(ceph_owner: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeline.data.parquet import ParquetUnit

    act_as(monkeypatch, ceph_owner)
    owned = s3.S3Storage("tests", "x")
    owned.client.create_bucket(Bucket="tests")
    owned.write("a.parquet", b"1")
    act_as(monkeypatch, {**ceph_owner, "AWS_SECRET_ACCESS_KEY": "wrong"})
    assert refusal(
        lambda: list(ParquetUnit(0, "train", "s3://tests/x", "a.parquet", 0, 1, "image", "label").read())
    ) == refusal(lambda: open_storage("s3://tests/x").read("a.parquet"))


def test_a_clock_that_is_wrong(ceph_owner: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    act_as(monkeypatch, ceph_owner)
    s3.S3Storage("tests", "").client.create_bucket(Bucket="tests")
    behind = datetime.timedelta(hours=3)

    class Clock(datetime.datetime):
        @classmethod
        def now(cls, zone: Any = None) -> Any:
            return datetime.datetime.now(zone) - behind

    monkeypatch.setattr("botocore.auth.get_current_datetime", lambda *_: Clock.now(datetime.UTC).replace(tzinfo=None))
    monkeypatch.setattr("pipeline.storage.s3_errors.datetime", Clock)
    for operation in OPERATIONS.values():
        line = refusal(partial(operation, open_storage("s3://tests/x"))).partition(": ")[2]
        assert line in {
            f"this machine's clock is {seconds} s behind the server's. Set the clock (NTP), then run again."
            for seconds in (10799, 10800, 10801)
        }


ANSWERS = {  # what a server answers -> what is said
    "400 ExpiredToken": "the credentials have expired. Log in again (`aws sso login`), or renew AWS_SESSION_TOKEN.",
    "400 InvalidToken": "the session token does not match the access key. Unset AWS_SESSION_TOKEN, or set all three "
    "variables from the same login.",
    "301 PermanentRedirect": "the bucket is in another region. Set AWS_REGION to that region.",
    "400 AuthorizationHeaderMalformed": "the bucket is in another region. Set AWS_REGION to that region.",
    "403 AccessDenied": PERMIT,
    "403 QuotaExceeded": "the quota is exceeded. Free some space (see `python -m pipeline artifact gc`), or raise it.",
    "400 InvalidRequest": "S3 rejected the request (GetObject: InvalidRequest by the fault proxy). See your S3 "
    "server's documentation for this error.",
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
            f"nothing listens at http://127.0.0.1:{port}. Check AWS_ENDPOINT_URL, and that the server is running.",
        ),
        "host": (
            "http://s3.nowhere.invalid",
            "the host of http://s3.nowhere.invalid cannot be resolved (",
        ),
        "no URL": ("127.0.0.1:9000", "AWS_ENDPOINT_URL is not a URL (Invalid endpoint: 127.0.0.1:9000). Write "),
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
    assert "the credentials contain a line break or another invalid character" in line
    assert "geheim" not in line


@pytest.mark.parametrize("proxy", ["moto"], indirect=True)
def test_what_comes_damaged_every_time_is_given_up(
    proxy: FaultProxy, root: str, hurried: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_storage(root).write("a", b"a")
    tries = list[str]()

    def damaged(body: Any) -> bytes:
        tries.append("one")
        raise body._broken("was damaged in transfer")

    monkeypatch.setattr(s3.Body, "readall", damaged)
    assert refusal(lambda: open_storage(root).read("a")) == f"{root}/a was damaged in transfer. Run again."
    assert len(tries) == 8


@pytest.mark.parametrize("wrong", ["nothing there", "host", "no URL", "no TLS"])
def test_wrong_endpoints(s3_endpoint: str, alone: dict[str, str], monkeypatch: pytest.MonkeyPatch, wrong: str) -> None:
    endpoint, said = endpoints(s3_endpoint)[wrong]
    act_as(monkeypatch, {**alone, **KEYS, "AWS_ENDPOINT_URL": endpoint})
    for name in ("read", "write_new", "list"):
        assert said in refusal(partial(OPERATIONS[name], open_storage("s3://tests/x")))


def test_an_address_that_drops_what_comes(alone: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Here a server that takes no more connections."""
    monkeypatch.setattr(s3, "_CONNECT_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full:
        endpoint = f"http://127.0.0.1:{full.getsockname()[1]}"
        with socket.create_connection(full.getsockname()):
            act_as(monkeypatch, {**alone, **KEYS, "AWS_ENDPOINT_URL": endpoint})
            line = refusal(lambda: open_storage("s3://tests/x").read("a"))
    assert f"{endpoint} does not answer, or breaks the connection (" in line
    assert line.endswith(". Check that the server is running and reachable, then run again.")


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
    monkeypatch.setattr(s3, "_BARE_STATUS_SECONDS", 0.1)
    act_as(monkeypatch, {**alone, **KEYS, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{web.port}"})
    for name in ("read", "exists", "list", "open"):
        line = refusal(partial(OPERATIONS[name], open_storage("s3://tests/x")))
        assert f"the server at http://127.0.0.1:{web.port} is not an S3 server (" in line
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
    assert line.endswith(". Set AWS_CA_BUNDLE to the certificate of the server's authority.")
    act_as(monkeypatch, {"AWS_CA_BUNDLE": str(pem)})
    assert not open_storage("s3://tests/x").exists("a")
    web.socket.close()


def test_credentials_that_are_not_there(
    s3_endpoint: str, alone: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    said = {
        "": "no credentials for S3 were found (Unable to locate credentials). Set AWS_ACCESS_KEY_ID and "
        "AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or give this pod or machine a role.",
        "AWS_ACCESS_KEY_ID": "no credentials for S3 were found (Partial credentials found in env, missing: "
        "AWS_SECRET_ACCESS_KEY). Set ",
        "AWS_PROFILE": "The config profile (x) could not be found. Check AWS_PROFILE and ~/.aws/config.",
    }
    for name, text in said.items():
        with monkeypatch.context() as patch:
            act_as(patch, {**alone, "AWS_ENDPOINT_URL": s3_endpoint, **({name: "x"} if name else {})})
            assert text in refusal(lambda: open_storage("s3://tests/x").read("a"))


def test_the_clients_errors_are_called_so() -> None:
    """Messages are found by the names of classes: one that is renamed would be told as "S3 cannot be used"."""
    import boto3.exceptions
    import botocore.exceptions
    import botocore.parsers
    import urllib3.exceptions

    modules = (botocore.exceptions, boto3.exceptions, botocore.parsers, urllib3.exceptions)
    named = {kind for message in s3_errors._CLIENT_MESSAGES for kind in message.kinds}
    assert [name for name in named if not any(hasattr(module, name) for module in modules)] == []
