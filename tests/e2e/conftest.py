"""What the end-to-end tests share: a run to which nothing happens."""

import fcntl
from pathlib import Path

import pytest

from tests.support.whole_runs import call


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, testrun_uid: str) -> Path:
    """The root of a whole run, with a local MLflow.

    Where several processes share the tests, the first one makes it and the others wait for it.
    """
    folder = tmp_path_factory.getbasetemp().parent / f"undisturbed-{testrun_uid}"
    folder.mkdir(exist_ok=True)
    made = folder / "made"
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made.exists():
            call("run", folder / "runs")
            made.touch()
    return folder / "runs"
