"""What the benchmarks share: alternating two sides in one run, the machine's name, the results' file."""

import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from pipeline import graph
from pipeline.artifacts import ArtifactWriter, FileRecord, Manifest
from pipeline.config import Config
from pipeline.data.index import known_classes
from pipeline.data.listing import list_source
from pipeline.data.prepare import prepare_unit
from pipeline.data.sources import work_units
from pipeline.loading import load_config
from pipeline.storage import open_storage

RESULTS = Path(__file__).parent / "results"


def seconds(action: Callable[[], Any]) -> float:
    begin = time.perf_counter()
    action()
    return time.perf_counter() - begin


def alternate(sides: dict[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Measure the sides in turn, `rounds` times, the order turned round each time: other load hits them alike."""
    measured: dict[str, list[float]] = {name: [] for name in sides}
    for index in range(rounds):
        for name in list(sides) if index % 2 == 0 else reversed(list(sides)):
            measured[name].append(sides[name]())
    return measured


def medians(measured: dict[str, list[float]]) -> dict[str, float]:
    return {name: statistics.median(values) for name, values in measured.items()}


def median_ratio(upper: list[float], lower: list[float]) -> float:
    """Median over the rounds of upper / lower: both of a round ran next to each other."""
    return statistics.median(a / b for a, b in zip(upper, lower, strict=True))


def hardware(device: str = "cpu") -> str:
    if device == "cuda":
        return torch.cuda.get_device_name()
    model = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), model)
    return f"{model}, {len(os.sched_getaffinity(0))} cores"


def save(name: str, result: dict[str, Any], device: str = "cpu", folder: Path = RESULTS) -> Path:
    """Write results/NAME.json, with the hardware and versions that it holds for."""
    sha = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=RESULTS.parent, check=False)
    about = {
        "hardware": hardware(device),
        "load_at_end": round(os.getloadavg()[0], 1),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "git_sha": sha.stdout.strip() or None,
    }
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    path.write_text(json.dumps({**about, **result}, indent=1) + "\n")
    return path


def config_at(root: Path, preset: str, *sets: str) -> Config:
    """A preset's config with everything below `root`, its source listed."""
    config = load_config(preset, [f"cluster.mirror={root / 'mirror'}", *sets], (root / "root").as_uri())
    listing = list_source(config.data)
    classes = known_classes(config.data, open_storage(config.root)) or len(listing.classes)
    known = {"revision": listing.digest, "classes": classes}
    return config.model_copy(update={"data": config.data.model_copy(update=known)})


def writer_of(config: Config, stage: str) -> ArtifactWriter:
    fingerprint = graph.fingerprints(config)[stage]
    assert fingerprint is not None
    return ArtifactWriter(open_storage(config.root), stage, fingerprint)


def manifest_of(
    stage: str, files: dict[str, FileRecord], config: Config, inputs: dict[str, Manifest], **details: Any
) -> Manifest:
    fingerprint = graph.fingerprints(config)[stage]
    assert fingerprint is not None
    return Manifest(
        stage=stage,
        fingerprint=fingerprint,
        inputs={name: made.fingerprint for name, made in inputs.items()},
        input_contents={name: made.content for name, made in inputs.items()},
        config=graph.counted_config(graph.find_stage(stage), config),
        files=dict(files),
        rows=1,
        metrics={},
        details=details,
        seconds=0.0,
        git_sha=None,
        image_digest=None,
        created="2026-01-01T00:00:00+00:00",
    )


def prepared(config: Config) -> Manifest:
    """The config's source, prepared without Ray."""
    writer, storage = writer_of(config, "prepare"), open_storage(config.root)
    splits: dict[str, list[dict[str, Any]]] = {"train": [], "validation": []}
    for unit in work_units(list_source(config.data), config.data):
        for shard in prepare_unit(unit, config.data, config.seed, storage, writer.folder).shards:
            writer.files[shard.path] = FileRecord(bytes=shard.bytes, sha256=shard.sha256)
            splits[shard.split].append({"path": shard.path, "rows": shard.rows})
    return manifest_of(
        "prepare", writer.files, config, {}, splits=splits, classes=config.data.class_count, class_names=[]
    )


def encoded(config: Config, rows: int, scratch: Path) -> dict[str, Manifest]:
    """The inputs of train-sit: random latents of the config's shape, and manifests to go with them."""
    import numpy as np

    from pipeline.data.shards import write_latent_shard

    random = np.random.default_rng(0)
    shape = (config.tokenizer.latent_dim, config.grid, config.grid)
    mean, logvar = (random.normal(size=(rows, *shape)).astype(np.float16) for _ in range(2))
    scratch.mkdir(parents=True, exist_ok=True)
    path = scratch / "latents.parquet"
    labels = np.arange(rows) % config.data.class_count
    write_latent_shard(path, [f"k{i}" for i in range(rows)], labels, mean, logvar)
    tokenizer = manifest_of(
        "train-tokenizer",
        {},
        config,
        {},
        filter={"mask": config.tokenizer.mask, "keep": config.tokenizer.keep},
    )
    writer = writer_of(config, "encode")
    writer.add(path, "latents/00000.parquet")
    statistics_ = {str(level): {"mean": [0.0] * shape[0], "std": [1.0] * shape[0]} for level in range(4)}
    encode = manifest_of(
        "encode",
        writer.files,
        config,
        {"train-tokenizer": tokenizer},
        latent_shape=list(shape),
        statistics=statistics_,
        shards=[{"path": "latents/00000.parquet", "rows": rows}],
    )
    return {"train-tokenizer": tokenizer, "encode": encode}
