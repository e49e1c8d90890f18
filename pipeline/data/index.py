"""The recorded index of a source: a summary of its listing at the root, so that planning need not list a bucket.

`listing.py` says which files a source has, `revision.py` digests what they hold; here the two are joined, compared with
a configured `data.revision`, and recorded. No images are decoded here.
"""

import hashlib
from datetime import UTC, datetime

from pydantic import BaseModel, ConfigDict, ValidationError

from pipeline.config import DataConfig
from pipeline.data.globs import literal_path
from pipeline.data.listing import DIGITS_CLASSES, Listing, list_source
from pipeline.data.revision import DIGITS_REVISION, Listener, revision
from pipeline.errors import DataError
from pipeline.storage import Storage

_UNHEARD = Listener()


class Index(BaseModel):
    """A summary of the last listing of a source."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: str
    uri: str
    validation_uri: str | None
    revision: str  # the value for data.revision
    files: int  # images (folder), Parquet files or tars, of both splits
    bytes: int
    classes: int  # class folders; 0 for formats whose listing has no classes
    remarks: tuple[str, ...] = ()  # what was chosen, and what is not read, one line each
    created: datetime

    @property
    def age_seconds(self) -> float:
        return (datetime.now(UTC) - self.created).total_seconds()

    @property
    def text(self) -> str:
        """What a person reads of it."""
        return f"{self.files} files, {self.bytes / 1e6:.1f} MB, revision {self.revision[:12]}"


def index_path(data: DataConfig) -> str:
    """The path of the source's index below the root."""
    named = "\0".join((data.format, data.uri or "", data.validation_uri or ""))
    return f".index/{hashlib.sha256(named.encode()).hexdigest()}.json"


def checked_listing(data: DataConfig, root: Storage, listener: Listener = _UNHEARD) -> tuple[Listing, str]:
    """List the source now: its listing and revision. What is read for the revision is remembered at `root`.

    DataError as `list_source` and `revision`, or if the source does not match the configured `data.revision`.
    """
    listing = list_source(data, lambda found: listener.progress(found, found, "files"))
    found = revision(listing, root, listener)
    if data.revision is not None and data.revision != found:
        raise DataError(
            f"data.uri {data.uri}: the source has revision {found[:12]}, not {data.revision[:12]}",
            "Run `python -m pipeline data index`, then again without data.revision; or restore the source.",
        )
    return listing, found


def index_source(data: DataConfig, root: Storage, listener: Listener = _UNHEARD) -> Index:
    """List the source now and record its index at the root. Errors as `checked_listing`, and StorageError."""
    listing, found = checked_listing(data, root, listener)
    index = Index(
        format=data.format,
        uri=data.uri or "",
        validation_uri=data.validation_uri,
        revision=found,
        files=listing.files,
        bytes=listing.bytes,
        classes=len(listing.classes),
        remarks=listing.remarks,
        created=datetime.now(UTC),
    )
    root.write(index_path(data), index.model_dump_json(indent=1).encode())
    return index


def read_index(root: Storage, data: DataConfig) -> Index | None:
    """The recorded index; None if it is missing or was written by an incompatible version."""
    try:
        return Index.model_validate_json(root.read(index_path(data)))
    except (FileNotFoundError, ValidationError):
        return None


def recorded_revision(data: DataConfig, root: Storage) -> str | None:
    """The revision without listing the source: configured, built in, or recorded; else None."""
    if data.format == "digits":
        return DIGITS_REVISION
    if data.revision is not None:
        return data.revision
    index = read_index(root, data)
    return index.revision if index else None


def revision_of(data: DataConfig, root: Storage, listener: Listener = _UNHEARD) -> str | None:
    """The revision that a run uses; None if no source is configured. Errors as `index_source`.

    A source that is local, if only in part, is listed now. A remote one has its configured or recorded revision, and is
    listed if there is none.
    """
    if data.format == "digits":
        return checked_listing(data, root)[1]
    if data.uri is None:
        return None
    if not _is_local_in_part(data) and (known := recorded_revision(data, root)) is not None:
        return known
    return index_source(data, root, listener).revision


def _is_local_in_part(data: DataConfig) -> bool:
    uris = (data.uri, data.validation_uri)
    return any(literal_path(uri) is not None for uri in uris if uri is not None)


def known_classes(data: DataConfig, root: Storage) -> int | None:
    """The number of classes: configured, built in, or from the recorded index; None if unknown."""
    if data.classes is not None:
        return data.classes
    if data.format == "digits":
        return DIGITS_CLASSES
    index = read_index(root, data)
    return index.classes or None if index else None
