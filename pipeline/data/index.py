"""The recorded index of a source: a summary of its listing at the root, so that planning need not list a bucket.

`data.revision`, the digest of the listing, makes fingerprints depend on the source's content. No images are read here.
"""

import hashlib
from datetime import UTC, datetime

from pydantic import BaseModel, ConfigDict, ValidationError

from pipeline.config import DataConfig
from pipeline.data.listing import DIGITS_CLASSES, DIGITS_REVISION, Listing, list_source
from pipeline.storage import Storage, open_storage


class Index(BaseModel):
    """A summary of the last listing of a source."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: str
    uri: str
    validation_uri: str | None
    digest: str  # the value for data.revision
    files: int  # images (folder), Parquet files or tars, of both splits
    bytes: int
    classes: int  # class folders; 0 for formats whose listing has no classes
    created: datetime

    @property
    def age_seconds(self) -> float:
        return (datetime.now(UTC) - self.created).total_seconds()


def index_path(data: DataConfig) -> str:
    """The path of the source's index below the root."""
    named = "\0".join((data.format, data.uri or "", data.validation_uri or ""))
    return f".index/{hashlib.sha256(named.encode()).hexdigest()}.json"


def write_index(storage: Storage, data: DataConfig, listing: Listing) -> Index:
    """Record a listing at the root. StorageError if the root is not writable."""
    index = Index(
        format=data.format,
        uri=data.uri or "",
        validation_uri=data.validation_uri,
        digest=listing.digest,
        files=listing.files,
        bytes=listing.bytes,
        classes=len(listing.classes),
        created=datetime.now(UTC),
    )
    storage.write(index_path(data), index.model_dump_json(indent=1).encode())
    return index


def read_index(storage: Storage, data: DataConfig) -> Index | None:
    """The recorded index; None if it is missing or was written by an incompatible version."""
    try:
        return Index.model_validate_json(storage.read(index_path(data)))
    except (FileNotFoundError, ValidationError):
        return None


def recorded_revision(data: DataConfig, storage: Storage) -> str | None:
    """The revision without listing the source: configured, built in, or recorded; else None."""
    if data.format == "digits":
        return DIGITS_REVISION
    if data.revision is not None:
        return data.revision
    index = read_index(storage, data)
    return index.digest if index else None


def revision_of(data: DataConfig, storage: Storage, fresh: bool) -> str | None:
    """The digest of the source's listing; None if no source is configured.

    The source is listed, and the listing recorded, if `fresh`, if it is local, or if nothing is recorded; otherwise the
    configured revision or the index of a remote source is used. DataError as `list_source`.
    """
    if data.format == "digits":
        return list_source(data).digest
    if data.uri is None:
        return None
    if not fresh and not _is_local(data):
        known = recorded_revision(data, storage)
        if known is not None:
            return known
    return write_index(storage, data, list_source(data)).digest


def known_classes(data: DataConfig, storage: Storage) -> int | None:
    """The number of classes: configured, built in, or from the recorded index; None if unknown."""
    if data.classes is not None:
        return data.classes
    if data.format == "digits":
        return DIGITS_CLASSES
    index = read_index(storage, data)
    return index.classes or None if index else None


def _is_local(data: DataConfig) -> bool:
    uris = (data.uri, data.validation_uri)
    return all(open_storage(uri).local_path() is not None for uri in uris if uri is not None)
