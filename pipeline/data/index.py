"""The recorded index of a source: its digest under the root, so that planning need not list a bucket again.

`data.revision`, the digest of the listing, is what ties `prepare` to what the source holds. No images are read here.
"""

import hashlib
from datetime import UTC, datetime

from pydantic import BaseModel, ConfigDict, ValidationError

from pipeline.config import DataConfig
from pipeline.data.listing import DIGITS_CLASSES, DIGITS_REVISION, Listing, list_source
from pipeline.storage import Storage, open_storage


class Index(BaseModel):
    """What a source held when it was last listed."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: str
    uri: str
    validation_uri: str | None
    digest: str  # what data.revision is to be
    files: int  # images (folder), Parquet files or tars, of both splits
    bytes: int
    classes: int  # folders of classes; 0 where the listing does not tell
    created: datetime

    @property
    def age_seconds(self) -> float:
        return (datetime.now(UTC) - self.created).total_seconds()


def index_path(data: DataConfig) -> str:
    """Where the index of this source lies below the root."""
    named = "\0".join((data.format, data.uri or "", data.validation_uri or ""))
    return f".index/{hashlib.sha256(named.encode()).hexdigest()}.json"


def write_index(storage: Storage, data: DataConfig, listing: Listing) -> Index:
    """Record a listing under the root. StorageError when the root cannot be written."""
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
    """The recorded index; None where there is none, or one that an other version wrote."""
    try:
        return Index.model_validate_json(storage.read(index_path(data)))
    except (FileNotFoundError, ValidationError):
        return None


def recorded_revision(data: DataConfig, storage: Storage) -> str | None:
    """The revision as far as it is known without listing anything: given, built in, or recorded."""
    if data.format == "digits":
        return DIGITS_REVISION
    if data.revision is not None:
        return data.revision
    index = read_index(storage, data)
    return index.digest if index else None


def revision_of(data: DataConfig, storage: Storage, fresh: bool) -> str | None:
    """The digest of what the source holds; None when no source is given.

    Listed now (and recorded) when `fresh`, or when the source is local, or when nothing is recorded; a remote source
    is otherwise taken at its given revision or its index. DataError as `list_source`.
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
    """The number of classes: given, built in, or as the recorded index has it; None where nothing says it."""
    if data.classes is not None:
        return data.classes
    if data.format == "digits":
        return DIGITS_CLASSES
    index = read_index(storage, data)
    return index.classes or None if index else None


def _is_local(data: DataConfig) -> bool:
    uris = (data.uri, data.validation_uri)
    return all(open_storage(uri).local_path() is not None for uri in uris if uri is not None)
