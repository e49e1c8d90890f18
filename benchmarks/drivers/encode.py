"""The stage encode as a process of its own, for `benchmarks/encode.py`. It also runs on the code of older commits.

Run: python benchmarks/drivers/encode.py prepare|run ROOT IMAGES [--cpus N] [--gpus N] [--address HOST:PORT] [--set K=V]
`prepare` makes the inputs, with a tokenizer that has learned nothing; `run` makes the latents. SLEEPING in the
environment: images a second of an encoder that only sleeps; DECODING: of a decoder that sleeps as well.
"""

import argparse
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

SETS = (
    "tokenizer.width=64", "tokenizer.depth=1", "tokenizer.heads=4", "tokenizer.hidden=172", "encode.precision=fp32",
    "data.validation_share=0.01",
)  # fmt: skip


def config_of(options: argparse.Namespace) -> Any:
    from pipeline.config.schema import Config, EncodeConfig
    from tests.support.artifacts import config_at

    # Older code refuses latents of a tokenizer that has learned nothing, and has no choice of a perceptual term.
    gate = ("encode.canary_psnr=0",) if "canary_psnr" in EncodeConfig.model_fields else ()
    term = ("tokenizer.perceptual=none",) if "perceptual" in Config().tokenizer.model_dump() else ()
    sets = (
        *SETS,
        *gate,
        *term,
        f"data.uri={Path(options.images).absolute().as_uri()}",
        "data.classes=2",
        *options.sets,
    )
    return config_at(Path(options.root), "imagenet-f16d16", *sets)


def prepare(config: Any, scratch: Path) -> None:
    from tests.support.artifacts import prepared, put
    from tests.support.contexts import untrained_tokenizer

    untrained_tokenizer(config, put(config, prepared(config)), scratch)


def context_of(config: Any) -> Any:
    from pipeline.artifacts import ArtifactWriter, Lease, read_manifest, work_path
    from pipeline.storage import open_storage
    from pipeline.tracking import Outbox
    from pipeline.workflow import StageContext
    from tests.support.artifacts import fingerprint_of

    storage, fingerprint = open_storage(config.root), fingerprint_of(config, "encode")
    inputs = {
        name: read_manifest(storage, name, fingerprint_of(config, name)) for name in ("prepare", "train-tokenizer")
    }
    fields = StageContext.__dataclass_fields__
    told = {"say": print} if "say" in fields else {}  # older code tells nothing
    return StageContext(
        config=config, stage="encode", fingerprint=fingerprint, storage=storage, inputs=inputs,  # type: ignore[arg-type]
        writer=ArtifactWriter(storage, "encode", fingerprint), work=work_path("encode", fingerprint),
        scratch=Path(os.devnull), lease=Lease(storage, "encode", fingerprint), outbox=Outbox(storage, "benchmark"),
        progress=lambda *_, **__: None, **told,
    )  # fmt: skip


def run(config: Any, options: argparse.Namespace) -> None:
    from pipeline import cluster
    from pipeline.stages import encode

    cluster.set_environment()
    import ray

    if options.address:
        ray.init(address=options.address, log_to_driver=False)
    else:
        ray.init(
            address="local", num_cpus=options.cpus, num_gpus=options.gpus, include_dashboard=False,
            object_store_memory=400 * 1024**2, log_to_driver=False,
        )  # fmt: skip
    if "SLEEPING" in os.environ:
        encode.Encoder = sleeping_encoder()  # type: ignore[misc]
    context = context_of(config)
    try:
        encode.run(context)
    finally:
        context.lease.release(finished=True)
        context.storage.delete_folder(context.writer.folder)


def sleeping_encoder() -> Any:
    """An encoder that needs no core for its work, as one on a GPU."""
    from pipeline.stages import encode_shard

    sleeping, decoding = float(os.environ["SLEEPING"]), float(os.environ.get("DECODING", "inf"))
    decode = encode_shard.decode

    def slow_decode(*arguments: Any) -> Iterator[Any]:
        for chunk in decode(*arguments):
            time.sleep(len(chunk.pixels) / decoding)
            yield chunk

    class Sleeping(encode_shard.Encoder):
        def _load(self) -> Any:
            return None

        def _chunks(self, shard: Any) -> Iterator[Any]:
            if decoding < float("inf"):
                encode_shard.decode = slow_decode  # type: ignore[assignment]
            return super()._chunks(shard)

        def _encode(self, pixels: Any, precision: str, dtype: str = "float16") -> Any:  # noqa: ARG002
            with self._device_lock:
                time.sleep(len(pixels) / sleeping)
            shape = (2, len(pixels), 16, 16, 16)
            return tuple(np.random.default_rng(0).random(shape, np.float32).astype(dtype))

        def _checks(self, *_: Any) -> dict[str, float]:
            return {"canary_psnr": 0.0, "own_psnr": 0.0}

        def _sums(self, mean: Any, logvar: Any) -> Any:  # noqa: ARG002
            return (np.ones((4, 2, mean.shape[1])) * [[[0.0], [len(mean) * 256.0]]]).tolist()

    return Sleeping


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["prepare", "run"])
    parser.add_argument("root")
    parser.add_argument("images")
    parser.add_argument("--cpus", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--gpus", type=int, default=0)
    parser.add_argument("--address")
    parser.add_argument("--set", dest="sets", action="append", default=[])
    options = parser.parse_args()
    config = config_of(options)
    prepare(config, Path(options.root) / "scratch") if options.what == "prepare" else run(config, options)


if __name__ == "__main__":
    main()
