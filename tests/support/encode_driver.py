"""A driver of encode as a process of its own, for tests that look at its workers or kill them.

Run: python -m tests.support.encode_driver CONFIG.json [CPUS GPUS]. CPUS and GPUS: of a local Ray; without them the
driver connects to RAY_ADDRESS. In the environment of the nodes: ENCODE_TRACE, a folder where decoders leave a file for
each shard that they begin; ENCODE_TOGETHER, the number of decoders for which each waits; ENCODE_PACE, seconds a chunk.
"""

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline import cluster
from pipeline.artifacts import ArtifactWriter, Lease, commit, read_manifest, work_path
from pipeline.config import Config
from pipeline.data import Chunk, chunks
from pipeline.stages import encode, encode_shard
from pipeline.stages.encode_shard import Shard
from pipeline.storage import open_storage
from pipeline.tracking import Outbox
from pipeline.workflow import StageContext
from tests.support.artifacts import fingerprint_of, manifest

_decode = encode_shard.decode


class TracedEncoder(encode_shard.Encoder):
    """Its decoders leave traces, in chunks of 16 rows."""

    def _chunks(self, shard: Shard) -> Iterator[Chunk]:
        chunks.CHUNK_ROWS = 16
        encode_shard.decode = traced_decode  # type: ignore[assignment]
        yield from super()._chunks(shard)


def traced_decode(*arguments: Any) -> Iterator[Chunk]:
    shard: Shard = arguments[2]
    folder = Path(os.environ["ENCODE_TRACE"])
    (folder / f"{os.getpid()} {shard.index} {time.time_ns()}").touch()
    begun, wanted = time.monotonic(), int(os.environ.get("ENCODE_TOGETHER", "0"))
    while len(processes(folder)) < wanted and time.monotonic() - begun < 60:
        time.sleep(0.05)
    for chunk in _decode(*arguments):
        time.sleep(float(os.environ.get("ENCODE_PACE", "0")))
        yield chunk


def processes(folder: Path) -> set[int]:
    """Those that have decoded."""
    return {int(path.name.split()[0]) for path in folder.iterdir()}


def context_of(config: Config) -> StageContext:
    storage, fingerprint = open_storage(config.root), fingerprint_of(config, "encode")
    inputs = {
        name: read_manifest(storage, name, fingerprint_of(config, name)) for name in ("prepare", "train-tokenizer")
    }
    return StageContext(
        config=config, stage="encode", fingerprint=fingerprint, storage=storage,
        inputs={name: made for name, made in inputs.items() if made is not None},
        writer=ArtifactWriter(storage, "encode", fingerprint), work=work_path("encode", fingerprint),
        scratch=Path(os.devnull), lease=Lease(storage, "encode", fingerprint), outbox=Outbox(storage, "test"),
        progress=lambda *_, **__: None, say=print,
    )  # fmt: skip


def main() -> None:
    config = Config.model_validate_json(Path(sys.argv[1]).read_text())
    cluster.set_environment()
    import ray

    if len(sys.argv) > 2:
        cpus, gpus = map(int, sys.argv[2:])
        ray.init(address="local", num_cpus=cpus, num_gpus=gpus, include_dashboard=False, object_store_memory=200 << 20)
    else:
        ray.init()
    encode.Encoder = TracedEncoder  # type: ignore[misc]
    context = context_of(config)
    outcome = encode.run(context)
    commit(
        context.storage, manifest(config, "encode", context.writer, context.inputs, **outcome.details), context.lease
    )
    context.lease.release(finished=True)


if __name__ == "__main__":
    from tests.support import encode_driver

    encode_driver.main()
