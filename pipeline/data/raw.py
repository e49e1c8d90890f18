"""What every layout of a source gives: encoded images with their labels; and the errors of reading them.

The layouts are in `folders.py`, `parquet.py` and `tars.py`.
"""

import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import pyarrow as pa

from pipeline.errors import DataError
from pipeline.storage import arrow_error

AHEAD = 16  # files that are read concurrently, to hide the latency of a bucket


class RawExample(NamedTuple):
    """An encoded image of the source, possibly unreadable."""

    key: str  # unique within its split
    label: int
    image: bytes


@contextmanager
def read_errors(where: str, what: str) -> Iterator[None]:
    """Turn errors of pyarrow and tarfile about a damaged or missing file into DataErrors."""
    try:
        yield
    except FileNotFoundError as error:
        raise DataError(f"{where}: the file was removed since the source was listed", "Run again.") from error
    except (pa.ArrowException, tarfile.TarError, OSError) as error:
        if "AWS Error" in str(error):
            raise arrow_error(error, where) from error
        if isinstance(error, PermissionError):
            hint = "Give this user permission to read it."
        else:
            hint = "Copy it again if it is empty or truncated, or remove it."
        raise DataError(f"{where} cannot be read as {what}: {' '.join(str(error).split())}", hint) from error


def as_label(value: Any, where: str) -> int:
    try:
        return int(value)
    except (TypeError, ValueError) as error:
        raise DataError(
            f"{where}: label {value!r} is not an integer", "Use labels from 0 to data.classes - 1."
        ) from error
