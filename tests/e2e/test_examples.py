"""The notebooks of examples/: they hold no outputs, and run from their first cell to their last."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support import PROJECT

NOTEBOOKS = sorted((PROJECT / "examples").glob("*.ipynb"))


def cells(path: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(path.read_text())["cells"]
    return found


def run(path: Path, environment: dict[str, str], after: str = "") -> str:
    """Execute a notebook's code as one program in the notebook's folder, as Jupyter would; what it prints."""
    code = "\n\n".join("".join(cell["source"]) for cell in cells(path) if cell["cell_type"] == "code")
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\n\n{after}"], cwd=path.parent, env={**os.environ, **environment},
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_no_outputs_are_committed(path: Path) -> None:
    for cell in cells(path):
        if cell["cell_type"] == "code":
            assert (cell["outputs"], cell["execution_count"]) == ([], None)


@pytest.mark.slow
def test_pictures_from_the_registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.support.registration import Registration, random_networks

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    registration = Registration(tmp_path, random_networks())
    registration.register(0.95)
    after = (
        "same = draw([1, 2], [7, 8], steps=2)[1].tobytes() == draw([2], [8], steps=2)[0].tobytes()\n"
        "print('figures', len(plt.get_fignums()), 'size', draw([0], [0])[0].size, 'same', same)"
    )
    path = PROJECT / "examples" / "draw_from_the_registry.ipynb"
    said = run(
        path,
        {"MLFLOW_TRACKING_URI": registration.tracking, "MPLBACKEND": "Agg", "PYTHONPATH": "", "OMP_NUM_THREADS": "1"},
        after,
    )
    assert "version 1 was promoted" in said
    assert "10 classes" in said
    assert said.endswith("figures 2 size (16, 16) same True\n")
