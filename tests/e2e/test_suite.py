"""A suite from end to end, on real processes: killed on the way, with a row that fails, to the report."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from tests.support import PROJECT
from tests.support.whole_runs import TINY, one_line

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.timeout(1200)]

NOWHERE = "12" * 32  # a tokenizer that nobody has imported
UNTOLD = {f"tokenizer.{name}": None for name in ("width", "depth", "heads", "hidden")}
SUITE: dict[str, Any] = {
    "title": "Does alignment help?",
    "rows": [
        {"name": "none", "preset": "quickstart", "set": {"sit.alignment": "none"}, "printed": {"distance": 17.65}},
        {"name": "lost", "preset": "quickstart", "at": {"digits": {**UNTOLD, "tokenizer.imported": NOWHERE}}},
        {"name": "fda", "preset": "quickstart", "set": {"sit.alignment": "fda"}, "printed": {"distance": 14.34}},
    ],
    "columns": [{"name": "distance", "metric": "samples/frechet_distance/efficientnet_lite0"}],
    "order": [{"column": "distance", "rows": ["fda", "none"]}],
    "pictures": ["grids", "losses", "reconstructions"],
}


def written(folder: Path) -> Path:
    """The suite of tiny networks; what the imported tokenizer would refuse is set for the other rows alone."""
    of_training = dict(pair.split("=", 1) for pair in TINY)
    everywhere = {key: yaml.safe_load(value) for key, value in of_training.items() if not key.startswith("tokenizer.")}
    trained = {key: yaml.safe_load(value) for key, value in of_training.items() if key.startswith("tokenizer.")}
    rows = [{**row, "at": row.get("at", {"digits": trained})} for row in SUITE["rows"]]
    path = folder / "mysweep.yaml"
    path.write_text(yaml.safe_dump({**SUITE, "rows": rows, "scales": {"digits": {"set": everywhere}}}))
    return path


def command(suite: Path, root: Path, *more: str) -> list[str]:
    mirror = f"cluster.mirror={root.parent / 'mirror'}"
    words = ["suite", "run", str(suite), "--set", mirror, "--root", str(root), *more]
    return [sys.executable, "-m", "pipeline", *words]


def killed_while_it_trains(suite: Path, root: Path) -> None:
    """Kill the command once its first run has a checkpoint: what it started ends as well, and leaves the checkpoint."""
    process = subprocess.Popen(
        command(suite, root), cwd=PROJECT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    deadline = time.monotonic() + 300
    while not list(root.glob(".work/train-tokenizer/*/checkpoints/*/state.json")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.1)
    (run,) = psutil.Process(process.pid).children()
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    _, alive = psutil.wait_procs([run], timeout=60)
    assert alive == []


def test_killed_with_a_row_that_fails_to_the_report(tmp_path: Path) -> None:
    suite, root = written(tmp_path), tmp_path / "runs"
    killed_while_it_trains(suite, root)
    assert list(root.glob(".work/train-tokenizer/*/checkpoints/*/state.json"))
    done = subprocess.run(command(suite, root), cwd=PROJECT, text=True, capture_output=True, timeout=1000, check=False)
    assert done.returncode == 1, done.stdout + done.stderr
    line = one_line(done.stderr, "1 of 3 runs failed", "lost, seed 0: tokenizer.imported 121212121212 is not at ")
    assert "`python -m pipeline run quickstart --until evaluate-samples " in line
    assert "none, seed 0" in done.stdout

    runs = json.loads((root / "suites" / "mysweep-digits.json").read_text())["runs"]
    assert sorted(run["row"] for run in runs.values()) == ["fda", "none"]
    assert len(list((root / "train-tokenizer").iterdir())) == 1, "both rows have one tokenizer"
    assert len(list((root / "train-sit").iterdir())) == 2
    page = (root / "suites" / "mysweep-digits" / "index.html").read_text()
    assert page.count("data:image/png;base64,") == 4  # two grids, the losses of both, one tokenizer's reconstructions
    assert "14.34" in page
    assert (root / "suites" / "mysweep-digits" / "figure4.svg").read_bytes().startswith(b"<?xml")

    begin = time.monotonic()
    again = command(suite, root, "--rows", "none", "--rows", "fda")
    done = subprocess.run(again, cwd=PROJECT, text=True, capture_output=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert "2 of 2 runs are recorded" in done.stdout
    assert time.monotonic() - begin < 120
