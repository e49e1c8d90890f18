"""Opens the training examples of a trainer: the shards of an artifact, mirrored to this node."""

from collections.abc import Callable

from pipeline.artifacts import Manifest
from pipeline.config import Config
from pipeline.data import (
    IMAGE_COLUMNS,
    LATENT_COLUMNS,
    ImageStore,
    LatentStore,
    Mirror,
    Plan,
    StoredShard,
    mirror_directory,
    open_mirror,
)
from pipeline.storage import Storage
from pipeline.training.world import World

Mirrored = Callable[[int, int], None]
"""Is told how many rows are mirrored, and their total."""


def training_images(
    storage: Storage, prepare: Manifest, config: Config, mirrored: Mirrored | None = None
) -> ImageStore:
    """The encoded images of the training split, mirrored to this node. Errors as `Mirror.fetch`."""
    shards = prepare.details["splits"]["train"]
    return ImageStore(_mirror(storage, prepare, shards, IMAGE_COLUMNS, config, config.data.shard_rows, mirrored))


def training_latents(
    storage: Storage, encode: Manifest, config: Config, mirrored: Mirrored | None = None
) -> LatentStore:
    """The moments of the training split, mirrored to this node. Errors as `Mirror.fetch`."""
    shards = encode.details["shards"]
    return LatentStore(_mirror(storage, encode, shards, LATENT_COLUMNS, config, config.encode.shard_rows, mirrored))


def reading_plan(config: Config, seed: int, batch_size: int, group_rows: int, world: World) -> Plan:
    """The rows that this rank reads at each step."""
    data = config.data
    return Plan(seed, batch_size, data.shuffle, data.window_rows, group_rows, world.rank, world.size)


def _mirror(
    storage: Storage,
    manifest: Manifest,
    shards: list[dict[str, int | str]],
    columns: tuple[str, ...],
    config: Config,
    group_rows: int,
    mirrored: Mirrored | None,
) -> Mirror:
    folder = manifest.name
    stored = []
    for shard in shards:
        record = manifest.files[str(shard["path"])]
        stored.append(StoredShard(f"{folder}/{shard['path']}", int(shard["rows"]), record.bytes, record.sha256))
    directory = mirror_directory(config.cluster.mirror)
    total = sum(shard.rows for shard in stored)
    progress = (lambda rows: mirrored(rows, total)) if mirrored else None
    return open_mirror(storage, stored, directory, columns, config.data, group_rows, progress)
