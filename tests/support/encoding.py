"""encode without Ray: an untrained tokenizer, a context that holds a lease, encoders that decode in this process."""

import json
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.config import Config
from pipeline.data import Chunk, chunk_rows
from pipeline.stages.encode import _plan, _shards
from pipeline.stages.encode_shard import Encoder, Plan, Shard, decode
from pipeline.workflow import StageContext
from tests.support.artifacts import config_at, fingerprint_of, prepared, put
from tests.support.contexts import LocalContext, local_context, untrained_tokenizer
from tests.support.trainers import SETS, job_of, put_lease


class Held:
    """Stands for a lease that `put_lease` has laid down."""

    class holder:
        nonce = "nonce"


def encode_config(root: Path, *sets: str) -> Config:
    """Small, and of a tokenizer that is imported nothing of training."""
    imported = any(one.startswith("tokenizer.imported=") for one in sets)
    small = [one for one in SETS if not (imported and one.startswith("tokenizer."))]
    return config_at(
        root, "quickstart", *small, "encode.shard_rows=200", "encode.batch_size=16", "data.validation_share=0.7", *sets
    )


def encode_context(config: Config, scratch: Path) -> LocalContext:
    """With digits, prepared, and a tokenizer that has learned nothing."""
    prepare = put(config, prepared(config))
    inputs = {"prepare": prepare, "train-tokenizer": untrained_tokenizer(config, prepare, scratch)}
    put_lease(job_of(config, "encode", inputs))
    context = local_context(config, "encode", inputs, scratch)
    context.lease = Held()  # type: ignore[assignment]
    assert context.fingerprint == fingerprint_of(config, "encode")
    return context


class LocalEncoder(Encoder):
    """Decodes in this process."""

    def _chunks(self, shard: Shard) -> Iterator[Chunk]:
        size = chunk_rows(self.plan.decoding.image_size, self.plan.batch_size)
        yield from decode(self.plan.root, self.plan.prepare, shard, self.plan.decoding, size)


class LocalStream:
    """In the place of `encode._encode`: one encoder in this process. `made` lists the shards, in order."""

    def __init__(self, encoder: type[Encoder] = LocalEncoder) -> None:
        self.encoder, self.made = encoder, list[int]()

    def __call__(
        self, context: StageContext, plan: Plan, shards: list[Shard]
    ) -> Iterator[tuple[int, Exception | None]]:
        encoder: Any = self.encoder(plan)
        for shard in shards:
            self.made.append(shard.index)
            row = encoder({"shard": json.dumps(vars(shard))})
            yield row["index"], pickle.loads(row["error"]) if row["error"] else None


def plan_and_shards(context: StageContext) -> tuple[Plan, list[Shard]]:
    return _plan(context), _shards(context)
