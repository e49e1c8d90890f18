"""A stage's context without Ray: `map` runs in this process. And tiny artifacts for the evaluation stages."""

import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from models.sit import SiT
from models.tokenizers import build
from pipeline.artifacts.manifest import Manifest, work_path
from pipeline.artifacts.writer import Outcome
from pipeline.config.schema import Config
from pipeline.data.prepared import choose_rows, read_images
from pipeline.stages import classifier, floor, reference
from pipeline.storage.uri import open_storage
from pipeline.tracking.outbox import Outbox
from pipeline.workflow.context import StageContext
from pipeline.workflow.graph import find_stage
from tests.support.artifacts import artifact_writer, fingerprint_of, manifest, put


class LocalContext(StageContext):
    """Records pass through JSON, as they do on their way from a worker."""

    def map(
        self,
        function: Callable[[Any], dict[str, Any]],
        specs: Sequence[Any],
        weights: Sequence[int],
        unit: str,
        gpu: bool = False,
    ) -> list[dict[str, Any]]:
        assert len(specs) == len(weights)
        assert all(weight > 0 for weight in weights)
        return [json.loads(json.dumps(function(spec))) for spec in specs]


def local_context(config: Config, stage: str, inputs: dict[str, Manifest], scratch: Path) -> LocalContext:
    fingerprint = fingerprint_of(config, stage)
    storage = open_storage(config.root)
    return LocalContext(
        config=config,
        stage=stage,
        fingerprint=fingerprint,
        storage=storage,
        inputs=inputs,
        writer=artifact_writer(config, stage),
        work=work_path(stage, fingerprint),
        scratch=scratch,
        lease=None,  # type: ignore[arg-type]  # nothing here commits
        outbox=Outbox(storage, f"test/{stage}"),
        progress=lambda *_, **__: None,
        say=lambda _: None,
    )


def committed(context: StageContext, outcome: Outcome, seconds: float = 1.5) -> Manifest:
    """Leave the manifest as a runner would."""
    made = manifest(context.config, context.stage, context.writer, context.inputs, **outcome.details)
    told = {"metrics": outcome.metrics, "rows": outcome.rows, "seconds": seconds}
    return put(context.config, made.model_copy(update=told))


def untrained_tokenizer(config: Config, prepare: Manifest, scratch: Path) -> Manifest:
    """A tokenizer with random weights, as an artifact."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = build(config.tokenizer.kind, config.tokenizer_network)
    scratch.mkdir(parents=True, exist_ok=True)
    save_file(network.state_dict(), scratch / "weights.safetensors")
    writer = artifact_writer(config, "train-tokenizer")
    writer.add(scratch / "weights.safetensors", "weights.safetensors")
    own = config.tokenizer
    details = {
        "kind": own.kind,
        "network": config.tokenizer_network,
        "filter": {"mask": own.mask, "keep": own.keep},
    }
    return put(config, manifest(config, "train-tokenizer", writer, {"prepare": prepare}, **details))


def untrained_generator(config: Config, inputs: dict[str, Manifest], scratch: Path) -> Manifest:
    """A generator with random weights, SiT's zero layers included, as an artifact for latents of mean 0 and std 1."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        network = SiT(**config.sit_network)
        for parameter in network.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
    save_file(network.state_dict(), scratch / "weights.safetensors")
    writer = artifact_writer(config, "train-sit")
    writer.add(scratch / "weights.safetensors", "weights.safetensors")
    own, channels = config.sit, config.tokenizer.latent_dim
    details = {
        "network": config.sit_network,
        "level": own.level,
        "path": own.path,
        "prediction": own.prediction,
        "statistics": {"mean": [0.0] * channels, "std": [1.0] * channels},
    }
    return put(config, manifest(config, "train-sit", writer, inputs, **details))


def samples(config: Config, images: np.ndarray, labels: np.ndarray, shard_rows: int = 30) -> Manifest:
    """These images as if the generator had made them."""
    writer, shards = artifact_writer(config, "sample"), []
    for start in range(0, len(images), shard_rows):
        buffer, part = io.BytesIO(), slice(start, start + shard_rows)
        np.savez(buffer, images=images[part], labels=labels[part])
        writer.add_bytes(buffer.getvalue(), f"images/{start:06d}.npz")
        shards.append({"path": f"images/{start:06d}.npz", "rows": len(labels[part])})
    return put(config, manifest(config, "sample", writer, {}, shards=shards))


def reference_of(config: Config, prepare: Manifest, scratch: Path) -> dict[str, Manifest]:
    """What samples are compared with, by stages of their own: reference and floor, and classifier if there is one.

    The floor is that of a tokenizer with random weights.
    """
    inputs = {"prepare": prepare, "train-tokenizer": untrained_tokenizer(config, prepare, scratch)}
    for stage, body in (("classifier", classifier), ("reference", reference), ("floor", floor)):
        if find_stage(stage).exists(config):
            taken = {name: inputs[name] for name in find_stage(stage).inputs_with(config)}
            context = local_context(config, stage, taken, scratch)
            inputs[stage] = committed(context, body.run(context))
    return inputs


def real_images(config: Config, prepare: Manifest, split: Any, most: int) -> tuple[np.ndarray, np.ndarray]:
    units = choose_rows(prepare, split, most)
    parts = [read_images(open_storage(config.root), prepare, unit, config.data) for unit in units]
    return np.concatenate([images for images, _ in parts]), np.concatenate([labels for _, labels in parts])
