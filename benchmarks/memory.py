"""Does memory grow with the rows? Synthetic images are prepared, encoded and read, with a look at every process.

Run: python -m benchmarks.memory [--rows 100000]. For each process of a stage, and for a reader of the mirror: the most
private memory (resident, without what is shared: Ray's object store and mapped files) around 10% of the rows and at
their end, in MiB.
"""

import argparse
import io
import multiprocessing
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from benchmarks.common import save
from pipeline.artifacts import Manifest
from pipeline.config import Config, load_config
from pipeline.data.loader import ImageLoader, LatentLoader, Prefetcher
from pipeline.storage.uri import open_storage
from pipeline.training.examples import reading_plan, training_images, training_latents
from pipeline.training.world import World
from pipeline.workflow import artifacts_of, resolved, survey

_FILE_ROWS, _GROUP_ROWS = 10_000, 500
_CLASSES = 10
_POLL_SECONDS = 0.2
_TIMES = {"early": (0.08, 0.2), "late": (0.9, 1.0)}  # shares of the rows
_BATCH = 100
_MIB = 2**20
_SETS = (
    "data.format=parquet", f"data.classes={_CLASSES}", "data.image_size=32", "data.horizontal_flip=false",
    "data.validation_share=0.02", "tokenizer.width=16", "tokenizer.depth=1", "tokenizer.heads=2",
    "tokenizer.hidden=24", "tokenizer.steps=2", "tokenizer.batch_size=12", "tokenizer.discriminator_width=8",
    "encode.canary_margin=60",
)  # fmt: skip

Peaks = dict[str, dict[str, float]]
"""Process -> MiB at the `early` and at the `late` rows, and their ratio."""


def write_source(folder: Path, rows: int) -> None:
    """Different images of 32 pixels in the Hugging Face layout; compresses well, so that many are written soon."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    for start in range(0, rows, _FILE_ROWS):
        numbers = range(start, min(start + _FILE_ROWS, rows))
        images = [{"bytes": _image(random), "path": None} for _ in numbers]
        table = pa.table({"image": pa.array(images, kind), "label": [number % _CLASSES for number in numbers]})
        pq.write_table(table, folder / f"{start:08d}.parquet", row_group_size=_GROUP_ROWS)


def _image(random: np.random.Generator) -> bytes:
    coarse = random.integers(0, 256, (8, 8, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(coarse.repeat(4, 0).repeat(4, 1)).save(file, "PNG", compress_level=1)
    return file.getvalue()


def stage_peaks(stage: str, root: Path, words: list[str], units: int) -> Peaks:
    """Run a stage of `units` tasks or shards as a command, and watch it and the processes that it starts."""
    with subprocess.Popen(
        [sys.executable, "-m", "pipeline", "stage", stage, "quickstart", *words], stdout=subprocess.DEVNULL
    ) as command:
        watch = Watch()
        while command.poll() is None:
            watch.look(command.pid, len(list(root.glob(f".work/{stage}/*/*/0*.json"))) / units)
            time.sleep(_POLL_SECONDS)
    if command.returncode:
        raise RuntimeError(f"{stage} failed")
    return watch.peaks()


class Watch:
    """The most private memory of each kind of process, early and late in the rows."""

    def __init__(self) -> None:
        self._most: dict[str, dict[str, float]] = defaultdict(dict)

    def look(self, pid: int, done: float) -> None:
        """Note the memory of a command and its descendants when this share of the rows is done."""
        when = next((name for name, (low, high) in _TIMES.items() if low <= done <= high), None)
        if when is None:
            return
        for process in _family(pid):
            with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                if role := _role(process, pid):
                    self.note(role, when, process)

    def note(self, role: str, when: str, process: psutil.Process) -> None:
        memory = process.memory_info()
        private = (memory.rss - memory.shared) / _MIB
        self._most[role][when] = max(private, self._most[role].get(when, 0.0))

    def peaks(self) -> Peaks:
        """Of the processes that were there at both times."""
        return {
            role: {**{name: round(value, 1) for name, value in most.items()}, "ratio": most["late"] / most["early"]}
            for role, most in self._most.items()
            if most.keys() == {"early", "late"}
        }


def _family(pid: int) -> list[psutil.Process]:
    with suppress(psutil.NoSuchProcess):
        command = psutil.Process(pid)
        return [command, *command.children(recursive=True)]
    return []


def _role(process: psutil.Process, driver: int) -> str:
    """driver, or the task or actor of a Ray worker; empty for Ray's own processes and for workers without a task."""
    if process.pid == driver:
        return "driver"
    title = " ".join(process.cmdline()[:1]).strip()
    return title if title.startswith("ray::") and not title.startswith(("ray::IDLE", "ray::Dashboard")) else ""


def reader_peaks(stage: str, words: list[str], root: str, answers: "multiprocessing.Queue[Peaks]") -> None:
    """Read all rows of an artifact once, as a trainer does, and answer with this process's memory."""
    config, watch, own = resolved(load_config("quickstart", words, root), fresh=False), Watch(), psutil.Process()
    manifest = artifacts_of(survey(config))[stage]
    batches, steps = _batches(stage, manifest, config)
    with batches:
        for step, _ in enumerate(batches, 1):
            when = next((name for name, (low, high) in _TIMES.items() if low <= step / steps <= high), None)
            if when is not None:
                watch.note("reader", when, own)
    answers.put(watch.peaks())


def _batches(stage: str, manifest: Manifest, config: Config) -> tuple[Prefetcher[Any], int]:
    """The loader of one epoch, and its number of steps."""
    storage, group = open_storage(config.root), config.data.shard_rows
    plan = reading_plan(config, config.seed, _BATCH, group, World.alone())
    if stage == "encode":
        latents = training_latents(storage, manifest, config)
        steps = len(latents) // _BATCH
        return LatentLoader(latents, plan, start_step=0, stop_step=steps), steps
    images = training_images(storage, manifest, config)
    steps = len(images) // _BATCH
    return ImageLoader(
        images, plan, image_size=32, center_crop=True, horizontal_flip=False, start_step=0, stop_step=steps, threads=2
    ), steps


def measure(folder: Path, rows: int, units: int) -> dict[str, Peaks]:
    """The peaks of each stage and of each reader, with `units` shards."""
    source, root = folder / "source", folder / "root"
    write_source(source, rows)
    size = -(-rows // units)
    sets = [
        *_SETS, f"data.uri={source.as_uri()}", f"data.shard_rows={size}", f"encode.shard_rows={size}",
        f"cluster.mirror={folder / 'mirror'}",
    ]  # fmt: skip
    words = [word for pair in sets for word in ("--set", pair)] + ["--root", root.as_uri()]
    peaks = {"prepare": stage_peaks("prepare", root, words, units)}
    stage_peaks("train-tokenizer", root, words, units)
    peaks["encode"] = stage_peaks("encode", root, words, units)
    context = multiprocessing.get_context("spawn")
    for stage in ("prepare", "encode"):
        answers: multiprocessing.Queue[Peaks] = context.Queue()
        reader = context.Process(target=reader_peaks, args=(stage, sets, root.as_uri(), answers))
        reader.start()
        peaks[f"{stage}, read"] = answers.get()
        reader.join()
    return peaks


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--units", type=int, default=50, help="shards of each artifact")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        peaks = measure(Path(folder), options.rows, options.units)
    for stage, roles in peaks.items():
        for role, most in roles.items():
            print(f"{stage:<16} {role:<40} {most['early']:8.1f} {most['late']:8.1f} {most['ratio']:8.3f}")
    print(save("memory", {"rows": options.rows, "private_mib": peaks}))


if __name__ == "__main__":
    main()
