"""Ways to S3 that an environment prescribes: proxies, private authorities, credentials that a process renews."""

import json
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.errors import StorageError
from pipeline.storage import arrow_files, open_storage, s3
from pipeline.storage.base import Storage
from tests.support.ceph import Ceph, act_as, make_bucket
from tests.support.connect_proxy import connect_proxy
from tests.support.fault_proxy import FaultProxy, fault_proxy
from tests.support.tls import certificate

HOST = "s3.hidden.example"  # which nobody knows here


@pytest.fixture(autouse=True)
def own_session() -> Iterator[None]:
    """No later test takes over the credentials' process of one of these."""
    yield
    for cached in (s3._session, s3._settings):
        cached.cache_clear()


def use(storage: Storage) -> None:
    """Every way to read and write."""
    storage.write("a", b"one")
    storage.write_stream("b", [b"two"])
    with storage.open_ranges("a") as file, storage.open("b") as stream:
        assert (file.read(), stream.read()) == (b"one", b"two")
    with arrow_files(storage).open_output_stream("train/c") as sink:
        sink.write(b"three")
    assert [entry.path for entry in storage.list()] == ["a", "b", "train/c"]


@pytest.mark.parametrize("proxy", ["ceph"], indirect=True)  # moto takes a part of the name for a bucket
def test_a_bucket_that_only_a_proxy_reaches(proxy: FaultProxy, root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    act_as(monkeypatch, {"AWS_ENDPOINT_URL": f"http://{HOST}", "HTTP_PROXY": proxy.url, "NO_PROXY": ""})
    use(open_storage(root))


def test_a_bucket_behind_a_proxy_with_tls_by_a_private_authority(
    ceph_owner: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pem = certificate(tmp_path, HOST)
    with fault_proxy(ceph_owner["AWS_ENDPOINT_URL"], pem) as server, connect_proxy(server.port) as proxy:
        way = {
            "AWS_ENDPOINT_URL": f"https://{HOST}",
            "HTTPS_PROXY": proxy.url,
            "NO_PROXY": "",
            "AWS_CA_BUNDLE": str(pem),
        }
        act_as(monkeypatch, {**ceph_owner, **way})
        with pytest.raises(StorageError, match="Set AWS_REQUEST_CHECKSUM_CALCULATION=when_required"):
            open_storage("s3://tests/x").write("a", b"one")  # over TLS, by checksums that this server is too old for
        act_as(monkeypatch, {"AWS_REQUEST_CHECKSUM_CALCULATION": "when_required"})
        use(open_storage(f"s3://tests/{uuid.uuid4().hex}"))
        assert set(proxy.asked) == {f"{HOST}:443"}


def test_credentials_that_end_while_they_are_used(ceph: Ceph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of a process that renews them, as a login of a company has it: training takes longer than an hour."""
    owner = ceph.add_user("renewed")
    make_bucket(owner, "renewed")
    keys = [(owner["AWS_ACCESS_KEY_ID"], owner["AWS_SECRET_ACCESS_KEY"]), ceph.add_key("renewed", "SECONDKEY")]

    def log_in(key: tuple[str, str]) -> None:
        """What is answered from now on ends, counted from each answer, sooner than botocore wants to be sure."""
        answer = {"Version": 1, "AccessKeyId": key[0], "SecretAccessKey": key[1], "Expiration": "END"}
        (tmp_path / "answer.json").write_text(json.dumps(answer))

    program = tmp_path / "log-in"
    program.write_text(f'#!/bin/sh\nsed "s/END/$(date -u -d "+20 seconds" +%FT%TZ)/" {tmp_path}/answer.json\n')
    program.chmod(0o755)
    (tmp_path / "config").write_text(f"[default]\ncredential_process = {program}\n")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name, raising=False)
    act_as(monkeypatch, {"AWS_ENDPOINT_URL": ceph.endpoint, "AWS_DEFAULT_REGION": "us-east-1"})
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    log_in(keys[0])
    storage = open_storage("s3://renewed/root")
    files = arrow_files(storage)
    storage.write("large", bytes(3_000_000))
    with storage.open_ranges("large") as file, storage.open("large") as stream:
        assert stream.read(10) == bytes(10)
        ceph.remove_key("renewed", keys[0][0])
        log_in(keys[1])
        assert file.read() == stream.read() + bytes(10)
    storage.write("a", b"one")
    with files.open_output_stream("train/c") as sink:
        sink.write(b"three")
    assert storage.read("train/c") == b"three"
