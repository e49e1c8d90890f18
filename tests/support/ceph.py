"""A Ceph RADOS Gateway for tests, an S3 server that checks keys, permissions and conditions as Amazon's does.

One monitor, one object store (in memory, or on disk for what is larger), one gateway, on free ports, in a fresh
folder. From Debian's packages.
"""

import os
import shutil
import subprocess
import tempfile
import threading
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support.groups import free_port, listens, running

_PROGRAMS = ("ceph", "ceph-authtool", "ceph-mon", "ceph-osd", "monmaptool", "radosgw", "radosgw-admin")
_KEYS = {  # who -> what they may
    "mon.": {"mon": "allow *"},
    "client.admin": {"mon": "allow *", "osd": "allow *"},
    "osd.0": {"mon": "allow profile osd", "osd": "allow *"},
}

_IN_MEMORY = f"osd objectstore = memstore\nmemstore device bytes = {4 * 1024**3}"
_ON_DISK = f"""osd objectstore = bluestore
bluestore block size = {40 * 1024**3}
bluestore cache autotune = false
bluestore cache size = {256 * 1024**2}"""


def act_as(monkeypatch: pytest.MonkeyPatch, environment: dict[str, str]) -> None:
    """Make the S3 clients of this process, and of those below it, use these settings and no others."""
    from pipeline.storage import s3

    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL_S3", "AWS_REGION"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(s3, "_reached", threading.Event())
    for cached in (s3._session, s3._settings):
        cached.cache_clear()


def make_bucket(keys: dict[str, str], name: str) -> None:
    import boto3
    from botocore.config import Config

    boto3.client(
        "s3", endpoint_url=keys["AWS_ENDPOINT_URL"], aws_access_key_id=keys["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=keys["AWS_SECRET_ACCESS_KEY"], region_name="us-east-1",
        config=Config(s3={"addressing_style": "path"}, request_checksum_calculation="when_required"),
    ).create_bucket(Bucket=name)  # fmt: skip


def ceph_is_installed() -> bool:
    return all(shutil.which(program) for program in _PROGRAMS)


def s3_servers(moto: str) -> list[Any]:
    """The parameters of a fixture for an S3 server: `ceph`, and `moto` by that name, slow where Ceph is installed.

    moto checks no keys and no permissions: where there is a real server it only adds that two agree.
    """
    return [pytest.param(moto, marks=[pytest.mark.slow] if ceph_is_installed() else []), "ceph"]


@dataclass(frozen=True)
class Ceph:
    """A running gateway."""

    endpoint: str
    folder: Path

    def add_user(self, name: str) -> dict[str, str]:
        """A user with buckets of its own; the environment that makes a client act as it."""
        key, secret = f"KEYOF{name.upper()}", f"secret-of-{name}"
        self._run(
            "radosgw-admin", "user", "create", f"--uid={name}", f"--display-name={name}",
            f"--access-key={key}", f"--secret-key={secret}",
        )  # fmt: skip
        return {
            "AWS_ENDPOINT_URL": self.endpoint, "AWS_ACCESS_KEY_ID": key, "AWS_SECRET_ACCESS_KEY": secret,
            "AWS_DEFAULT_REGION": "us-east-1",
        }  # fmt: skip

    def add_key(self, name: str, key: str) -> tuple[str, str]:
        """One more key of a user, and its secret."""
        secret = f"secret-of-{key}"
        self._run("radosgw-admin", "key", "create", f"--uid={name}", f"--access-key={key}", f"--secret-key={secret}")
        return key, secret

    def remove_key(self, name: str, key: str) -> None:
        self._run("radosgw-admin", "key", "rm", f"--uid={name}", f"--access-key={key}")

    def _run(self, *command: str) -> str:
        done = subprocess.run(command, env=self.environment, text=True, capture_output=True, check=False, timeout=60)
        assert done.returncode == 0, f"{' '.join(command)}: {done.stderr[-2000:]}"
        return done.stdout

    @property
    def environment(self) -> dict[str, str]:
        """For Ceph's own commands."""
        return {**os.environ, "CEPH_CONF": str(self.folder / "ceph.conf")}


@contextmanager
def running_ceph(host: str = "127.0.0.1", on_disk: bool = False) -> Iterator[Ceph]:
    """Up within seconds, its gateway at this address. Skips, saying what to install, where Ceph is not there.

    It holds 4 GiB in memory; `on_disk` up to 40 GiB in the temporary folder, by BlueStore.
    """
    if not ceph_is_installed():
        pytest.skip("Ceph is not installed: apt-get install --no-install-recommends radosgw ceph-mon ceph-osd")
    folder = Path(tempfile.mkdtemp(prefix="dvae-ceph-"))  # short: sockets lie in it
    port = free_port()
    ceph = Ceph(f"http://{host}:{port}", folder)
    try:
        with ExitStack() as stack:
            _start(ceph, host, port, _ON_DISK if on_disk else _IN_MEMORY, stack)
            yield ceph
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _start(ceph: Ceph, host: str, port: int, store: str, stack: ExitStack) -> None:
    folder, environment, identity = ceph.folder, ceph.environment, str(uuid.uuid4())
    monitor = f"v2:127.0.0.1:{free_port()}"
    (folder / "mon").mkdir()
    (folder / "osd").mkdir()
    (folder / "ceph.conf").write_text(_configuration(folder, identity, monitor, f"{host}:{port}", store))
    keyring = str(folder / "keyring")
    for name, caps in _KEYS.items():
        words = [word for kind, allowed in caps.items() for word in ("--cap", kind, allowed)]
        new = [] if Path(keyring).exists() else ["--create-keyring"]
        ceph._run("ceph-authtool", *new, keyring, "--gen-key", "-n", name, *words)
    monmap = str(folder / "monmap")
    ceph._run("monmaptool", "--create", "--fsid", identity, "--addv", "a", f"[{monitor}]", monmap)
    ceph._run("ceph-mon", "--mkfs", "-i", "a", "--monmap", monmap, "--keyring", keyring)
    stack.enter_context(running(["ceph-mon", "-i", "a", "-f"], folder / "mon.out", environment))
    osd_identity = str(uuid.uuid4())
    ceph._run("ceph", "--connect-timeout", "30", "osd", "new", osd_identity)
    ceph._run("ceph-osd", "-i", "0", "--mkfs", "--osd-uuid", osd_identity)
    osd = stack.enter_context(running(["ceph-osd", "-i", "0", "-f"], folder / "osd.out", environment))
    osd.wait_until(lambda: " 1 up" in ceph._run("ceph", "osd", "stat"))
    gateway = ["radosgw", "-f", "-n", "client.admin"]
    stack.enter_context(running(gateway, folder / "gateway.out", environment)).wait_until(lambda: listens(port, host))


def _configuration(folder: Path, identity: str, monitor: str, gateway: str, store: str) -> str:
    """One of everything, on this host only. Short rounds of the monitor make the start one of seconds."""
    return f"""
[global]
fsid = {identity}
mon host = {monitor}
mon initial members = a
public addr = 127.0.0.1
cluster addr = 127.0.0.1
auth cluster required = cephx
auth service required = cephx
auth client required = cephx
keyring = {folder}/keyring
run dir = {folder}
admin socket = {folder}/$name.$pid.asok
log file = {folder}/$name.log
crash dir =
mon data = {folder}/mon
mon data avail crit = 0
mon data avail warn = 0
mon allow pool size one = true
mon max pg per osd = 1000
paxos propose interval = 0.05
paxos min wait = 0.01
osd data = {folder}/osd
{store}
osd crush chooseleaf type = 0
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 4
osd pool default pg autoscale mode = off
rgw data = {folder}
rgw frontends = beast endpoint={gateway}
"""
