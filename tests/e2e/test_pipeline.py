"""The command line from end to end, on real processes: a whole run, a cached one, kills of driver and workers."""

import io
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.support import PROJECT
from tests.support.stages import PLAIN
from tests.support.whole_runs import ENVIRONMENT, arguments, call

pytestmark = [pytest.mark.slow, pytest.mark.ray]


def contents(root: Path, stage: str) -> dict[str, str]:
    """Hashes of what a stage has made: images or latents, or weights and history."""
    (manifest,) = (root / stage).glob("*/manifest.json")
    hashes = {
        name: record["sha256"]
        for name, record in json.loads(manifest.read_text())["files"].items()
        if name.endswith((".parquet", ".safetensors", ".jsonl"))
    }
    assert hashes
    return hashes


def copy_stages(undisturbed: Path, root: Path, before: str) -> None:
    """The artifacts of all stages before this one."""
    for stage in PLAIN[: PLAIN.index(before)]:
        shutil.copytree(undisturbed / stage, root / stage)


def test_whole_run_then_cached(undisturbed: Path) -> None:
    begin = time.monotonic()
    done = call("run", undisturbed)
    assert done.stdout.count("cached") == 11
    assert time.monotonic() - begin < 30
    report = json.loads(call("report", undisturbed, "--json").stdout)
    assert {stage["status"] for stage in report["stages"].values()} == {"cached"}
    wanted = {"reconstruction/psnr", "reconstruction/psnr_level3", "samples/class_accuracy"}
    assert wanted <= report["metrics"].keys()
    assert any(name.startswith("samples/frechet_distance/") for name in report["metrics"])
    assert not (undisturbed / ".work" / "train-sit").exists() or not any(
        (undisturbed / ".work" / "train-sit").iterdir()
    )


def test_the_champion_draws(undisturbed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import mlflow
    import pandas
    from PIL import Image

    # By the environment: mlflow.set_tracking_uri would hold for every later test of this process.
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{undisturbed}/mlflow.db")
    model = mlflow.pyfunc.load_model("models:/denoising-vae@champion")
    pictures = model.predict(pandas.DataFrame({"label": [3, 7], "seed": [0, 1]}), params={"steps": 2})["image"]
    assert [Image.open(io.BytesIO(picture)).size for picture in pictures] == [(32, 32), (32, 32)]


def test_runs_and_figures_are_in_mlflow(undisturbed: Path) -> None:
    from pipeline.tracking.mlflow import mlflow_client

    client = mlflow_client(f"sqlite:///{undisturbed}/mlflow.db")
    experiment = client.get_experiment_by_name("denoising-vae")
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    parents = {
        run.data.tags.get("mlflow.parentRunId") for name, run in runs.items() if not name.startswith("quickstart")
    }
    assert len(runs) == 12
    assert len(parents) == 1
    steps = [metric.step for metric in client.get_metric_history(runs["train-sit"].info.run_id, "sit/loss")]
    assert sorted(set(steps)) == list(range(1, 121))
    assert {"sit/mfu", "sit/images_per_second", "sit/data_wait_share"} <= runs["train-sit"].data.metrics.keys()
    assert runs["train-sit"].inputs.dataset_inputs
    figures = {stage: client.list_artifacts(run.info.run_id, "figures") for stage, run in runs.items()}
    assert {stage for stage, files in figures.items() if files} == {
        "train-tokenizer", "evaluate-tokenizer", "analyze", "train-sit", "sample",
    }  # fmt: skip


def test_sample_writes_pictures(undisturbed: Path, tmp_path: Path) -> None:
    call("sample", undisturbed, "--class", "4", "--n", "3", "--guidance", "2", "--out", str(tmp_path))
    assert len(list(tmp_path.glob("*.png"))) == 3


def test_verify_and_repair(undisturbed: Path, tmp_path: Path) -> None:
    root = tmp_path / "runs"
    copy_stages(undisturbed, root, before="sample")
    (weights,) = (root / "train-sit").glob("*/weights.safetensors")
    sets = ["--root", str(root)]
    base = [sys.executable, "-m", "pipeline", "artifact"]
    before = contents(root, "train-sit")
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    found = subprocess.run([*base, "verify", *sets], cwd=PROJECT, text=True, capture_output=True)
    assert found.returncode == 1
    assert "broken: weights.safetensors" in found.stdout
    name = f"train-sit/{weights.parent.name}"
    repaired = subprocess.run([*base, "repair", name, *sets], cwd=PROJECT, text=True, capture_output=True, timeout=300)
    assert repaired.returncode == 0, repaired.stdout + repaired.stderr
    assert "restored" in repaired.stdout
    assert contents(root, "train-sit") == before
    assert subprocess.run([*base, "verify", *sets], cwd=PROJECT).returncode == 0


def start(root: Path, undisturbed: Path, moment: str) -> subprocess.Popen[bytes]:
    """A run of one stage; those before it are there already, as another run has made them."""
    stage = MOMENTS[moment][0]
    copy_stages(undisturbed, root, before=stage)
    command = arguments("run", root, "--until", stage)
    return subprocess.Popen(
        command, cwd=PROJECT, env={**os.environ, **ENVIRONMENT}, start_new_session=True, stdout=subprocess.DEVNULL,
        stderr=subprocess.STDOUT,
    )  # fmt: skip


def when(root: Path, pattern: str, process: subprocess.Popen[bytes]) -> None:
    """Wait until a file of this pattern lies at the root."""
    deadline = time.monotonic() + 300
    while not any(root.glob(pattern)):
        assert process.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.05)


def family(process: subprocess.Popen[bytes]) -> Iterator[psutil.Process]:
    yield from psutil.Process(process.pid).children(recursive=True)


MOMENTS = {  # the stage, and what shows that it is at work
    "prepare": ("prepare", "prepare/*/shards"),
    "tokenizer": ("train-tokenizer", ".work/train-tokenizer/*/checkpoints/*020/state.json"),
    "encode": ("encode", ".work/encode/*/lease.json"),
    "sit": ("train-sit", ".work/train-sit/*/checkpoints/*040/state.json"),
}


_left: list[psutil.Process] = []  # the processes below the drivers that were killed


@pytest.mark.parametrize("moment", ["prepare", "tokenizer", "encode"])
def test_killed_driver(undisturbed: Path, tmp_path: Path, moment: str) -> None:
    """The same command, at once, comes to the same bits."""
    root = tmp_path / "runs"
    process = start(root, undisturbed, moment)
    when(root, MOMENTS[moment][1], process)
    _left.extend(family(process))
    process.kill()
    process.wait()
    stage = MOMENTS[moment][0]
    call("run", root, "--until", stage)
    assert contents(root, stage) == contents(undisturbed, stage)


def test_nothing_stays_behind_killed_drivers() -> None:
    """Ray's own agents take about a minute to notice: those of all the drivers above, together."""
    assert _left
    _, alive = psutil.wait_procs(_left, timeout=120)
    assert not alive


def test_killed_train_controller(undisturbed: Path, tmp_path: Path) -> None:
    root = tmp_path / "runs"
    process = start(root, undisturbed, "sit")
    when(root, MOMENTS["sit"][1], process)
    (controller,) = [p for p in family(process) if "TrainController" in " ".join(p.cmdline())]
    controller.kill()
    assert process.wait(timeout=500) == 0
    assert contents(root, "train-sit") == contents(undisturbed, "train-sit")


def test_two_workers_are_the_same_experiment(undisturbed: Path) -> None:
    done = call("run", undisturbed, "--set", "cluster.workers=2")
    assert done.stdout.count("cached") == 11
