"""A command that is interrupted or finds the disk full ends in one line, leaves nothing half made, and can go on."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.support import PROJECT
from tests.support.whole_runs import arguments, attempt, one_line, sets

pytestmark = [pytest.mark.slow, pytest.mark.ray]


MANY_CHECKPOINTS = (*sets("tokenizer.steps=200", "tokenizer.checkpoint_every=10"), "--until", "train-tokenizer")


def interrupted_while_it_trains(root: Path, number: signal.Signals) -> None:
    """Send a signal to the command once it has written a checkpoint: it ends in one line, and all that it started."""
    process = subprocess.Popen(
        arguments("run", root, *MANY_CHECKPOINTS), cwd=PROJECT, start_new_session=True, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    deadline = time.monotonic() + 200
    while not list(root.glob(".work/train-tokenizer/*/checkpoints/*/state.json")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    below = psutil.Process(process.pid).children(recursive=True)
    assert below
    os.kill(process.pid, number)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    (line,) = stderr.splitlines()
    assert line.startswith("interrupted: ")
    assert not psutil.wait_procs(below, timeout=60)[1]
    assert not list(root.glob("train-tokenizer/*/manifest.json"))


def test_a_request_to_end_ends_cleanly(tmp_path: Path) -> None:
    interrupted_while_it_trains(tmp_path / "runs", signal.SIGTERM)


def test_an_interrupt_ends_cleanly_and_the_same_command_goes_on(tmp_path: Path) -> None:
    root = tmp_path / "runs"
    interrupted_while_it_trains(root, signal.SIGINT)
    done = attempt("run", root, *MANY_CHECKPOINTS)
    assert done.returncode == 0, done.stdout + done.stderr
    assert list(root.glob("train-tokenizer/*/manifest.json"))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 6 MB; skips where this user may not mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", str(folder)], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"no small disk can be mounted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk(small_disk: Path) -> None:
    """A checkpoint does not fit; once there is room the same command ends well."""
    root = small_disk / "runs"
    wide = ("tokenizer.width=256", "tokenizer.heads=4", "tokenizer.hidden=512")
    short = ("tokenizer.steps=8", "tokenizer.checkpoint_every=4", "cluster.keep_checkpoints=1")
    more = (*sets(*wide, *short), "--until", "train-tokenizer")
    done = attempt("run", root, *more)
    assert done.returncode == 1, done.stdout + done.stderr
    one_line(done.stderr, "No space left", "Free some disk space")
    assert not list(root.glob("train-tokenizer/*/manifest.json"))
    verify = [sys.executable, "-m", "pipeline", "artifact", "verify", "--root", str(root)]
    assert subprocess.run(verify, cwd=PROJECT, capture_output=True).returncode == 0
    subprocess.run(["mount", "-o", "remount,size=200m", str(small_disk)], check=True)
    done = attempt("run", root, *more)
    assert done.returncode == 0, done.stdout + done.stderr
    assert list(root.glob("train-tokenizer/*/manifest.json"))
    assert subprocess.run(verify, cwd=PROJECT, capture_output=True).returncode == 0
