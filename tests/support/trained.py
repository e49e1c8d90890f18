"""What a trainer leaves at the root while it trains, and at its end, for tests that disturb it."""

import json
import re
import time

from pipeline.storage.uri import open_storage


def steps(root: str) -> int:
    """How many the tokenizer's trainer has made, as it says itself; 0 before it says anything, or while it mirrors."""
    storage = open_storage(root)
    for work in storage.folders(".work/train-tokenizer"):
        try:
            return int(json.loads(storage.read(f".work/train-tokenizer/{work}/progress.json")).get("step", 0))
        except FileNotFoundError:
            continue
    return 0


def wait_for_steps(root: str, number: int, seconds: float = 120) -> None:
    """Until it has made so many."""
    end = time.monotonic() + seconds
    while steps(root) < number:
        assert time.monotonic() < end, "it makes no steps"
        time.sleep(0.5)


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
