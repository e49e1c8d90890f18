"""Sets of images from anywhere, as batches of pixels, for `evaluate`: artifacts, folders, Parquet, ADM's npz.

Encoded pictures take the size that is asked for, by the centre crop of ADM; pixels have the size that they have.
Legend: N images, C channels, H W pixels.
"""

import io
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np

from pipeline.artifacts import Manifest, checked_copy, read_checked
from pipeline.data import ENDINGS, Pixels, UnreadableImage, decode_image, ending_of, image_column, is_ignored, transform
from pipeline.errors import DataError
from pipeline.storage import Storage, open_storage, split_uri

_BATCH = 256
_MOMENTS = {"pool": ("mu", "sigma"), "spatial": ("mu_s", "sigma_s")}  # in ADM's reference batches, by kind of features
_KEYS = "arr_0 uint8 (N, H, W, 3), or of a reference also mu, sigma, mu_s, sigma_s"


@dataclass(frozen=True)
class ImageSet:
    """Images to measure, or to compare with. `batches(size)` gives uint8 (N, 3, H, W), N at most 256."""

    name: str
    batches: Callable[[int | None], Iterator[Pixels]]
    side: int | None = None  # of pixels that have a size; None: of pictures, which take any


# --- pixels ---


def of_samples(storage: Storage, sample: Manifest) -> ImageSet:
    """The images of a sample artifact."""

    def batches(_: int | None) -> Iterator[Pixels]:
        for shard in sample.details["shards"]:
            with np.load(io.BytesIO(read_checked(storage, sample, shard["path"]))) as arrays:
                yield from _cut(arrays["images"])

    first = next(batches(None))
    return ImageSet(sample.name, batches, first.shape[-1])


def of_npz(path: str) -> tuple[ImageSet | None, dict[str, tuple[np.ndarray, np.ndarray]]]:
    """The images of an .npz in ADM's form, if it has any, and the means and covariances of features, if it has those.

    DataError if it is no such file, or what is in it is neither pixels nor a Gaussian.
    """
    storage, name = split_uri(path)
    try:
        arrays = np.load(io.BytesIO(storage.read(name)), allow_pickle=False)
        found = {key: arrays[key] for key in arrays.files}
    except FileNotFoundError:
        raise DataError(f"{path} is not there", "Correct the path.") from None
    except (ValueError, OSError, EOFError, AttributeError) as error:
        raise DataError(f"{path} is no .npz of arrays ({error})", f"Give one with {_KEYS}.") from None
    moments = {
        kind: (found[mean], found[covariance])
        for kind, (mean, covariance) in _MOMENTS.items()
        if mean in found and covariance in found
    }
    for kind, (mean, covariance) in moments.items():
        if covariance.shape != (len(mean), len(mean)) or not (
            np.isfinite(mean).all() and np.isfinite(covariance).all()
        ):
            raise DataError(
                f"{path}: {' and '.join(_MOMENTS[kind])} are no finite mean and covariance", "Make it again."
            )
    if "arr_0" not in found and not moments:
        raise DataError(f"{path} has {', '.join(found) or 'nothing'}, and not arr_0", f"Give one with {_KEYS}.")
    if "arr_0" not in found:
        return None, moments
    images_NCHW = as_pixels(found["arr_0"], f"{path}: arr_0")
    return ImageSet(path, lambda _: _cut(images_NCHW), images_NCHW.shape[-1]), moments


def as_pixels(images_NHWC: np.ndarray, name: str) -> Pixels:
    """uint8 (N, 3, H, H) of (N, H, H, 3), uint8 or floats in [0, 1], rounded. DataError for anything else."""
    if images_NHWC.ndim != 4 or images_NHWC.shape[-1] != 3 or images_NHWC.shape[1] != images_NHWC.shape[2]:
        raise DataError(f"{name} has the shape {images_NHWC.shape}", "Give square images as (N, H, W, 3).")
    if np.issubdtype(images_NHWC.dtype, np.floating):
        if np.isnan(images_NHWC).any():
            raise DataError(
                f"{name} has NaN in {np.isnan(images_NHWC).any((1, 2, 3)).sum()} images", "Draw them again."
            )
        low, high = float(images_NHWC.min(initial=0)), float(images_NHWC.max(initial=0))
        if low < 0 or high > 1:
            raise DataError(f"{name} has floats from {low:.3g} to {high:.3g}", "Give uint8, or floats in [0, 1].")
        images_NHWC = np.round(images_NHWC * 255)
    elif images_NHWC.dtype != np.uint8:
        raise DataError(f"{name} is of {images_NHWC.dtype}", "Give uint8, or floats in [0, 1].")
    return np.ascontiguousarray(images_NHWC.transpose(0, 3, 1, 2)).astype(np.uint8)


def _cut(images_NCHW: Pixels) -> Iterator[Pixels]:
    for start in range(0, len(images_NCHW), _BATCH):
        yield images_NCHW[start : start + _BATCH]


# --- pictures ---


def of_split(storage: Storage, prepare: Manifest, split: str) -> ImageSet:
    """The images of a split of a prepare artifact."""

    def contents() -> Iterator[tuple[str, bytes]]:
        for file in prepare.details["splits"][split]:
            with checked_copy(storage, prepare, file["path"]) as path:
                yield from _parquet_images(path, "image", f"{prepare.name}/{file['path']}")

    name = f"{prepare.name}:{split}"
    return ImageSet(name, lambda side: _decoded(contents(), side, name))


def of_folder(uri: str) -> ImageSet:
    """All pictures in a folder and below. DataError if there is none."""
    storage = open_storage(uri)
    paths = [
        entry.path
        for entry in storage.list()
        if not is_ignored(entry.path) and ending_of(entry.path) in ENDINGS["folder"]
    ]
    if not paths:
        raise DataError(
            f"{uri} has no pictures in it", "Give a folder of them, a Parquet file, an .npz or an artifact."
        )

    def contents() -> Iterator[tuple[str, bytes]]:
        for path in paths:
            yield storage.uri(path), storage.read(path)

    return ImageSet(uri, lambda side: _decoded(contents(), side, uri))


def of_parquet(uri: str) -> ImageSet:
    """The pictures of a Parquet file, in its column of images. DataError if it has none."""

    def contents() -> Iterator[tuple[str, bytes]]:
        storage, name = split_uri(uri)
        local = storage.local_path(name)
        with local.open("rb") if local else storage.open_ranges(name) as file:
            yield from _parquet_images(file, None, uri)

    return ImageSet(uri, lambda side: _decoded(contents(), side, uri))


def _parquet_images(file: Any, column: str | None, name: str) -> Iterator[tuple[str, bytes]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        opened = pq.ParquetFile(file)
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{name} is no Parquet file ({' '.join(str(error).split())[:80]})", "Give another.") from None
    with opened:
        chosen, row = column or image_column(opened.schema_arrow, name), 0
        for batch in opened.iter_batches(64, columns=[chosen]):
            for value in batch.column(0).to_pylist():
                content = value.get("bytes") if isinstance(value, dict) else value
                if not content:
                    raise DataError(f"{name}#{row} has no image in {chosen}", "Store the encoded bytes of the images.")
                yield f"{name}#{row}", content
                row += 1


def _decoded(contents: Iterable[tuple[str, bytes]], side: int | None, name: str) -> Iterator[Pixels]:
    """Decoded and cropped to `side`; None: as they are, which have to be square and of one size."""

    def pixels(one: tuple[str, bytes]) -> Pixels:
        where, content = one
        try:
            image = decode_image(content, None)
        except UnreadableImage as error:
            raise DataError(f"{where} cannot be read: {error.reason}", "Remove it, or repair it.") from None
        return np.asarray(image) if side is None else transform(image, side, center_crop=True)

    first: tuple[int, ...] | None = None
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        for group in _grouped(contents):
            images = list(pool.map(pixels, group))
            first = first or images[0].shape
            for (where, _), image in zip(group, images, strict=True):
                if image.shape != first or image.shape[0] != image.shape[1]:
                    raise DataError(
                        f"{name} has pictures of several sizes: {where} is {image.shape[1]} x {image.shape[0]}, the "
                        f"first {first[1]} x {first[0]}",
                        "Give --size, to which all are cropped and resized.",
                    )
            yield np.stack(images).transpose(0, 3, 1, 2)


def _grouped(contents: Iterable[tuple[str, bytes]]) -> Iterator[list[tuple[str, bytes]]]:
    remaining = iter(contents)
    while group := list(islice(remaining, _BATCH)):
        yield group
