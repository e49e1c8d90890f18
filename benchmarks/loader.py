"""How fast do examples come from the mirror to a batch? Against a plain PIL loop (images), and against a gather and a
memcpy of the same bytes in memory (latents).

Run: python -m benchmarks.loader [--rounds 5]. DVAE_TEST_DATA, when set, adds its photographs at 256 x 256.
Rates are medians; ratios are medians over rounds in which both sides ran one after the other.
"""

import argparse
import io
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.common import alternate, median_ratio, medians, save
from pipeline.config.schema import Config
from pipeline.data.decode import transform
from pipeline.data.loader import ImageLoader, LatentLoader
from pipeline.storage.uri import open_storage
from pipeline.training.examples import reading_plan, training_images, training_latents
from tests.support.artifacts import config_at, prepared, trainer_inputs


def image_sides(config: Config, batch_size: int, batches: int) -> dict[str, Callable[[], float]]:
    """Images per second: our loader, and a loop over PIL that decodes and crops the same images."""
    store = training_images(open_storage(config.root), prepared(config), config)
    plan = reading_plan(config, batch_size, config.data.shard_rows, 0, 1)
    size, crop = config.data.image_size, config.data.center_crop

    def ours() -> float:
        begin = time.perf_counter()
        with ImageLoader(
            store, plan, image_size=size, center_crop=crop, horizontal_flip=False, start_step=0, stop_step=batches,
            threads=config.cluster.loader_threads,
        ) as loader:  # fmt: skip
            for _ in loader:
                pass
        return batch_size * batches / (time.perf_counter() - begin)

    def plain() -> float:
        begin = time.perf_counter()
        for step in range(batches):
            images, _ = store.take(plan.rows(step, len(store)))
            np.stack([transform(Image.open(io.BytesIO(image)).convert("RGB"), size, crop) for image in images])
        return batch_size * batches / (time.perf_counter() - begin)

    return {"loader": ours, "plain PIL loop": plain}


def latent_sides(
    config: Config, rows: int, batch_size: int, batches: int, scratch: Path
) -> dict[str, Callable[[], float]]:
    """Latents per second: our loader, NumPy's gather of the same rows from memory, and a copy of as many neighbours."""
    store = training_latents(
        open_storage(config.root), trainer_inputs(config, "train-sit", scratch, rows)["encode"], config
    )
    plan = reading_plan(config, batch_size, config.encode.shard_rows, 0, 1)
    mean, logvar, _ = store.take(np.arange(len(store)))

    def ours() -> float:
        begin = time.perf_counter()
        with LatentLoader(store, plan, start_step=0, stop_step=batches) as loader:
            for _ in loader:
                pass
        return batch_size * batches / (time.perf_counter() - begin)

    def plain() -> float:
        begin = time.perf_counter()
        for step in range(batches):
            chosen = plan.rows(step, len(store))
            np.take(mean, chosen, axis=0)
            np.take(logvar, chosen, axis=0)
        return batch_size * batches / (time.perf_counter() - begin)

    def memcpy() -> float:
        begin = time.perf_counter()
        for step in range(batches):
            first = step * batch_size % (len(store) - batch_size)
            mean[first : first + batch_size].copy()
            logvar[first : first + batch_size].copy()
        return batch_size * batches / (time.perf_counter() - begin)

    return {"loader": ours, "plain gather": plain, "memcpy": memcpy}


def measure(folder: Path, rounds: int, batches: int) -> dict[str, dict[str, float]]:
    """Rates and ratio of each case."""
    cases = {"digits, 32 px": image_sides(config_at(folder / "digits", "quickstart", "data.classes=10"), 48, batches)}
    if "DVAE_TEST_DATA" in os.environ:
        uri = Path(os.environ["DVAE_TEST_DATA"], "imagenet-sample").absolute().as_uri()
        photographs = config_at(
            folder / "photographs", "imagenet-f16d16", f"data.uri={uri}", "data.validation_share=0.1"
        )
        cases["photographs, 256 px"] = image_sides(photographs, 32, max(1, batches // 4))
    latents = config_at(
        folder / "latents", "quickstart", "data.image_size=64", "tokenizer.latent_dim=16", "data.classes=10"
    )
    cases["latents, 16 x 16 x 16"] = latent_sides(latents, 2000, 256, batches, folder / "scratch")
    results = {}
    for name, sides in cases.items():
        measured = alternate(sides, rounds)
        ours, *others = sides
        ratios = {f"ratio to {other}": median_ratio(measured[ours], measured[other]) for other in others}
        results[name] = {**medians(measured), **ratios}
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batches", type=int, default=40)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        results = measure(Path(folder), options.rounds, options.batches)
    for name, values in results.items():
        print(f"{name:<24}", "  ".join(f"{side} {value:,.4g}" for side, value in values.items()))
    print(save("loader", {"examples_per_second": results}))


if __name__ == "__main__":
    main()
