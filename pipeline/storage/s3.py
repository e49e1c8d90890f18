"""s3://: objects below a prefix of a bucket. An outage of minutes is waited for, and a lost answer misleads nobody.

Endpoint, region, addressing style and credentials are botocore's business, from the environment and ~/.aws/config.
What a user has to put right is worded in `s3_errors.py`.
"""

import io
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO, TypeVar, cast

from pipeline.errors import StorageError
from pipeline.storage.base import Entry, refused_at
from pipeline.storage.s3_errors import code_of, is_passing, is_s3_error, is_wordless, no_s3, s3_refusal

Result = TypeVar("Result")

_ATTEMPTS = 8  # botocore's own, over within seconds: for a dropped packet, not for an outage
_CONNECT_SECONDS = 5.0  # each; botocore's minute would make eight of an address that drops what comes
_PATIENCE_SECONDS = 300.0  # for an outage
_WORDLESS_SECONDS = 2.0  # for an answer without S3's words: cut short on its way, or not of an S3 server
_LONGEST_PAUSE = 10.0
_ONE_PUT = 64 * 1024**2  # bytes; above, an upload goes in parts (S3 takes no single one of more than 5 GB)
_BLOCK = 1024**2

_reached = threading.Event()  # has S3 ever answered this process? Until then an endpoint that is away is a wrong one
_making = threading.Lock()  # making two clients of one session at once is not safe


@cache
def _settings() -> Any:
    """botocore's configuration, credentials that renew themselves, and its slow start: once a process."""
    import botocore.session  # only those who use S3 pay for its import

    return botocore.session.get_session()


@cache
def _session() -> Any:
    """boto3, which adds transfers in parts, on top of them."""
    import boto3

    return boto3.Session(botocore_session=_settings())


def _patience(error: Exception) -> float:
    """For how many seconds to try again."""
    if is_wordless(error):
        return _WORDLESS_SECONDS
    if code_of(error):
        _reached.set()
    return _PATIENCE_SECONDS if is_passing(error) and _reached.is_set() else 0.0


class S3Storage:
    """A `Storage` on S3 or a server that speaks its protocol."""

    def __init__(self, bucket: str, prefix: str) -> None:
        self.bucket, self.prefix = bucket, prefix
        self.root = f"s3://{bucket}/{prefix}".rstrip("/")
        self._made: Any = None

    def __reduce__(self) -> tuple[Any, ...]:
        return (S3Storage, (self.bucket, self.prefix))  # a client does not travel between processes

    @property
    def client(self) -> Any:
        with _making:
            if self._made is None:
                from botocore.config import Config

                retries = {"mode": "standard", "total_max_attempts": _ATTEMPTS}
                config = Config(retries=retries, max_pool_connections=32, connect_timeout=_CONNECT_SECONDS)
                self._made = _session().client("s3", config=config)
            return self._made

    def key(self, path: str) -> str:
        return "/".join(part for part in (self.prefix, path) if part)

    def uri(self, path: str = "") -> str:
        return f"s3://{self.bucket}/{self.key(path)}".rstrip("/")

    def call(self, path: str, function: Callable[[], Result]) -> Result:
        """What the function returns; run again, with jitter, while S3 is busy or away.

        Any other error is raised at once, as one line, or as FileNotFoundError where there is no such object.
        """
        begin, pause = time.monotonic(), 1.0
        while True:
            try:
                result = function()
                _reached.set()
                return result
            except Exception as error:
                if not is_s3_error(error):
                    raise
                if time.monotonic() - begin >= _patience(error):
                    raise self._refusal(error, path) from error
            time.sleep(random.uniform(pause / 2, pause))
            pause = min(_LONGEST_PAUSE, 2 * pause)

    def _refusal(self, error: Exception, path: str) -> Exception:
        endpoint = self._made.meta.endpoint_url if self._made else ""
        return s3_refusal(error, self.uri(path), self.bucket, endpoint)

    @contextmanager
    def _set_up(self) -> Iterator[None]:
        """What botocore makes of its settings, before anything is asked of S3: its errors as one line."""
        try:
            yield
        except Exception as error:
            raise (self._refusal(error, "") if is_s3_error(error) else error) from error

    @property
    def endpoint(self) -> str:
        """The server's URL."""
        with self._set_up():
            return str(self.client.meta.endpoint_url)

    def local_path(self, path: str = "") -> None:
        """Nothing of it lies on this machine."""

    @property
    def authority(self) -> str | None:
        """The file or folder of the certificate authority that the server is to be known by; None: the usual ones."""
        found: str | None = _settings().get_config_variable("ca_bundle")
        return found

    def _arguments(self, path: str) -> dict[str, str]:
        return {"Bucket": self.bucket, "Key": self.key(path)}

    # --- reading ---

    def read(self, path: str) -> bytes:
        return self.read_tagged(path)[0]

    def read_tagged(self, path: str) -> tuple[bytes, str]:
        for left in reversed(range(_ATTEMPTS)):
            try:
                with _Body(self, path) as body:
                    return body.readall(), body.tag
            except _BrokenOffError:  # another version lies there now, or it came damaged: begin again
                if not left:
                    raise
                time.sleep(random.uniform(0, 1 / (1 + left)))
        raise AssertionError  # the last attempt returns or raises

    def open(self, path: str) -> BinaryIO:
        return cast(BinaryIO, io.BufferedReader(_Body(self, path), _BLOCK))

    def download(self, path: str, target: Path) -> None:
        with refused_at(str(target)):
            target.parent.mkdir(parents=True, exist_ok=True)
            self.call(path, lambda: self._download(path, target))

    def _download(self, path: str, target: Path) -> None:
        """In parts, side by side, all of one version."""
        try:
            self.client.download_file(self.bucket, self.key(path), str(target))
        except Exception as error:
            if is_wordless(error):  # it asked for the size first, and the answer to that has no words
                self.client.get_object(**self._arguments(path), Range="bytes=0-0")
            raise

    def exists(self, path: str) -> bool:
        """Asked by a listing: a refusal of it has words, one of HeadObject has none."""
        key = self.key(path)
        page = self.call(path, lambda: self._page(Prefix=key, MaxKeys=1))
        return any(item["Key"] == key for item in page.get("Contents", []))

    def list(self, prefix: str = "") -> Iterator[Entry]:
        start = len(self.prefix) + 1 if self.prefix else 0
        for page in self._pages(prefix):
            for item in page.get("Contents", []):
                yield Entry(item["Key"][start:], item["Size"])

    def folders(self, prefix: str = "") -> Sequence[str]:
        start = len(self._folder(prefix))
        pages = self._pages(prefix, Delimiter="/")
        return sorted(item["Prefix"][start:-1] for page in pages for item in page.get("CommonPrefixes", []))

    def _folder(self, prefix: str) -> str:
        key = self.key(prefix)
        return f"{key}/" if key else ""

    def _pages(self, prefix: str, **asked: str) -> Iterator[dict[str, Any]]:
        asked["Prefix"] = self._folder(prefix)
        while True:
            page = self.call(prefix, lambda: self._page(**asked))
            yield page
            if not page["IsTruncated"]:
                return
            asked["ContinuationToken"] = page["NextContinuationToken"]

    def _page(self, **asked: Any) -> dict[str, Any]:
        page: dict[str, Any] = self.client.list_objects_v2(Bucket=self.bucket, **asked)
        if "IsTruncated" not in page:
            raise no_s3("a listing that says nothing")
        return page

    # --- writing ---

    def write(self, path: str, data: bytes) -> None:
        if len(data) > _ONE_PUT:
            self.call(path, lambda: self.client.upload_fileobj(io.BytesIO(data), **self._arguments(path)))
        else:
            self.call(path, lambda: self.client.put_object(**self._arguments(path), Body=data))

    def upload(self, source: Path, path: str) -> None:
        def send() -> None:
            with open(source, "rb") as handle:
                self.client.upload_fileobj(handle, **self._arguments(path))

        self.call(path, send)

    def write_new(self, path: str, data: bytes) -> bool:
        return self._write_if(path, data, IfNoneMatch="*")

    def replace(self, path: str, data: bytes, tag: str) -> bool:
        return self._write_if(path, data, IfMatch=tag)

    def _write_if(self, path: str, data: bytes, **condition: str) -> bool:
        """Put under a condition. An attempt whose answer was lost may have been the one that wrote.

        Then the next one meets the condition broken, by ourselves; so the content decides. (Whoever cares whose write
        it was puts something of his own into it, as a lease does.)
        """
        attempts = 0

        def put() -> bool:
            nonlocal attempts
            attempts += 1
            try:
                self.client.put_object(**self._arguments(path), Body=data, **condition)
                return True
            except Exception as error:
                if code_of(error) not in ("PreconditionFailed", "412", "NoSuchKey"):
                    raise
                attempts += error.response["ResponseMetadata"].get("RetryAttempts", 0)  # type: ignore[attr-defined]
                return False

        return self.call(path, put) or (attempts > 1 and self._holds(path, data))

    def _holds(self, path: str, data: bytes) -> bool:
        try:
            return self.read(path) == data
        except FileNotFoundError:
            return False

    def delete(self, path: str) -> None:
        self.call(path, lambda: self.client.delete_object(**self._arguments(path)))

    def delete_folder(self, prefix: str) -> None:
        for entry in list(self.list(prefix)):
            self.delete(entry.path)

    # --- Arrow ---

    def arrow(self, path: str = "", lasting: bool = False) -> tuple[Any, str]:
        """Arrow's file system, which has an S3 client of its own, with what botocore was told; and the path in it.

        `lasting`: it is to outlive credentials that end; then Arrow finds and renews them itself.
        """
        return self._arrow_files(lasting), "/".join(part for part in (self.bucket, self.key(path)) if part)

    def _arrow_files(self, lasting: bool) -> Any:
        import pyarrow.fs
        from botocore.credentials import RefreshableCredentials

        with self._set_up():
            client = self.client
            with _making:
                keys = _settings().get_credentials()
        given: dict[str, Any] = {
            "region": client.meta.region_name,
            "endpoint_override": client.meta.endpoint_url,
            "force_virtual_addressing": (client.meta.config.s3 or {}).get("addressing_style") == "virtual",
            "tls_ca_file_path": self.authority,
            "retry_strategy": pyarrow.fs.AwsStandardS3RetryStrategy(max_attempts=2 * _ATTEMPTS),
        }
        if keys is not None and not (lasting and isinstance(keys, RefreshableCredentials)):
            frozen = keys.get_frozen_credentials()
            given |= {"access_key": frozen.access_key, "secret_key": frozen.secret_key, "session_token": frozen.token}
        return pyarrow.fs.S3FileSystem(**given)


class _BrokenOffError(StorageError):
    """A stream broke, and what came before it cannot be continued."""


class _Body(io.RawIOBase):
    """An object's bytes from the first to the last. A stream that breaks is taken up where it broke, in the same
    version of the object; _BrokenOffError when there is another one by then, or what came was damaged.
    """

    def __init__(self, storage: S3Storage, path: str) -> None:
        super().__init__()
        self._storage, self._path, self._at = storage, path, 0
        self._size, self.tag = 0, ""
        self._stream: Any = None
        self._stream = storage.call(path, self._get)

    def _get(self) -> Any:
        asked = self._storage._arguments(self._path)
        if self._at:
            asked |= {"Range": f"bytes={self._at}-", "IfMatch": self.tag}
        answer = self._storage.client.get_object(**asked)
        if "ETag" not in answer:
            raise no_s3("an object without an ETag")
        if not self._at:
            # Without its quotes: in a condition S3 takes an ETag either way, Ceph 16 at a put only bare.
            self._size, self.tag = answer["ContentLength"], answer["ETag"].strip('"')
        return answer["Body"]

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._take(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def readall(self) -> bytes:
        parts = []
        while part := self._take(16 * _BLOCK):
            parts.append(part)
        return b"".join(parts)

    def _take(self, most: int) -> bytes:
        data = self._storage.call(self._path, lambda: self._next(most))
        self._at += len(data)
        return data

    def _next(self, most: int) -> bytes:
        from botocore.exceptions import FlexibleChecksumError

        if self._stream is None:
            if self._at == self._size > 0:
                return b""
            self._stream = self._reopened()
        try:
            data: bytes = self._stream.read(most)
            return data
        except FlexibleChecksumError as error:
            raise self._broken("arrived damaged") from error
        except Exception:
            self._stream = None
            raise

    def _reopened(self) -> Any:
        try:
            return self._get()
        except Exception as error:
            if code_of(error) in ("PreconditionFailed", "InvalidRange"):
                raise self._broken("changed while it was read") from error
            raise

    def _broken(self, what: str) -> _BrokenOffError:
        return _BrokenOffError(f"{self._storage.uri(self._path)} {what}", "Run again.")

    def close(self) -> None:
        if not self.closed and self._stream is not None:
            self._stream.close()
        super().close()
