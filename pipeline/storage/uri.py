"""Opens the storage of a URI, and names the folder of local copies."""

import os
from pathlib import Path
from urllib.parse import unquote, urlparse

from pipeline.errors import ConfigError
from pipeline.storage.base import Storage
from pipeline.storage.local import LocalStorage


def open_storage(uri: str) -> Storage:
    """The storage at `uri`: a local path, file:///path or s3://bucket/prefix. Does not access it yet."""
    if not uri:
        raise ConfigError("the URI is empty", "Use a local path, file:///PATH or s3://BUCKET/PREFIX.")
    parsed = urlparse(uri)
    if not parsed.scheme:
        return LocalStorage(Path(uri).expanduser())
    if parsed.scheme == "file":
        if parsed.netloc not in ("", "localhost") or parsed.query or parsed.fragment:
            raise ConfigError(
                f"'{uri}' is not a local path", "Write file:///PATH with three slashes, %23 for # and %3F for ?."
            )
        return LocalStorage(Path(unquote(parsed.path)))
    if parsed.scheme == "s3":
        bucket, _, prefix = uri.partition("://")[2].partition("/")  # a key may contain ? and #
        if not bucket:
            raise ConfigError(f"'{uri}' names no bucket", "Write s3://BUCKET/PREFIX.")
        from pipeline.storage.s3 import S3Storage

        return S3Storage(bucket, prefix.strip("/"))
    raise ConfigError(f"'{uri}' is neither file:// nor s3://", "Use a local path, file:///PATH or s3://BUCKET/PREFIX.")


def cache_folder() -> Path:
    """The folder of local copies of remote files: denoising-vae in `$XDG_CACHE_HOME` or ~/.cache."""
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "denoising-vae"


def split_uri(uri: str) -> tuple[Storage, str]:
    """The storage of the folder of the file `uri`, and the file's name in it."""
    folder, _, name = uri.rstrip("/").rpartition("/")
    return open_storage(folder or "."), name
