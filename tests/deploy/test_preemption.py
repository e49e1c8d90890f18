"""A node that is taken away: drained as a pod's preStop hook does, the trainer saves, and Ray moves it to another."""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from pipeline.storage import open_storage
from pipeline.training.worker import train_as
from pipeline.training.world import World
from tests.deploy.test_submit import ended, submit
from tests.support import PROJECT
from tests.support.artifacts import config_at, prepared
from tests.support.groups import Group
from tests.support.ray_head import Head, running_head, running_worker
from tests.support.trained import checkpoints, steps, wait_for_steps, weights
from tests.support.trainers import SETS, job_of, put_lease

pytestmark = [pytest.mark.slow, pytest.mark.ray]
LONG = ("tokenizer.steps=1000", "tokenizer.checkpoint_every=999", "cluster.cpus_per_worker=1")


@pytest.fixture
def pods(tmp_path: Path, s3_endpoint: str) -> Iterator[tuple[Head, dict[str, Group]]]:
    """A head that takes no work, as the chart's, and two workers."""
    keys = {"AWS_ENDPOINT_URL": s3_endpoint, "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1", "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db"}  # fmt: skip
    with (
        running_head(tmp_path, keys, cpus=0) as head,
        running_worker(head, "one", tmp_path, keys) as one,
        running_worker(head, "two", tmp_path, keys) as two,
    ):
        yield head, {"one": one, "two": two}


def ask(head: Head, path: str) -> list[dict[str, object]]:
    headers = {"Authorization": f"Bearer {head.token}"}
    told = requests.get(f"{head.address}/api/v0/{path}", headers=headers, timeout=30)
    told.raise_for_status()
    rows: list[dict[str, object]] = told.json()["data"]["result"]["result"]
    return rows


def trains_on(head: Head, group: dict[str, Group]) -> str:
    """The pod that has the training worker."""
    import psutil

    for _ in range(240):
        workers = [one for one in ask(head, "actors?detail=true") if "RayTrainWorker" in str(one["class_name"])]
        alive = [one for one in workers if one["state"] == "ALIVE"]
        for pid in (int(str(one["pid"])) for one in alive):
            environment = psutil.Process(pid).environ()
            return environment["RAY_CLOUD_INSTANCE_ID"]
        time.sleep(0.5)
    raise AssertionError("nothing trains")


def undisturbed(folder: Path) -> dict[str, str]:
    """The files of the same training in this process, without Ray, and their hashes."""
    config = config_at(folder, "quickstart", *SETS, *LONG)
    job = job_of(config, "train-tokenizer", {"prepare": prepared(config)})
    put_lease(job)
    train_as(World.alone(), job)
    result = json.loads(open_storage(config.root).read(f"{job.work}/result.json"))
    return {name: record["sha256"] for name, record in result["files"].items()}


def test_the_trainer_moves_and_ends_with_the_same_bits(pods, s3_root, tmp_path):
    head, groups = pods
    there = f"{s3_root}/moved"
    assert ended(submit(head, there, "stage", "prepare", "quickstart", sets=LONG))[0] == 0
    training = submit(head, there, "stage", "train-tokenizer", "quickstart", sets=LONG)
    pod = trains_on(head, groups)
    wait_for_steps(there, 100)

    (tmp_path / "site.yaml").write_text(f"root: {there}\n")
    place = {"RAY_CLOUD_INSTANCE_ID": pod, "DVAE_SITE": str(tmp_path / "site.yaml"), "RAY_TMPDIR": head.scratch}
    drained = subprocess.run(
        [sys.executable, "-m", "deploy", "drain", "--seconds", "12"], cwd=PROJECT, text=True, capture_output=True,
        env={**os.environ, **head.environment, **place}, timeout=90,
    )  # fmt: skip
    assert drained.returncode == 0, drained.stderr
    assert re.search(r"draining node \w+ for \d+ s", drained.stderr), drained.stderr
    groups[pod].end()  # the pod's end
    made, saved = steps(there), checkpoints(there)
    assert 100 <= made < 999, "it was on its way when its node went"
    assert made - max(saved) <= 50, "five lines: by its own rhythm there would be no checkpoint yet"
    code, out, error = ended(training)
    assert code == 0, out + error
    assert "✓ train-tokenizer" in out

    assert weights(there) == undisturbed(tmp_path / "undisturbed")
