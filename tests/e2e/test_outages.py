"""A whole run whose S3 fails now and then and is away for a while, and whose MLflow is killed: the same bits, and every
metric once.
"""

import json
import os
import re
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import pytest

from pipeline.tracking.mlflow import mlflow_client
from tests.support import PROJECT
from tests.support.ceph import Ceph, make_bucket
from tests.support.fault_proxy import FaultProxy, fault_proxy
from tests.support.mlflow_server import MlflowServer, running_mlflow
from tests.support.whole_runs import ENVIRONMENT, TINY, sets

pytestmark = [pytest.mark.slow, pytest.mark.ray]

BUCKET = "outages"
OUTAGE_SECONDS = 30.0  # longer than botocore's own attempts, and than what a lease's heartbeat leaves out


@dataclass(frozen=True)
class World:
    """S3 as it is, the proxy that the run goes through, and MLflow, whose artifacts lie on S3 too."""

    s3: Any
    proxy: FaultProxy
    mlflow: MlflowServer
    environment: dict[str, str]

    def paths(self) -> list[str]:
        pages = self.s3.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix="runs/")
        return [item["Key"].removeprefix("runs/") for page in pages for item in page.get("Contents", [])]

    def read(self, path: str) -> bytes:
        content: bytes = self.s3.get_object(Bucket=BUCKET, Key=f"runs/{path}")["Body"].read()
        return content


@pytest.fixture
def world(tmp_path: Path, ceph: Ceph, database: Callable[[], str]) -> Iterator[World]:
    environment = ceph.add_user(f"outages{uuid.uuid4().hex[:6]}")
    make_bucket(environment, BUCKET)
    s3 = boto3.session.Session().client(
        "s3", endpoint_url=environment["AWS_ENDPOINT_URL"], region_name=environment["AWS_DEFAULT_REGION"],
        aws_access_key_id=environment["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=environment["AWS_SECRET_ACCESS_KEY"],
    )  # fmt: skip
    with fault_proxy(environment["AWS_ENDPOINT_URL"]) as proxy:
        environment = {**environment, "AWS_ENDPOINT_URL": proxy.url}
        with running_mlflow(tmp_path, database(), f"s3://{BUCKET}/mlflow", **environment) as mlflow:
            yield World(s3, proxy, mlflow, environment)


def command(root: str, mirror: Path, uri: str) -> list[str]:
    given = sets(*TINY, f"cluster.mirror={mirror}", f"tracking.uri={uri}")
    return [sys.executable, "-m", "pipeline", "run", "quickstart", *given, "--root", root]


def wait_for(found: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    end = time.monotonic() + 300
    while not found():
        assert process.poll() is None, "it ended before it could be disturbed"
        assert time.monotonic() < end
        time.sleep(0.2)


def has_checkpoint(world: World, stage: str) -> bool:
    checkpoint = re.compile(rf"\.work/{stage}/\w+/checkpoints/\d+/state\.json")
    return any(checkpoint.fullmatch(path) for path in world.paths())


def hashes(manifests: list[dict[str, Any]]) -> dict[str, str]:
    """Of every file of every artifact."""
    return {f"{m['stage']}/{path}": record["sha256"] for m in manifests for path, record in m["files"].items()}


@pytest.mark.timeout(1200)
def test_a_run_through_outages(world: World, tmp_path: Path, undisturbed: Path) -> None:
    world.proxy.fail(0.05, seed=7)
    environment = {**os.environ, **ENVIRONMENT, "XDG_CACHE_HOME": str(tmp_path / "cache"), **world.environment}
    process = subprocess.Popen(
        command(f"s3://{BUCKET}/runs", tmp_path / "mirror", world.mlflow.uri), cwd=PROJECT, text=True, env=environment,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        wait_for(lambda: has_checkpoint(world, "train-tokenizer"), process)
        world.mlflow.kill()
        wait_for(lambda: has_checkpoint(world, "train-sit"), process)
        world.proxy.outage(OUTAGE_SECONDS)
        threading.Thread(target=world.mlflow.start).start()
        out, err = process.communicate(timeout=600)
    finally:
        process.kill()
    assert process.returncode == 0, out + err
    assert "events for MLflow are undelivered" not in out
    assert {"500", "503", "reset", "lost", "truncated"} <= world.proxy.counts.keys()
    paths = world.paths()
    assert not [path for path in paths if path.startswith(".work/tracking/")]
    for stage, prefix in (("train-tokenizer", "tokenizer"), ("train-sit", "sit")):
        (history,) = [path for path in paths if path.startswith(f"{stage}/") and path.endswith("/history.jsonl")]
        assert delivered(world, stage, prefix) == told(world.read(history), prefix)
    disturbed = [json.loads(world.read(path)) for path in paths if path.endswith("/manifest.json")]
    in_peace = [json.loads(path.read_text()) for path in undisturbed.glob("*/*/manifest.json")]
    assert hashes(disturbed) == hashes(in_peace)


def told(history: bytes, prefix: str) -> list[tuple[str, int, float]]:
    """Name, step and value of what a trainer's history holds."""
    lines = [json.loads(line) for line in history.splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 121))
    return sorted(
        (f"{prefix}/{name}", line["step"], value)
        for line in lines
        for name, value in line.items()
        if name != "step" and value is not None
    )


def delivered(world: World, stage: str, prefix: str) -> list[tuple[str, int, float]]:
    """The same of what MLflow holds, without what the machine's speed decides."""
    client = mlflow_client(world.mlflow.uri)
    experiment = client.get_experiment_by_name("denoising-vae")
    runs = client.search_runs([experiment.experiment_id], f"tags.`dvae.stage` = '{stage}'")
    (run,) = runs
    measured = {f"{prefix}/{name}" for name in ("images_per_second", "step_seconds", "data_wait_share", "mfu")}
    names = [name for name in run.data.metrics if name.startswith(f"{prefix}/") and name not in measured]
    histories = [client.get_metric_history(run.info.run_id, name) for name in names]
    return sorted((metric.key, metric.step, metric.value) for history in histories for metric in history)
