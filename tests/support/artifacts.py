"""Artifacts made in place, without Ray or a runner: what trainers and stages read, for tests and benchmarks."""

from pathlib import Path
from typing import Any

import numpy as np

from pipeline.artifacts import ArtifactWriter, FileRecord, Manifest, artifact_path
from pipeline.config import Config, load_config
from pipeline.data import checked_listing, known_classes, prepare_unit, work_units, write_latent_shard
from pipeline.storage import open_storage
from pipeline.weights import resolve_weights
from pipeline.workflow.fingerprints import counted_config, stage_fingerprints, uncounted_config
from pipeline.workflow.graph import find_stage


def config_at(root: Path, preset: str, *sets: str) -> Config:
    """A preset's config with its mirror below `root`, and what its source and the weights that it names hold."""
    config = resolve_weights(load_config(preset, [f"cluster.mirror={root / 'mirror'}", *sets], root.as_uri()))
    storage = open_storage(config.root)
    listing, revision = checked_listing(config.data, storage)
    known = {"revision": revision, "classes": known_classes(config.data, storage) or len(listing.classes)}
    return config.model_copy(update={"data": config.data.model_copy(update=known)})


def fingerprint_of(config: Config, stage: str) -> str:
    fingerprint = stage_fingerprints(config)[stage]
    assert fingerprint is not None
    return fingerprint


def artifact_writer(config: Config, stage: str) -> ArtifactWriter:
    return ArtifactWriter(open_storage(config.root), stage, fingerprint_of(config, stage))


def manifest(
    config: Config, stage: str, writer: ArtifactWriter, inputs: dict[str, Manifest], **details: Any
) -> Manifest:
    return Manifest(
        stage=stage, fingerprint=fingerprint_of(config, stage),
        inputs={name: made.fingerprint for name, made in inputs.items()},
        input_contents={name: made.content for name, made in inputs.items()},
        config=counted_config(find_stage(stage), config), uncounted=uncounted_config(find_stage(stage), config),
        files=dict(writer.files), rows=1, metrics={},
        details=details, seconds=0.0, git_sha=None, image_digest=None, created="2026-01-01T00:00:00+00:00",
    )  # fmt: skip


def put(config: Config, made: Manifest) -> Manifest:
    """Leave the manifest at the root, as a commit would."""
    path = f"{artifact_path(made.stage, made.fingerprint)}/manifest.json"
    open_storage(config.root).write(path, made.model_dump_json().encode())
    return made


def prepared(config: Config) -> Manifest:
    """The config's source, prepared."""
    writer, storage = artifact_writer(config, "prepare"), open_storage(config.root)
    splits: dict[str, list[dict[str, Any]]] = {"train": [], "validation": []}
    for unit in work_units(checked_listing(config.data, storage)[0], config.data):
        for shard in prepare_unit(unit, config.data, config.seed, storage, writer.folder).shards:
            writer.add_stored(shard.path, FileRecord(bytes=shard.bytes, sha256=shard.sha256))
            splits[shard.split].append({"path": shard.path, "rows": shard.rows})
    return manifest(config, "prepare", writer, {}, splits=splits, classes=config.data.class_count, class_names=[])


def tokenizer_manifest(config: Config, inputs: dict[str, Manifest]) -> Manifest:
    """The manifest of a tokenizer without its weights, which are not needed to train SiT on given latents."""
    own = config.tokenizer
    writer = artifact_writer(config, "train-tokenizer")
    return manifest(config, "train-tokenizer", writer, inputs, filter={"mask": own.mask, "keep": own.keep})


def encoded(config: Config, inputs: dict[str, Manifest], scratch: Path, rows: int = 90) -> Manifest:
    """Random latents of the config's shape, with statistics that leave them as they are."""
    random = np.random.default_rng(0)
    shape = (config.tokenizer.latent_dim, config.grid, config.grid)
    mean = random.normal(size=(rows, *shape)).astype(np.float16)
    logvar = random.normal(-4, 1, size=(rows, *shape)).astype(np.float16)
    scratch.mkdir(parents=True, exist_ok=True)
    path, labels = scratch / "latents.parquet", np.arange(rows) % config.data.class_count
    write_latent_shard(path, [f"k{i}" for i in range(rows)], labels, mean, logvar)
    writer = artifact_writer(config, "encode")
    writer.add(path, "latents/00000.parquet")
    statistics = {str(level): {"mean": [0.0] * shape[0], "std": [1.0] * shape[0]} for level in range(4)}
    shards = [{"path": "latents/00000.parquet", "rows": rows}]
    return manifest(config, "encode", writer, inputs, latent_shape=list(shape), statistics=statistics, shards=shards)


def trainer_inputs(config: Config, stage: str, scratch: Path, rows: int = 90) -> dict[str, Manifest]:
    """What a trainer's stage reads."""
    prepare = prepared(config)
    if stage == "train-tokenizer":
        return {"prepare": prepare}
    tokenizer = tokenizer_manifest(config, {"prepare": prepare})
    latents = encoded(config, {"prepare": prepare, "train-tokenizer": tokenizer}, scratch, rows)
    return {"train-tokenizer": tokenizer, "encode": latents}
