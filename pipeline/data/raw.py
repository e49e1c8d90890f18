"""What every layout of a source gives: encoded images with their labels; and the errors of reading them.

The layouts are in `folders.py`, `parquet.py` and `tars.py`.
"""

import lzma
import math
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from decimal import Decimal
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from pipeline.data.decode import HEIF
from pipeline.errors import DataError

_SHOWN = 60  # characters of a value in a message
MAX_IMAGE_BYTES = 1 << 30  # a larger file is not read into memory; a row of Parquet has less than 2 GiB
AHEAD = 16  # files that are read concurrently, to hide the latency of a bucket


class RawExample(NamedTuple):
    """An encoded image of the source, possibly unreadable."""

    key: str  # unique within its split
    label: int
    image: bytes


@contextmanager
def read_errors(where: str, what: str) -> Iterator[None]:
    """Turn errors of pyarrow, tarfile and decompressors about a damaged or missing file into DataErrors."""
    try:
        yield
    except FileNotFoundError as error:
        raise DataError(f"{where}: the file was removed since the source was listed", "Run again.") from error
    except (pa.ArrowException, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, OSError) as error:
        if isinstance(error, PermissionError):
            hint = "Give this user permission to read it."
        else:
            hint = "Copy it again if it is empty or truncated, or remove it."
        raise DataError(f"{where} cannot be read as {what}: {' '.join(str(error).split())}", hint) from error


def as_label(value: Any, where: str) -> int:
    """A whole number, also as a float such as 3.0 or as text. DataError that says what else it is."""
    number = value
    if isinstance(value, str):
        try:
            number = float(value)
            number = int(value) if math.isfinite(number) and number.is_integer() and "." not in value else number
        except ValueError:
            pass
    if isinstance(number, int | np.integer) and not isinstance(number, bool):
        return int(number)
    if isinstance(number, float | np.floating | Decimal) and math.isfinite(number) and number == int(number):
        return int(number)
    raise DataError(f"{where}: label {_shown(value)} is {_not_whole(number)}", "Use labels from 0 to data.classes - 1.")


def too_large(size: int) -> str:
    """Why an encoded image of so many bytes is not used; empty if it is not too large."""
    return f"{size} bytes are more than {MAX_IMAGE_BYTES}" if size > MAX_IMAGE_BYTES else ""


def check_label(label: int, key: str, classes: int) -> None:
    """DataError for a label outside of 0 to classes - 1."""
    if not 0 <= label < classes:
        raise DataError(
            f"{key}: label {label} is out of range, data.classes is {classes}",
            "Set data.classes to the number of classes, or correct the label.",
        )


def check_heif(where: str, images: Sequence[str]) -> None:
    """DataError if HEIF images cannot be read here: quarantined, they would stay so after the package is installed."""
    if images and not HEIF:
        raise DataError(
            f"{where}: {len(images)} HEIF images, such as {images[0]}, need pillow-heif",
            "Install it on every node: pip install 'denoising-vae[heif]'. Or convert the images.",
        )


def _shown(value: Any) -> str:
    text = repr(value) if isinstance(value, str | bytes | list | dict) else str(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def _not_whole(value: Any) -> str:
    if value is None:
        return "missing, not an integer"
    if isinstance(value, bool):
        return "a truth value, not an integer"
    if isinstance(value, float | np.floating | Decimal) and not math.isfinite(value):
        return "not a number" if math.isnan(value) else "infinite, not an integer"
    return "not an integer"
