"""What the end-to-end tests share: a run to which nothing happens."""

import fcntl
from pathlib import Path

import pytest

from tests.support.whole_runs import call


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """The root of a whole run, with a local MLflow. Tests only read its artifacts, as another process may, too.

    Where several processes share the tests, the first one makes it and the others wait for it.
    """
    own = tmp_path_factory.getbasetemp()  # of one of several processes: inside of that of all of them
    folder = (own if worker_id == "master" else own.parent) / "undisturbed"
    folder.mkdir(exist_ok=True)
    made = folder / "made"
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made.exists():
            call("run", folder / "runs")
            made.touch()
    return folder / "runs"
