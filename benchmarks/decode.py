"""Which decoder of JPEG is the fastest that gives the same pixels? Ours (Pillow's) beside others that can be had.

Run: python -m benchmarks.decode [--rounds 5] [--size 256 64]
The images are the photographs of DVAE_TEST_DATA, as they are and cropped to `size`. Times are milliseconds of one
thread an image, of decoding alone and with the centre crop; differences are in levels of 255, of the cropped pixels.
simplejpeg (libjpeg-turbo, as PyTurboJPEG is) takes part where it is installed: pip install simplejpeg.
"""

import argparse
import importlib
import importlib.util
import io
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.common import alternate, median_ratio, medians, save
from pipeline.data.decode import decode_image, transform

Decoder = Callable[[bytes], Image.Image]

LIMIT = 2**28  # pixels


def decoders(size: int) -> dict[str, Decoder]:
    """Each from the bytes of a JPEG with three channels to its pixels, upright or not."""
    from torchvision.io import ImageReadMode, decode_jpeg

    def torchvision(image: bytes) -> Image.Image:
        encoded = torch.frombuffer(bytearray(image), dtype=torch.uint8)
        return Image.fromarray(decode_jpeg(encoded, mode=ImageReadMode.RGB).permute(1, 2, 0).numpy())

    def draft(image: bytes) -> Image.Image:
        opened = Image.open(io.BytesIO(image))
        opened.draft("RGB", (size, size))
        return opened.convert("RGB")

    found: dict[str, Decoder] = {
        "ours": lambda image: decode_image(image, LIMIT),
        "Pillow's draft": draft,
        "torchvision": torchvision,
    }
    if importlib.util.find_spec("simplejpeg") is not None:
        simplejpeg = importlib.import_module("simplejpeg")
        found["simplejpeg"] = lambda image: Image.fromarray(simplejpeg.decode_jpeg(image))
        found["simplejpeg, fast"] = lambda image: Image.fromarray(
            simplejpeg.decode_jpeg(image, fastdct=True, fastupsample=True)
        )
    return found


def photographs() -> list[bytes]:
    """The JPEGs that every decoder reads alike: of three channels, and upright."""
    files = sorted(Path(os.environ["DVAE_TEST_DATA"], "imagenet-sample").rglob("*.JPEG"))
    return [content for content in (path.read_bytes() for path in files) if _is_plain(content)]


def _is_plain(content: bytes) -> bool:
    with Image.open(io.BytesIO(content)) as image:
        return image.mode == "RGB" and image.getexif().get(0x0112, 1) == 1


def crop(image: bytes, size: int) -> bytes:
    """The photograph as people keep it when they have made it smaller."""
    file = io.BytesIO()
    Image.fromarray(transform(decode_image(image, LIMIT), size, True)).save(file, "JPEG", quality=92)
    return file.getvalue()


def measure(images: list[bytes], size: int, rounds: int) -> dict[str, dict[str, float]]:
    """A row for each decoder: its times, ours in times of its own, and how its pixels differ from ours."""
    torch.set_num_threads(1)
    found = decoders(size)

    def cropped(decoder: Decoder) -> Callable[[bytes], Any]:
        return lambda image: transform(decoder(image), size, True)

    sides = {(name, "alone"): _timed(decoder, images) for name, decoder in found.items()}
    sides |= {(name, "cropped"): _timed(cropped(decoder), images) for name, decoder in found.items()}
    measured = alternate({" ".join(key): side for key, side in sides.items()}, rounds)
    times, rows = medians(measured), dict[str, dict[str, float]]()
    for name, decoder in found.items():
        apart = [
            np.abs(cropped(decoder)(image).astype(int) - cropped(found["ours"])(image).astype(int)) for image in images
        ]
        rows[name] = {
            "ms_alone": times[f"{name} alone"],
            "ms_cropped": times[f"{name} cropped"],
            "ours_to_it_alone": median_ratio(measured["ours alone"], measured[f"{name} alone"]),
            "ours_to_it_cropped": median_ratio(measured["ours cropped"], measured[f"{name} cropped"]),
            "images_that_differ": float(np.mean([one.any() for one in apart])),
            "mean_difference": float(np.mean([one.mean() for one in apart])),
            "largest_difference": float(max(one.max() for one in apart)),
        }
    return rows


def _timed(action: Callable[[bytes], Any], images: list[bytes]) -> Callable[[], float]:
    def side() -> float:
        begin = time.thread_time()
        for image in images:
            action(image)
        return 1e3 * (time.thread_time() - begin) / len(images)

    return side


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--size", type=int, nargs="*", default=[256, 64], help="sides of the crop, in pixels")
    options = parser.parse_args()
    images = photographs()
    result = {}
    for size in options.size:
        result[f"photographs, {size} px"] = measure(images, size, options.rounds)
        result[f"cropped before, {size} px"] = measure([crop(image, size) for image in images], size, options.rounds)
    print(json.dumps(result, indent=1))
    print(save("decode", {"images": len(images), "by_kind": result}))


if __name__ == "__main__":
    main()
