"""The whole pipeline on a Ray cluster of a head and two nodes; and again, a node lost in each stage: the same bits."""

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psutil
import pytest

from pipeline.storage import open_storage
from tests.support import PROJECT
from tests.support.ceph import Ceph, act_as, make_bucket
from tests.support.groups import Group
from tests.support.ray_head import Head, running_head, running_worker
from tests.support.stages import PLAIN
from tests.support.whole_runs import ENVIRONMENT, TINY, sets

pytestmark = [pytest.mark.slow, pytest.mark.ray]

CALM, LOSSY = "s3://nodes/calm", "s3://nodes/lossy"
_SECONDS = 300.0  # for a stage to begin its work
_ON_NODES = [stage for stage in PLAIN if stage != "register"]  # that one works in the driver, on the head


class Nodes:
    """A head without CPUs, and two nodes with one each, so that two ranks are on two nodes.

    Nodes that are lost are replaced, as Kubernetes does.
    """

    def __init__(self, folder: Path, environment: dict[str, str], stack: ExitStack) -> None:
        self.folder, self.environment, self.stack = folder, environment, stack
        self.head: Head = stack.enter_context(running_head(folder, environment, cpus=0))
        self.groups: list[Group] = []
        self.made = 0
        for _ in range(2):
            self.add()

    def add(self) -> None:
        name = f"node-{self.made}"
        self.made += 1
        environment = {**self.environment, **ENVIRONMENT, "PYTHONPATH": str(PROJECT)}
        self.groups.append(self.stack.enter_context(running_worker(self.head, name, self.folder, environment, cpus=1)))

    def busy(self) -> list[tuple[Group, set[str]]]:
        """The nodes with processes that work for the pipeline, and what these are called."""
        found = [(group, working(group)) for group in self.groups]
        return [(group, titles) for group, titles in found if titles]

    def lose(self, group: Group) -> None:
        """As by a power cut; another takes its place."""
        self.groups.remove(group)
        group.end(signal.SIGKILL)
        self.add()

    def start(self, root: str) -> subprocess.Popen[str]:
        given = sets(
            *TINY, "cluster.workers=2", "cluster.cpus_per_worker=1", f"cluster.mirror={self.folder / 'mirror'}"
        )
        command = [sys.executable, "-m", "pipeline", "run", "quickstart", *given, "--root", root]
        where = {"RAY_ADDRESS": self.head.gcs, "RAY_TMPDIR": self.head.scratch, "XDG_CACHE_HOME": str(self.folder)}
        environment = {**os.environ, **self.environment, **ENVIRONMENT, **self.head.environment, **where}
        environment["MLFLOW_TRACKING_URI"] = f"sqlite:///{self.folder}/{uuid.uuid4().hex}.db"
        log = (self.folder / f"{root.rpartition('/')[2]}.log").open("w")
        return subprocess.Popen(command, cwd=PROJECT, env=environment, stdout=log, stderr=log, text=True)


def working(group: Group) -> set[str]:
    """Titles of Ray's processes on a node that are busy with tasks or actors of the pipeline."""
    titles = set[str]()
    for process in psutil.Process(group.process.pid).children(recursive=True):
        try:
            title = " ".join(process.cmdline()[:1])
        except psutil.Error:
            continue
        if title.startswith("ray::") and not any(own in title for own in ("IDLE", "Agent", "ray::SPILL", "RESTORE")):
            titles.add(title)
    return titles


@pytest.fixture
def nodes(tmp_path: Path, ceph: Ceph) -> Iterator[Nodes]:
    environment = ceph.add_user(f"nodes{uuid.uuid4().hex[:6]}")
    make_bucket(environment, "nodes")
    with ExitStack() as stack:
        yield Nodes(tmp_path, environment, stack)


def manifests(root: str) -> dict[str, dict[str, Any]]:
    storage = open_storage(root)
    paths = [entry.path for entry in storage.list() if entry.path.endswith("/manifest.json")]
    return {path.partition("/")[0]: json.loads(storage.read(path)) for path in paths}


def hashes(root: str) -> dict[str, str]:
    return {
        f"{stage}/{path}": file["sha256"] for stage, m in manifests(root).items() for path, file in m["files"].items()
    }


@pytest.mark.timeout(1800)
def test_a_node_is_lost_in_each_stage(nodes: Nodes, monkeypatch: pytest.MonkeyPatch) -> None:
    act_as(monkeypatch, nodes.environment)
    calm, spread = nodes.start(CALM), set[int]()
    while calm.poll() is None:
        spread.add(sum("ray::RayTrainWorker" in " ".join(titles) for _, titles in nodes.busy()))
        time.sleep(0.5)
    assert calm.returncode == 0, (nodes.folder / "calm.log").read_text()[-3000:]
    assert max(spread) == 2, "the ranks of a trainer were never on two nodes"
    lossy = nodes.start(LOSSY)
    for stage in _ON_NODES:
        lose_in(nodes, lossy, stage)
    assert lossy.wait(_SECONDS) == 0, (nodes.folder / "lossy.log").read_text()[-3000:]
    assert hashes(LOSSY) == hashes(CALM)


def lose_in(nodes: Nodes, driver: "subprocess.Popen[str]", stage: str) -> None:
    """Wait until the stage works on some node, a trainer until it has a checkpoint, and lose that node."""
    storage, end = open_storage(LOSSY), time.monotonic() + _SECONDS
    trains = stage.startswith("train")
    sign = "/state.json" if trains else "/lease.json"
    while True:
        begun = any(entry.path.endswith(sign) for entry in storage.list(f".work/{stage}"))
        busy = [group for group, titles in nodes.busy() if not trains or "ray::RayTrainWorker" in " ".join(titles)]
        if begun and busy:
            nodes.lose(busy[0])
            return
        assert driver.poll() is None, (nodes.folder / "lossy.log").read_text()[-3000:]
        assert time.monotonic() < end, f"{stage}: no node was at work"
        time.sleep(0.1)
