"""encode on Ray: decoders are processes of their own, on CPUs and with a device; kills change nothing of the store."""

import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest

from pipeline.artifacts import hash_file
from pipeline.config import Config
from pipeline.stages import encode
from tests.support import PROJECT
from tests.support.contexts import committed
from tests.support.encode_driver import processes
from tests.support.encoding import LocalStream, encode_config, encode_context
from tests.support.groups import Group
from tests.support.ray_head import running_head, running_worker

pytestmark = [pytest.mark.slow, pytest.mark.ray]

_SECONDS = 480.0
_KILLS = ["driver", "encoder", "decoder", "node", "encoder", "driver"]


def made_here(root: Path, *sets: str) -> tuple[Config, dict[str, str]]:
    """A config with its inputs at `root`, and the hashes of its latents, made in this process beside it."""
    for folder in (root / "undisturbed", root / "root"):
        context = encode_context(encode_config(folder, *sets), root / "scratch")
    context = encode_context(encode_config(root / "undisturbed", *sets), root / "scratch")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encode, "_encode", LocalStream())
        committed(context, encode.run(context))
    config = encode_config(root / "root", *sets)
    for lease in (root / "root" / ".work").rglob("lease.json"):
        lease.unlink()
    return config, hashes(root / "undisturbed")


def hashes(root: Path) -> dict[str, str]:
    """Of every file of the artifact but its manifest, which has times."""
    return {
        path.relative_to(root).as_posix(): hash_file(path).sha256
        for path in sorted((root / "encode").rglob("*"))
        if path.is_file() and path.name != "manifest.json"
    }


def traces(folder: Path) -> Path:
    (folder / "trace").mkdir()
    return folder / "trace"


def start(config: Config, folder: Path, *arguments: str, **environment: str) -> "subprocess.Popen[bytes]":
    (folder / "config.json").write_text(config.model_dump_json())
    command = [sys.executable, "-m", "tests.support.encode_driver", str(folder / "config.json")]
    with open(folder / "driver.log", "ab") as log:
        return subprocess.Popen(
            [*command, *arguments], cwd=PROJECT, env={**os.environ, **environment}, stdout=log, stderr=log
        )


@pytest.mark.parametrize(("gpus", "encoders", "decoders"), [(0, 2, 1), (1, 1, 2)])
def test_decoders_are_processes_of_their_own(tmp_path: Path, gpus: int, encoders: int, decoders: int) -> None:
    """As many as the pool has, at the same time: each waits for all the others. The device is none, so CPUs encode."""
    config, expected = made_here(tmp_path, "encode.shard_rows=100", "data.validation_share=0.8")
    trace = traces(tmp_path)
    driver = start(config, tmp_path, "2", str(gpus), ENCODE_TRACE=str(trace), ENCODE_TOGETHER=str(encoders * decoders))
    encoding: set[int] = set()
    while driver.poll() is None:
        encoding |= {process.pid for process in titled(psutil.Process(driver.pid), "Encoder")}
        time.sleep(0.02)
    assert driver.returncode == 0, (tmp_path / "driver.log").read_text()
    assert len(encoding) == encoders
    assert len(processes(trace)) == encoders * decoders
    assert not processes(trace) & encoding
    assert hashes(tmp_path / "root") == expected


def titled(parent: psutil.Process, title: str) -> list[psutil.Process]:
    """The workers below this process that Ray gave such a name; a worker's own children have it too at first."""
    found = []
    try:
        family = parent.children(recursive=True)
    except psutil.NoSuchProcess:
        return []
    for process in family:
        try:
            words, above = process.cmdline(), process.parent()
        except psutil.NoSuchProcess:
            continue
        if words and words[0].startswith("ray::") and title in words[0] and above and above.name() == "raylet":
            found.append(process)
    return found


class Disturbed:
    """Two nodes, a driver, and what is killed of them."""

    def __init__(self, config: Config, folder: Path, stack: ExitStack) -> None:
        self.config, self.folder, self.stack = config, folder, stack
        self.head = stack.enter_context(running_head(folder, {}, cpus=0))
        self.trace = traces(folder)
        self.nodes: list[Group] = []
        self.random = random.Random(0)
        for _ in range(2):
            self.add_node()
        self.start_driver()

    def add_node(self) -> None:
        name = f"node-{len(list(self.folder.glob('node-*.log')))}"
        environment = {"PYTHONPATH": str(PROJECT), "ENCODE_TRACE": str(self.trace), "ENCODE_PACE": "0.2"}
        self.nodes.append(self.stack.enter_context(running_worker(self.head, name, self.folder, environment)))

    def start_driver(self) -> None:
        where = {"RAY_ADDRESS": self.head.gcs, "RAY_TMPDIR": self.head.scratch}
        self.driver = start(self.config, self.folder, **self.head.environment, **where)

    def shards(self) -> int:
        return len(list((self.folder / "root" / ".work" / "encode").glob("*/shards/*.json")))

    def kill(self, victim: str) -> None:
        """In the middle of the work; AssertionError if there is nothing to kill."""
        if victim == "driver":
            assert self.driver.poll() is None, self.log()
            self.driver.kill()
            self.driver.wait()
            self.start_driver()
        elif victim == "node":
            node = self.nodes.pop(self.random.randrange(len(self.nodes)))
            assert node.process.poll() is None
            family = psutil.Process(node.process.pid).children(recursive=True)
            node.end(patience=0.0)
            _, alive = psutil.wait_procs(family, timeout=30)
            assert not alive
            self.add_node()
        else:
            title = {"encoder": "Encoder", "decoder": "decode"}[victim]
            process = self.random.choice(self.wait(lambda: self.workers(title)))
            process.kill()
            psutil.wait_procs([process], timeout=30)
            assert not process.is_running() or process.status() == psutil.STATUS_ZOMBIE

    def workers(self, title: str) -> list[psutil.Process]:
        return [found for node in self.nodes for found in titled(psutil.Process(node.process.pid), title)]

    def wait(self, condition: Callable[[], list[psutil.Process] | bool]) -> list[psutil.Process]:
        end = time.monotonic() + _SECONDS
        while not (found := condition()):
            assert self.driver.poll() is None, self.log()
            assert time.monotonic() < end, self.log()
            time.sleep(0.02)
        return found if isinstance(found, list) else []

    def log(self) -> str:
        return (self.folder / "driver.log").read_text()[-4000:]


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as opened:
        yield opened


@pytest.mark.timeout(2400)
def test_six_kills_change_nothing_of_the_store(tmp_path: Path, stack: ExitStack) -> None:
    """Each after another shard was written, and before the last one is."""
    sets = ("encode.shard_rows=24", "data.validation_share=0.6", "cluster.encode_actors=3")
    config, expected = made_here(tmp_path, *sets)
    run = Disturbed(config, tmp_path, stack)
    order = random.Random(1).sample(_KILLS, len(_KILLS))
    for victim in order:
        before = run.shards()
        run.wait(lambda before=before: run.shards() > before)  # type: ignore[misc]
        assert run.shards() < len(expected) - 1, "there is nothing left to disturb"
        run.kill(victim)
    assert run.driver.wait(_SECONDS) == 0, run.log()
    assert hashes(tmp_path / "root") == expected
