"""s3://: objects below a prefix of a bucket, with retries during outages of up to five minutes.

Endpoint, region, addressing style and credentials are configured in botocore (environment, ~/.aws/config). Error
messages are in `s3_errors.py`.
"""

import io
import random
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO, TypeVar, cast

from pipeline.storage import s3_upload
from pipeline.storage.base import Block, Entry, storage_errors
from pipeline.storage.s3_errors import error_code, is_bare_status, is_s3_error, is_transient, not_s3_error, s3_error
from pipeline.storage.s3_read import Body, BrokenOffError, Ranges

Result = TypeVar("Result")

_ATTEMPTS = 8  # of botocore, which take seconds: for a dropped packet, not for an outage
_CONNECT_SECONDS = 5.0  # per attempt; botocore's default of 60 s would take 8 min at an address that drops packets
_RETRY_SECONDS = 300.0  # during an outage
_BARE_STATUS_SECONDS = 2.0  # after an answer without an S3 error code: truncated, or not from an S3 server
_LONGEST_PAUSE = 10.0
_ONE_PUT = 64 * 1024**2  # bytes; larger uploads are multipart (S3 limits a single put to 5 GB)
_BLOCK = 1024**2
_QUEUED_BLOCKS = 64  # of 256 KiB

_reached = threading.Event()  # S3 has answered this process; before that, no answer means a wrong endpoint
_creating = threading.Lock()  # a session must not create two clients concurrently


@cache
def _settings() -> Any:
    """botocore's session, with its configuration and renewable credentials: one per process, as it starts slowly."""
    import botocore.session  # slow; not imported for local roots

    return botocore.session.get_session()


@cache
def _session() -> Any:
    """A boto3 session on top of botocore's, for multipart transfers."""
    import boto3

    return boto3.Session(botocore_session=_settings())


def _retry_seconds(error: Exception) -> float:
    """For how many seconds after the first attempt to retry."""
    if is_bare_status(error):
        return _BARE_STATUS_SECONDS
    if error_code(error):
        _reached.set()
    return _RETRY_SECONDS if is_transient(error) and _reached.is_set() else 0.0


class S3Storage:
    """A `Storage` on S3 or a compatible server."""

    def __init__(self, bucket: str, prefix: str) -> None:
        self.bucket, self.prefix = bucket, prefix
        self.root = f"s3://{bucket}/{prefix}".rstrip("/")
        self._client: Any = None

    def __reduce__(self) -> tuple[Any, ...]:
        return (S3Storage, (self.bucket, self.prefix))  # a client cannot be pickled

    @property
    def client(self) -> Any:
        with _creating:
            if self._client is None:
                from botocore.config import Config

                retries = {"mode": "standard", "total_max_attempts": _ATTEMPTS}
                config = Config(retries=retries, max_pool_connections=32, connect_timeout=_CONNECT_SECONDS)
                self._client = _session().client("s3", config=config)
            return self._client

    def key(self, path: str) -> str:
        return "/".join(part for part in (self.prefix, path) if part)

    def uri(self, path: str = "") -> str:
        return f"s3://{self.bucket}/{self.key(path)}".rstrip("/")

    def call(self, path: str, function: Callable[[], Result]) -> Result:
        """The result of `function`, which is retried with jitter on transient errors.

        Any other error is raised at once, as StorageError, or FileNotFoundError if the object does not exist.
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
                if time.monotonic() - begin >= _retry_seconds(error):
                    raise self._error(error, path) from error
            time.sleep(random.uniform(pause / 2, pause))
            pause = min(_LONGEST_PAUSE, 2 * pause)

    def _error(self, error: Exception, path: str) -> Exception:
        endpoint = self._client.meta.endpoint_url if self._client else ""
        return s3_error(error, self.uri(path), self.bucket, endpoint)

    @contextmanager
    def _setup_errors(self) -> Iterator[None]:
        """Turn botocore's errors about its configuration, before any request, into StorageErrors."""
        try:
            yield
        except Exception as error:
            raise (self._error(error, "") if is_s3_error(error) else error) from error

    @property
    def endpoint(self) -> str:
        """The server's URL."""
        with self._setup_errors():
            return str(self.client.meta.endpoint_url)

    def local_path(self, path: str = "") -> None:
        """None: nothing is stored locally."""

    @property
    def authority(self) -> str | None:
        """File or folder of the server's certificate authority; None: the system's."""
        found: str | None = _settings().get_config_variable("ca_bundle")
        return found

    def arguments(self, path: str) -> dict[str, str]:
        return {"Bucket": self.bucket, "Key": self.key(path)}

    # --- reading ---

    def read(self, path: str) -> bytes:
        return self.read_tagged(path)[0]

    def read_tagged(self, path: str) -> tuple[bytes, str]:
        for left in reversed(range(_ATTEMPTS)):
            try:
                with Body(self, path) as body:
                    return body.readall(), body.tag
            except BrokenOffError:  # replaced while reading, or damaged: read again
                if not left:
                    raise
                time.sleep(random.uniform(0, 1 / (1 + left)))
        raise AssertionError  # the last attempt returns or raises

    def read_start(self, path: str, size: int) -> bytes:
        def get() -> bytes:
            try:
                answer = self.client.get_object(**self.arguments(path), Range=f"bytes=0-{size - 1}")
            except Exception as error:
                if error_code(error) == "InvalidRange":  # of an empty object
                    return b""
                raise
            if "ETag" not in answer:
                raise not_s3_error("an object without an ETag")
            with closing(answer["Body"]) as body:
                content: bytes = body.read(size)  # a server may ignore the range
                return content

        return self.call(path, get)

    def open(self, path: str, start: int = 0) -> BinaryIO:
        return cast(BinaryIO, io.BufferedReader(Body(self, path, start), _BLOCK))

    def open_ranges(self, path: str) -> BinaryIO:
        return cast(BinaryIO, Ranges(self, path))

    def download(self, path: str, target: Path) -> None:
        with storage_errors(str(target)):
            target.parent.mkdir(parents=True, exist_ok=True)
            self.call(path, lambda: self._download(path, target))

    def _download(self, path: str, target: Path) -> None:
        """Download in parallel parts, all of one version."""
        from boto3.s3.transfer import TransferConfig

        # By default 250 MiB would wait in memory for a slow disk.
        config = TransferConfig(max_io_queue=_QUEUED_BLOCKS)
        try:
            self.client.download_file(self.bucket, self.key(path), str(target), Config=config)
        except Exception as error:
            if is_bare_status(error):  # from its HeadObject, which has no error body
                self.client.get_object(**self.arguments(path), Range="bytes=0-0")
            raise

    def exists(self, path: str) -> bool:
        """Uses a listing, since errors of HeadObject have no body."""
        key = self.key(path)
        page = self.call(path, lambda: self._page(Prefix=key, MaxKeys=1))
        return any(item["Key"] == key for item in page.get("Contents", []))

    def list(self, prefix: str = "") -> Iterator[Entry]:
        start = len(self.prefix) + 1 if self.prefix else 0
        for page in self._pages(prefix):
            for item in page.get("Contents", []):
                yield Entry(item["Key"][start:], item["Size"], item["ETag"].strip('"'))

    def tag_is_md5(self, path: str) -> bool:
        """False for an object that is encrypted with a key of KMS or of the user: then S3's ETag is no MD5."""

        def read_headers() -> bool:  # errors of HeadObject have no body
            answer = self.client.get_object(**self.arguments(path))
            answer["Body"].close()
            with_key = answer.get("ServerSideEncryption", "").startswith("aws:kms")
            return not with_key and "SSECustomerAlgorithm" not in answer

        return self.call(path, read_headers)

    def folders(self, prefix: str = "") -> Sequence[str]:
        start = len(self._folder(prefix))
        pages = self._pages(prefix, Delimiter="/")
        return sorted(item["Prefix"][start:-1] for page in pages for item in page.get("CommonPrefixes", []))

    def _folder(self, prefix: str) -> str:
        key = self.key(prefix)
        return f"{key}/" if key else ""

    def _pages(self, prefix: str, **query: str) -> Iterator[dict[str, Any]]:
        query["Prefix"] = self._folder(prefix)
        while True:
            page = self.call(prefix, lambda: self._page(**query))
            yield page
            if not page["IsTruncated"]:
                return
            query["ContinuationToken"] = page["NextContinuationToken"]

    def _page(self, **query: Any) -> dict[str, Any]:
        page: dict[str, Any] = self.client.list_objects_v2(Bucket=self.bucket, **query)
        if "IsTruncated" not in page:
            raise not_s3_error("a listing without IsTruncated")
        if any("ETag" not in item for item in page.get("Contents", ())):
            raise not_s3_error("a listing without ETags")
        return page

    # --- writing ---

    def write(self, path: str, data: bytes) -> None:
        if len(data) > _ONE_PUT:
            self.call(path, lambda: self.client.upload_fileobj(io.BytesIO(data), **self.arguments(path)))
        else:
            self.call(path, lambda: self.client.put_object(**self.arguments(path), Body=data))

    def write_stream(self, path: str, blocks: Iterable[Block]) -> None:
        s3_upload.write_stream(self, path, blocks)

    def upload(self, source: Path, path: str) -> None:
        def send() -> None:
            with open(source, "rb") as handle:
                self.client.upload_fileobj(handle, **self.arguments(path))

        self.call(path, send)

    def write_new(self, path: str, data: bytes) -> bool:
        return self._write_if(path, data, IfNoneMatch="*")

    def replace(self, path: str, data: bytes, tag: str) -> bool:
        return self._write_if(path, data, IfMatch=tag)

    def _write_if(self, path: str, data: bytes, **condition: str) -> bool:
        """Put with a condition; False if the condition fails.

        If an attempt wrote the object but its answer was lost, the retry fails its own condition. Then the write counts
        as successful if the object has the content. (A caller that must know who wrote it adds a nonce, as a lease.)
        """
        attempts = 0

        def put() -> bool:
            nonlocal attempts
            attempts += 1
            try:
                self.client.put_object(**self.arguments(path), Body=data, **condition)
                return True
            except Exception as error:
                if error_code(error) not in ("PreconditionFailed", "412", "NoSuchKey"):
                    raise
                attempts += error.response["ResponseMetadata"].get("RetryAttempts", 0)  # type: ignore[attr-defined]
                return False

        return self.call(path, put) or (attempts > 1 and self._has_content(path, data))

    def _has_content(self, path: str, data: bytes) -> bool:
        try:
            return self.read(path) == data
        except FileNotFoundError:
            return False

    def delete(self, path: str) -> None:
        self.call(path, lambda: self.client.delete_object(**self.arguments(path)))

    def delete_folder(self, prefix: str) -> None:
        for entry in list(self.list(prefix)):
            self.delete(entry.path)
