"""What a trainer leaves at the root while it trains, and at its end, for tests that disturb it."""

import json
import re
import time

from pipeline.storage import open_storage


def wait_for_steps(root: str, steps: int, seconds: float = 120) -> None:
    """Until the tokenizer's trainer says that it has made so many."""
    storage = open_storage(root)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for work in storage.folders(".work/train-tokenizer"):
            try:
                line = json.loads(storage.read(f".work/train-tokenizer/{work}/progress.json"))
            except FileNotFoundError:
                continue
            if line["step"] >= steps:
                return
        time.sleep(0.5)
    raise AssertionError("it makes no steps")


def checkpoints(root: str) -> set[int]:
    """Steps of which there is one."""
    storage = open_storage(root)
    (work,) = storage.folders(".work/train-tokenizer")
    paths = [entry.path for entry in storage.list(f".work/train-tokenizer/{work}/checkpoints")]
    return {int(number) for path in paths for number in re.findall(r"checkpoints/0*(\d+)", path)}


def weights(root: str) -> dict[str, str]:
    """The trained tokenizer's files that have to be the same to the bit, with their hashes."""
    storage = open_storage(root)
    (name,) = storage.folders("train-tokenizer")
    files = json.loads(storage.read(f"train-tokenizer/{name}/manifest.json"))["files"]
    return {path: record["sha256"] for path, record in files.items() if path.endswith((".safetensors", ".jsonl"))}
