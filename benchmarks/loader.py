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
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.common import alternate, median_ratio, medians, save
from pipeline.config.schema import Config
from pipeline.data.decode import transform
from pipeline.data.loader import ImageLoader, LatentLoader
from pipeline.storage.uri import open_storage
from pipeline.training.examples import reading_plan, training_images, training_latents
from tests.support.artifacts import config_at, prepared, trainer_inputs

Side = Callable[[], Iterable[Any]]
"""Gives batches; how fast they come is what is measured."""


def image_sides(config: Config, batch_size: int, batches: int) -> dict[str, Side]:
    """Pixels: our loader's (B, 3, H, W), and those of a loop over PIL that decodes and crops the same images."""
    store = training_images(open_storage(config.root), prepared(config), config)
    plan = reading_plan(config, batch_size, config.data.shard_rows, 0, 1)
    size, crop = config.data.image_size, config.data.center_crop

    def ours() -> Iterator[Any]:
        with ImageLoader(
            store, plan, image_size=size, center_crop=crop, horizontal_flip=False, start_step=0, stop_step=batches,
            threads=config.cluster.loader_threads,
        ) as loader:  # fmt: skip
            for pixels, _ in loader:
                yield pixels

    def plain() -> Iterator[Any]:
        for step in range(batches):
            images, _ = store.take(plan.rows(step, len(store)))
            yield np.stack([transform(Image.open(io.BytesIO(image)).convert("RGB"), size, crop) for image in images])

    return {"loader": ours, "plain PIL loop": plain}


def latent_sides(config: Config, rows: int, batch_size: int, batches: int, scratch: Path) -> dict[str, Side]:
    """Moments: our loader's, NumPy's gather of the same rows from memory, and a copy of as many neighbours."""
    store = training_latents(
        open_storage(config.root), trainer_inputs(config, "train-sit", scratch, rows)["encode"], config
    )
    plan = reading_plan(config, batch_size, config.encode.shard_rows, 0, 1)
    mean, logvar, _ = store.take(np.arange(len(store)))

    def ours() -> Iterator[Any]:
        with LatentLoader(store, plan, start_step=0, stop_step=batches) as loader:
            for means, logvars, _ in loader:
                yield means, logvars

    def plain() -> Iterator[Any]:
        for step in range(batches):
            chosen = plan.rows(step, len(store))
            yield np.take(mean, chosen, axis=0), np.take(logvar, chosen, axis=0)

    def memcpy() -> Iterator[Any]:
        for step in range(batches):
            first = step * batch_size % (len(store) - batch_size)
            yield mean[first : first + batch_size].copy(), logvar[first : first + batch_size].copy()

    return {"loader": ours, "plain gather": plain, "memcpy": memcpy}


def rate(side: Side, examples: int) -> float:
    """Examples a second."""
    begin = time.perf_counter()
    for _ in side():
        pass
    return examples / (time.perf_counter() - begin)


def cases(folder: Path, batches: int) -> dict[str, tuple[dict[str, Side], int]]:
    """The sides of each case, and how many examples each gives."""
    digits = config_at(folder / "digits", "quickstart", "data.classes=10")
    found = {"digits, 32 px": (image_sides(digits, 48, batches), 48 * batches)}
    if "DVAE_TEST_DATA" in os.environ:
        uri = Path(os.environ["DVAE_TEST_DATA"], "imagenet-sample").absolute().as_uri()
        photographs = config_at(
            folder / "photographs", "imagenet-f16d16", f"data.uri={uri}", "data.validation_share=0.1"
        )
        few = max(1, batches // 4)
        found["photographs, 256 px"] = (image_sides(photographs, 32, few), 32 * few)
    latents = config_at(
        folder / "latents", "quickstart", "data.image_size=64", "tokenizer.latent_dim=16", "data.classes=10"
    )
    found["latents, 16 x 16 x 16"] = (latent_sides(latents, 2000, 256, batches, folder / "scratch"), 256 * batches)
    return found


def measure(folder: Path, rounds: int, batches: int) -> dict[str, dict[str, float]]:
    """Rates and ratios of each case."""
    results = {}
    for name, (sides, examples) in cases(folder, batches).items():
        measured = alternate({side: partial(rate, batch, examples) for side, batch in sides.items()}, rounds)
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
