"""How fast do examples come from the mirror to a batch: images against a plain PIL loop, latents against a plain copy?

Run: python benchmarks/loader.py [--rounds 5] [--threads 1]
The digits at 32, and the ImageNet photographs of DVAE_TEST_DATA at 256 where it is set. The plain PIL loop decodes,
crops and stacks the same rows, read from memory, in one thread; the plain copy gathers the same rows of an array in
memory with NumPy. Sides alternate in one run, and a ratio is the median of the rounds' ratios.
"""

import argparse
import io
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from common import alternate, config_at, encoded, median_ratio, medians, prepared, save
from PIL import Image

from pipeline.config import Config
from pipeline.data.loader import ImageLoader, LatentLoader
from pipeline.mirroring import reading_plan, training_images, training_latents
from pipeline.storage import open_storage


def plain_pixels(image: bytes, size: int, center_crop: bool) -> np.ndarray:
    """Decode and ADM's crop, with nothing but PIL."""
    opened = Image.open(io.BytesIO(image)).convert("RGB")
    if not center_crop:
        return np.asarray(opened.resize((size, size), Image.Resampling.BICUBIC))
    while min(opened.size) >= 2 * size:
        opened = opened.resize((opened.width // 2, opened.height // 2), Image.Resampling.BOX)
    scale = size / min(opened.size)
    wide, high = round(opened.width * scale), round(opened.height * scale)
    opened = opened.resize((wide, high), Image.Resampling.BICUBIC)
    left, top = (wide - size) // 2, (high - size) // 2
    return np.asarray(opened.crop((left, top, left + size, top + size)))


def compare(rates: dict[str, list[float]], unit: str) -> dict[str, Any]:
    middle = medians(rates)
    ratio = median_ratio(rates["loader"], rates["plain"])
    return {"unit": unit, "loader": middle["loader"], "plain": middle["plain"], "ratio": ratio}


def measure_images(config: Config, batch: int, steps: int, threads: int, rounds: int) -> dict[str, Any]:
    """Images/s of the loader and of the plain loop, over the same rows; their pixels are compared first."""
    store = training_images(open_storage(config.root), prepared(config), config)
    plan, data = reading_plan(config, batch, config.data.shard_rows, 0, 1), config.data
    size, crop = data.image_size, data.center_crop
    rows = [[bytes(image) for image in store.take(plan.rows(step, len(store)))[0]] for step in range(steps)]

    def loader() -> ImageLoader:
        return ImageLoader(
            store, plan, image_size=size, center_crop=crop, horizontal_flip=False,
            start_step=0, stop_step=steps, threads=threads,
        )  # fmt: skip

    def plain_batch(images: list[bytes]) -> np.ndarray:
        return np.ascontiguousarray(np.stack([plain_pixels(i, size, crop) for i in images]).transpose(0, 3, 1, 2))

    def ours() -> float:
        begin = time.perf_counter()
        with loader() as batches:
            made = sum(len(images) for images, _ in batches)
        return made / (time.perf_counter() - begin)

    def plain() -> float:
        begin = time.perf_counter()
        made = sum(len(plain_batch(images)) for images in rows)
        return made / (time.perf_counter() - begin)

    with loader() as batches:
        assert np.array_equal(next(batches)[0], plain_batch(rows[0])), "the plain loop makes other pixels"
    return compare(alternate({"loader": ours, "plain": plain}, rounds), "images/s")


def measure_latents(config: Config, folder: Path, rows: int, batch: int, steps: int, rounds: int) -> dict[str, Any]:
    """Latents/s of the loader and of a gather of the same rows and bytes from memory."""
    inputs = encoded(config, rows, folder / "scratch")
    store = training_latents(open_storage(config.root), inputs["encode"], config)
    plan = reading_plan(config, batch, config.encode.shard_rows, 0, 1)
    chosen = [plan.rows(step, rows) for step in range(steps)]
    mean, logvar, labels = store.take(np.arange(rows))

    def ours() -> float:
        begin = time.perf_counter()
        with LatentLoader(store, plan, start_step=0, stop_step=steps) as batches:
            made = sum(len(batch[2]) for batch in batches)
        return made / (time.perf_counter() - begin)

    def plain() -> float:
        begin = time.perf_counter()
        made = sum(len((mean[i], logvar[i], labels[i])[2]) for i in chosen)
        return made / (time.perf_counter() - begin)

    with LatentLoader(store, plan, start_step=0, stop_step=1) as batches:
        assert np.array_equal(next(batches)[0], mean[chosen[0]]), "the plain copy makes other latents"
    ours()
    result = compare(alternate({"loader": ours, "plain": plain}, rounds), "latents/s")
    return {**result, "bytes_per_latent": mean[0].nbytes + logvar[0].nbytes}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    result: dict[str, Any] = {"threads": given.threads}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config = config_at(folder / "digits", "quickstart")
        result["digits at 32"] = measure_images(config, 48, 40, given.threads, given.rounds)
        result["latents 4 x 8 x 8"] = measure_latents(config, folder / "digits", 2048, 256, 40, given.rounds)
        sets = ["tokenizer.latent_dim=32", "data.image_size=256", "tokenizer.patch_size=16"]
        large = config_at(folder / "large", "quickstart", *sets)
        result["latents 32 x 16 x 16"] = measure_latents(large, folder / "large", 2048, 256, 10, given.rounds)
        if "DVAE_TEST_DATA" in os.environ:
            uri = (Path(os.environ["DVAE_TEST_DATA"]) / "imagenet-sample").as_uri()
            sets = ["data.format=folder", f"data.uri={uri}", "data.image_size=256", "data.classes=null"]
            photographs = config_at(folder / "photographs", "quickstart", *sets, "tokenizer.patch_size=16")
            result["photographs at 256"] = measure_images(photographs, 32, 4, given.threads, given.rounds)
    print(f"{'':24}{'loader':>12}{'plain':>12}{'ratio':>8}")
    for what, row in result.items():
        if isinstance(row, dict):
            print(f"{what:24}{row['loader']:12.0f}{row['plain']:12.0f}{row['ratio']:8.2f}  {row['unit']}")
    print(save("loader", result).name)


if __name__ == "__main__":
    main()
