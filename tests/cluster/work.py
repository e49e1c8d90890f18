"""Work on an installation, as somebody outside submits it, and what it leaves at the root."""

import io
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import boto3
import pyarrow.parquet as pq

from pipeline.storage.uri import open_storage
from tests.cluster.installation import BUCKET, DASHBOARD, NAMESPACE, Installation
from tests.cluster.programs import PROJECT
from tests.support.trained import steps, wait_for_steps, weights

_DISTURBED_AT = 100  # of 400 steps
# A tokenizer that trains for a minute or so, with checkpoints on the way.
TRAINING = ("tokenizer.steps=400", "tokenizer.checkpoint_every=40", "tokenizer.log_every=10")


def command(*words: str, sets: tuple[str, ...] = ()) -> list[str]:
    """`python -m deploy WORDS`, with these settings."""
    return [sys.executable, "-m", "deploy", *words, *(word for one in sets for word in ("--set", one))]


def submission(root: str, *words: str, sets: tuple[str, ...] = (), attempts: int = 1) -> list[str]:
    where = ("--address", DASHBOARD, "--root", root, "--attempts", str(attempts))
    return command("submit", *words, *where, sets=sets)


def start(place: Installation, words: list[str]) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        words, cwd=PROJECT, env=place.environment, text=True, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def ended(process: "subprocess.Popen[str]", seconds: float = 900) -> tuple[int, str, str]:
    out, error = process.communicate(timeout=seconds)
    return process.returncode, out, error


def done(place: Installation, words: list[str], seconds: float = 900) -> str:
    """What it says on both streams. AssertionError unless it exits with 0."""
    code, out, error = ended(start(place, words), seconds)
    assert code == 0, f"{code}\n{out}\n{error}\n{place.state()}"
    return out + error


def kill(place: Installation, selector: str) -> None:
    """Every such pod, as a node that is gone: no notice, no grace."""
    pods = place.pods(selector)
    assert pods, f"there is nothing to kill: {selector}"
    for pod in pods:
        place.kubectl("delete", "pod", pod["metadata"]["name"], "--grace-period=0", "--force")


def disturbed(
    place: Installation, root: str, disturb: Callable[[], None], sets: tuple[str, ...] = TRAINING
) -> dict[str, str]:
    """Train there; in the middle of it, this happens. The files that the training ends with.

    It has to go on from a checkpoint: one that begins anew would end with the same bits too.
    """
    done(place, submission(root, "stage", "prepare", "quickstart", sets=sets))
    training = start(place, submission(root, "stage", "train-tokenizer", "quickstart", sets=sets, attempts=5))
    made: list[int] = []
    try:
        wait_for_steps(root, _DISTURBED_AT, 300)
        watch = threading.Thread(target=_watch, args=(root, training, made), daemon=True)
        watch.start()
        disturb()
        code, out, error = ended(training)
        watch.join()
    finally:
        training.kill()
    assert code == 0, f"{out}\n{error}\n{place.state()}"
    assert "✓ train-tokenizer" in out
    assert min(made) >= _DISTURBED_AT // 2, f"it began anew: {made}"
    return weights(root)


def _watch(root: str, training: "subprocess.Popen[str]", made: list[int]) -> None:
    """The steps that it says it has made, for as long as it goes on: at its end they are gone."""
    while training.poll() is None:
        if step := steps(root):
            made.append(step)
        time.sleep(0.5)


def rayjob(root: str, *words: str, sets: tuple[str, ...] = (), more: tuple[str, ...] = ()) -> list[str]:
    return command("rayjob", *words, "--namespace", NAMESPACE, "--root", root, *more, sets=sets)


def keys(root: str, stage: str, files: str = "*.parquet") -> list[str]:
    """Of every row of such files of the stage's one artifact, shard by shard."""
    storage = open_storage(root)
    (name,) = storage.folders(stage)
    paths = sorted(entry.path for entry in storage.list(f"{stage}/{name}") if Path(entry.path).match(files))
    tables = [pq.read_table(io.BytesIO(storage.read(path)), columns=["key"]) for path in paths]
    return [key for table in tables for key in table.column("key").to_pylist()]


def encoded_shards(root: str) -> int:
    """How many an encoding that goes on has written."""
    storage = open_storage(root)
    return sum(len(list(storage.list(f".work/encode/{name}/shards"))) for name in storage.folders(".work/encode"))


def objects(prefix: str) -> set[str]:
    """Names in the bucket."""
    client: Any = boto3.client("s3")
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=prefix)
    return {entry["Key"] for page in pages for entry in page.get("Contents", [])}
