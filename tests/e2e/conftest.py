"""What the end-to-end tests share: a run to which nothing happens."""

from pathlib import Path

import pytest

from tests.support.whole_runs import call


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The root of a whole run, with a local MLflow."""
    root = tmp_path_factory.mktemp("undisturbed") / "runs"
    call("run", root)
    return root
