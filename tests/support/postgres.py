"""A PostgreSQL for tests, on a free port, with a fresh database. From Debian's package `postgresql`."""

import os
import pwd
import secrets
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.groups import free_port, running


def _programs() -> Path | None:
    """The folder of the newest version's programs; Debian keeps them off the PATH."""
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name))
    return folders[-1] if folders else None


def postgres_is_installed() -> bool:
    return _programs() is not None


@contextmanager
def running_postgres(host: str = "127.0.0.1", password: str | None = None) -> Iterator[str]:
    """The URI of an empty database `mlflow`, at this address; with a password whoever has it may come from elsewhere.

    Skips, saying what to install, where PostgreSQL is not there.
    """
    programs = _programs()
    if programs is None:
        pytest.skip("PostgreSQL is not installed: apt-get install --no-install-recommends postgresql")
    folder, port, user = Path(tempfile.mkdtemp(prefix="dvae-postgres-")), free_port(), _user()
    try:
        data = folder / "data"
        data.mkdir()
        if user:
            for path in (folder, data):
                shutil.chown(path, user)
        _run(user, programs / "initdb", "-D", data, "-U", "dvae", "-A", "trust", "-N")
        with open(data / "pg_hba.conf", "a") as rules:
            rules.write(f"host all dvae {host}/32 trust\nhost all all all scram-sha-256\n")
        command = [
            *_as(user), programs / "postgres", "-D", data, "-p", port, "-k", folder,
            "-c", f"listen_addresses={host}", "-c", "fsync=off",
        ]  # fmt: skip
        with running([str(word) for word in command], folder / "log") as server:
            address = ("-h", host, "-p", port, "-U", "dvae")
            server.wait_until(lambda: _succeeds(programs / "pg_isready", *address))
            owner = "dvae"
            if password is not None:
                owner = "mlflow"
                _run(
                    user,
                    programs / "psql",
                    *address,
                    "-c",
                    f"CREATE ROLE mlflow LOGIN PASSWORD '{password}'",
                    "postgres",
                )
            _run(user, programs / "createdb", *address, "-O", owner, "mlflow")
            login = owner if password is None else f"{owner}:{password}"
            yield f"postgresql+psycopg2://{login}@{host}:{port}/mlflow"
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def another_database(uri: str) -> str:
    """The URI of one more empty database on the server of this one."""
    import psycopg2

    name = f"tests_{secrets.token_hex(6)}"
    connection = psycopg2.connect(uri.replace("+psycopg2", ""))
    connection.autocommit = True  # a database is not made within a transaction
    with connection.cursor() as cursor:
        cursor.execute(f"CREATE DATABASE {name}")
    connection.close()
    return f"{uri.rpartition('/')[0]}/{name}"


def _user() -> str | None:
    """Whom PostgreSQL runs as: it refuses root."""
    if os.getuid() != 0:
        return None
    names = {entry.pw_name for entry in pwd.getpwall()}
    return "postgres" if "postgres" in names else "nobody"


def _as(user: str | None) -> list[str]:
    return ["setpriv", f"--reuid={user}", f"--regid={pwd.getpwnam(user).pw_gid}", "--clear-groups"] if user else []


def _run(user: str | None, *command: object) -> None:
    words = [*_as(user), *(str(word) for word in command)]
    done = subprocess.run(words, text=True, capture_output=True, check=False, timeout=60, cwd="/")
    assert done.returncode == 0, done.stdout + done.stderr


def _succeeds(*command: object) -> bool:
    return subprocess.run([str(word) for word in command], capture_output=True, check=False).returncode == 0
