"""Whole runs by the command line, of tiny networks: all stages in a minute or two."""

import os
import subprocess
import sys
from pathlib import Path

from tests.support import PROJECT
from tests.support.trainers import SETS

TINY = [
    *SETS, "tokenizer.steps=120", "tokenizer.checkpoint_every=20", "sit.steps=120", "sit.checkpoint_every=20",
    "sample.count=20", "sample.steps=4", "register.gate.minimum=0", "evaluate.images=64",
    "evaluate.reference_images=128",
]  # fmt: skip
ENVIRONMENT = {"DVAE_GIT_SHA": "tests"}  # it goes into the model's card, which has to be the same


def sets(*pairs: str) -> list[str]:
    return [word for pair in pairs for word in ("--set", pair)]


def arguments(command: str, root: Path, *more: str) -> list[str]:
    mirror = f"cluster.mirror={root.parent / 'mirror'}"
    return [sys.executable, "-m", "pipeline", command, "quickstart", *sets(*TINY, mirror), "--root", str(root), *more]


def attempt(command: str, root: Path, *more: str) -> subprocess.CompletedProcess[str]:
    """Run it to its end, whatever that is; MLflow is at the root."""
    environment = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"}
    return subprocess.run(
        arguments(command, root, *more), cwd=PROJECT, env={**environment, **ENVIRONMENT}, text=True,
        capture_output=True, timeout=600,
    )  # fmt: skip


def call(command: str, root: Path, *more: str) -> subprocess.CompletedProcess[str]:
    done = attempt(command, root, *more)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def one_line(stderr: str, *said: str) -> str:
    (line,) = stderr.splitlines()
    assert line.startswith("error: "), line
    for text in said:
        assert text in line, line
    return line
