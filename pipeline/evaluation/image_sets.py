"""Sets of images from anywhere, as batches of pixels, for `evaluate`: artifacts, folders, Parquet, ADM's npz.

Encoded pictures take the size that is asked for, by the centre crop of ADM; pixels have the size that they have.
Legend: N images, C channels, H W pixels.
"""

import io
import math
import os
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import IO, Any, BinaryIO, NamedTuple

import numpy as np
import numpy.lib.format as npy

from pipeline.artifacts import Manifest, checked_copy, read_checked
from pipeline.data import (
    ENDINGS,
    Labels,
    Pixels,
    UnreadableImage,
    decode_image,
    ending_of,
    image_column,
    is_ignored,
    label_column,
    transform,
)
from pipeline.errors import DataError
from pipeline.storage import Storage, open_storage, split_uri

_BATCH = 256
_IMAGES, _LABELS = "arr_0", "arr_1"
_MOMENTS = {"pool": ("mu", "sigma"), "spatial": ("mu_s", "sigma_s")}  # in ADM's reference batches, by kind of features
_KEYS = "arr_0 uint8 (N, H, W, 3), or of a reference also mu, sigma, mu_s, sigma_s"


@dataclass(frozen=True)
class ImageSet:
    """Images to measure, or to compare with. `batches(size)` gives uint8 (N, 3, H, W), N at most 256."""

    name: str
    batches: Callable[[int | None], Iterator[Pixels]]
    side: int | None = None  # of pixels that have a size; None: of pictures, which take any
    labels: Callable[[], Labels | None] = lambda: None  # (N,) whole numbers, where the images have some


# --- pixels ---


def of_samples(storage: Storage, sample: Manifest) -> ImageSet:
    """The images of a sample artifact."""

    def batches(_: int | None) -> Iterator[Pixels]:
        for shard in sample.details["shards"]:
            with np.load(io.BytesIO(read_checked(storage, sample, shard["path"]))) as arrays:
                yield from _cut(arrays["images"])

    def labels() -> Labels:
        parts = []
        for shard in sample.details["shards"]:
            with np.load(io.BytesIO(read_checked(storage, sample, shard["path"]))) as arrays:
                parts.append(arrays["labels"])
        return np.concatenate(parts)

    first = next(batches(None))
    return ImageSet(sample.name, batches, first.shape[-1], labels)


def of_npz(path: str) -> tuple[ImageSet | None, dict[str, tuple[np.ndarray, np.ndarray]]]:
    """The images of an .npz in ADM's form, if it has any, and the means and covariances of features, if it has those.

    A batch of the images is in memory at a time. DataError if it is no such file, or what is in it is neither pixels
    nor a Gaussian; values that are no pixels are found as they are read.
    """
    with _whole(path), _opened(path) as file, zipfile.ZipFile(file) as archive:
        names = [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]
        moments = {
            kind: (_array(archive, mean), _array(archive, covariance))
            for kind, (mean, covariance) in _MOMENTS.items()
            if mean in names and covariance in names
        }
        stored = _stored(archive, _IMAGES) if _IMAGES in names else None
        labels = _array(archive, _LABELS) if _LABELS in names else None
    for kind, (mean, covariance) in moments.items():
        if covariance.shape != (len(mean), len(mean)) or not (
            np.isfinite(mean).all() and np.isfinite(covariance).all()
        ):
            raise DataError(
                f"{path}: {' and '.join(_MOMENTS[kind])} are no finite mean and covariance", "Make it again."
            )
    if stored is None and not moments:
        raise DataError(f"{path} has {', '.join(names) or 'nothing'}, and not arr_0", f"Give one with {_KEYS}.")
    if stored is None:
        return None, moments
    check_layout(stored, f"{path}: {_IMAGES}")
    whole = labels if labels is not None and np.issubdtype(labels.dtype, np.integer) else None
    return ImageSet(path, lambda _: _stored_batches(path, stored), stored.shape[1], lambda: whole), moments


class Stored(NamedTuple):
    """What the header of a stored array says."""

    shape: tuple[int, ...]
    by_columns: bool  # Fortran's order
    dtype: np.dtype[Any]


def _opened(path: str) -> BinaryIO:
    storage, name = split_uri(path)
    try:
        return storage.open_ranges(name)
    except FileNotFoundError:
        raise DataError(f"{path} is not there", "Correct the path.") from None


@contextmanager
def _whole(path: str) -> Iterator[None]:
    """DataError for an .npz that is none, or was cut or damaged."""
    try:
        yield
    except (ValueError, OSError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(
            f"{path} is no .npz of arrays, or was cut or damaged ({error})", f"Copy it again, or give one with {_KEYS}."
        ) from None


def _array(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    with archive.open(f"{name}.npy") as member:
        array: np.ndarray = npy.read_array(member, allow_pickle=False)
        return array


def _stored(archive: zipfile.ZipFile, name: str) -> Stored:
    with archive.open(f"{name}.npy") as member:
        return _header(member)


def _header(member: IO[bytes]) -> Stored:
    """Of an array, after which its values come. ValueError if it is none."""
    version = npy.read_magic(member)
    return Stored(*(npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0)(member))


def _stored_batches(path: str, stored: Stored) -> Iterator[Pixels]:
    """The images of an .npz, 256 at a time, straight from the file. DataError for values that are no pixels."""
    rows, size = stored.shape[0], math.prod(stored.shape[1:]) * stored.dtype.itemsize
    with (
        _whole(path),
        _opened(path) as file,
        zipfile.ZipFile(file) as archive,
        archive.open(f"{_IMAGES}.npy") as member,
    ):
        _header(member)
        for start in range(0, rows, _BATCH):
            count = min(_BATCH, rows - start)
            content = member.read(count * size)
            if len(content) < count * size:
                raise EOFError(f"{_IMAGES} ends before image {start + count:,} of {rows:,}")
            images_NHWC = np.frombuffer(content, stored.dtype).reshape(count, *stored.shape[1:])
            yield as_pixels(images_NHWC, f"{path}: {_IMAGES}", start)


def check_layout(stored: Stored, name: str) -> None:
    """DataError unless these are square images, uint8 or floats, one after the other."""
    shape, dtype = stored.shape, stored.dtype
    if len(shape) != 4 or shape[-1] != 3 or shape[1] != shape[2]:
        raise DataError(f"{name} has the shape {shape}", "Give square images as (N, H, W, 3).")
    if dtype != np.uint8 and not np.issubdtype(dtype, np.floating):
        raise DataError(f"{name} is of {dtype}", "Give uint8, or floats in [0, 1].")
    if stored.by_columns:
        raise DataError(f"{name} is stored in Fortran's order", "Write it again by numpy.ascontiguousarray.")


def as_pixels(images_NHWC: np.ndarray, name: str, first: int) -> Pixels:
    """uint8 (N, 3, H, H) of (N, H, H, 3), uint8 or floats in [0, 1], rounded; DataError for other floats.

    `first`: the place of its first image among all.
    """
    if np.issubdtype(images_NHWC.dtype, np.floating):
        broken_N = np.isnan(images_NHWC).any((1, 2, 3))
        if broken_N.any():
            raise DataError(f"{name} has NaN in image {first + int(broken_N.argmax())}", "Draw it again.")
        low, high = float(images_NHWC.min(initial=0)), float(images_NHWC.max(initial=0))
        if low < 0 or high > 1:
            raise DataError(f"{name} has floats from {low:.3g} to {high:.3g}", "Give uint8, or floats in [0, 1].")
        images_NHWC = np.round(images_NHWC * 255).astype(np.uint8)
    return np.ascontiguousarray(images_NHWC.transpose(0, 3, 1, 2))


def _cut(images_NCHW: Pixels) -> Iterator[Pixels]:
    for start in range(0, len(images_NCHW), _BATCH):
        yield images_NCHW[start : start + _BATCH]


# --- pictures ---


def of_split(storage: Storage, prepare: Manifest, split: str) -> ImageSet:
    """The images of a split of a prepare artifact."""
    import pyarrow.parquet as pq

    def contents() -> Iterator[tuple[str, bytes]]:
        for file in prepare.details["splits"][split]:
            with checked_copy(storage, prepare, file["path"]) as path:
                yield from _parquet_images(path, "image", f"{prepare.name}/{file['path']}")

    def labels() -> Labels:
        parts = []
        for file in prepare.details["splits"][split]:
            with checked_copy(storage, prepare, file["path"]) as path, pq.ParquetFile(path) as opened:
                parts.append(opened.read(["label"]).column(0).to_numpy())
        return np.concatenate(parts)

    name = f"{prepare.name}:{split}"
    return ImageSet(name, lambda side: _decoded(contents(), side, name), labels=labels)


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
    """The pictures of a Parquet file, in its column of images. DataError if it has none, or is not there."""
    _opened(uri).close()

    def contents() -> Iterator[tuple[str, bytes]]:
        with _opened(uri) as file:
            yield from _parquet_images(file, None, uri)

    return ImageSet(uri, lambda side: _decoded(contents(), side, uri), labels=lambda: _parquet_labels(uri))


def _parquet_labels(uri: str) -> Labels | None:
    """Of a Parquet file that `_parquet_images` can read; None if it has no column of labels, or one with gaps."""
    import pyarrow.parquet as pq

    with _opened(uri) as file, pq.ParquetFile(file) as opened:
        column = label_column(opened.schema_arrow)
        values = opened.read([column]).column(0) if column else None
        labels: Labels | None = values.to_numpy() if values is not None and not values.null_count else None
        return labels


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
