"""sample: images from the generator, with cycling class labels and one noise seed per image; and a grid by class."""

import io
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.artifacts import ArtifactWriter, FileRecord, Manifest, Outcome, read_manifest
from pipeline.storage import open_storage
from pipeline.workflow import StageContext

_GRID_COLUMNS = 10


@dataclass(frozen=True)
class Spec:
    """One task: images `start` to `stop` - 1 of the whole set."""

    root: str
    inputs: dict[str, Manifest]
    fingerprint: str
    sampling: dict[str, Any]
    ema_decay: float | None
    classes: int
    start: int
    stop: int


def run(context: StageContext) -> Outcome:
    own = context.config.sample
    inputs = {name: context.inputs[name] for name in ("train-tokenizer", "train-sit")}
    specs = [
        Spec(
            context.storage.root,
            inputs,
            context.fingerprint,
            context.config.sampling(),
            own.ema_decay,
            context.config.data.class_count,
            start,
            min(own.count, start + own.batch_size),
        )
        for start in range(0, own.count, own.batch_size)
    ]
    records = context.map(generate, specs, [spec.stop - spec.start for spec in specs], unit="images", gpu=True)
    for record in records:
        context.writer.add_stored(record["path"], FileRecord(bytes=record["bytes"], sha256=record["sha256"]))
    shards = [{"path": record["path"], "rows": record["rows"]} for record in records]
    spec = GridSpec(
        context.storage.root,
        context.writer.folder,
        context.fingerprint,
        [shard["path"] for shard in shards],
        specs[0].classes,
        _class_names(context),
    )
    context.figure(draw_grid, spec, "grid.png")
    return context.writer.outcome(own.count, {"samples/count": float(own.count)}, shards=shards)


def _class_names(context: StageContext) -> list[str]:
    """The names of the classes by label, from the prepare artifact of the latents; empty if it is gone or has none."""
    prepared = read_manifest(context.storage, "prepare", context.inputs["encode"].inputs.get("prepare", ""))
    return list(prepared.details.get("class_names") or []) if prepared is not None else []


def generate(spec: Spec) -> dict[str, Any]:
    """Generate the images; writes `images/START.npz`: images uint8 (N, 3, H, W), labels int64 (N,)."""
    import torch

    from models.generator import Sampling
    from pipeline.inference import load_generator, task_device

    device = task_device()
    if device.type == "cpu":
        torch.set_num_threads(1)
    storage = open_storage(spec.root)
    indices = np.arange(spec.start, spec.stop)
    labels = indices % spec.classes
    generator = load_generator(storage, spec.inputs, device, spec.ema_decay)
    images = generator.draw(torch.from_numpy(labels), indices.tolist(), Sampling(**spec.sampling))
    writer = ArtifactWriter(storage, "sample", spec.fingerprint)
    name = f"images/{spec.start:06d}.npz"
    buffer = io.BytesIO()
    np.savez(buffer, images=images.cpu().numpy(), labels=labels)
    writer.add_bytes(buffer.getvalue(), name)
    return {"path": name, "rows": len(labels), **writer.files[name].model_dump()}


@dataclass(frozen=True)
class GridSpec:
    root: str
    folder: str
    fingerprint: str
    paths: list[str]
    classes: int
    names: list[str]  # of the classes, by label; empty without


def draw_grid(spec: GridSpec) -> dict[str, Any]:
    """Draw grid.png: the first images of the first ten classes, one row per class, with its name."""
    from pipeline.reports import sample_grid

    storage = open_storage(spec.root)
    rows: dict[int, list[np.ndarray]] = {label: [] for label in range(min(spec.classes, 10))}
    for path in spec.paths:
        with np.load(io.BytesIO(storage.read(f"{spec.folder}/{path}"))) as shard:
            for image, label in zip(shard["images"], shard["labels"], strict=True):
                if int(label) in rows and len(rows[int(label)]) < _GRID_COLUMNS:
                    rows[int(label)].append(image)
    writer = ArtifactWriter(storage, "sample", spec.fingerprint)
    images = np.stack([image for row in rows.values() for image in row])
    labels = np.array([label for label, row in rows.items() for _ in row])
    writer.add_bytes(sample_grid(images, labels, spec.names or None), "grid.png")
    return writer.files["grid.png"].model_dump()
