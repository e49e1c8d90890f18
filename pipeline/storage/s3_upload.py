"""Uploads a stream of blocks to S3 as the parts of a multipart upload, without joining the blocks in memory.

Retries and error messages are those of `S3Storage.call`.
"""

import secrets
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain
from typing import Any, Protocol, TypeVar

from pipeline.errors import StorageError
from pipeline.storage.base import Block
from pipeline.storage.s3_errors import error_code, is_s3_error, not_s3_error
from pipeline.storage.s3_read import Seekable

Result = TypeVar("Result")

_PART = 16 * 1024**2  # bytes; S3 allows 10,000 parts of at least 5 MiB
_IN_FLIGHT = 4
_NONCE = "dvae-upload"  # in the object's metadata: tells whose upload made it


class Store(Protocol):
    """What an upload uses of `S3Storage`."""

    bucket: str

    @property
    def client(self) -> Any: ...
    def key(self, path: str) -> str: ...
    def uri(self, path: str = "") -> str: ...
    def call(self, path: str, function: Callable[[], Result]) -> Result: ...
    def write(self, path: str, data: bytes) -> None: ...


def write_stream(storage: Store, path: str, blocks: Iterable[Block]) -> None:
    """Write an object as in `Storage.write_stream`: by one put if it is small, else in parts."""
    parts = parts_of(blocks, _PART)
    first = next(parts, [])
    second = next(parts, None)
    if second is None:
        storage.write(path, b"".join(first))
        return
    upload = _Upload(storage, path)
    try:
        upload.send(chain([first, second], parts))
        upload.complete()
    except BaseException:
        upload.abort()
        raise


def parts_of(blocks: Iterable[Block], size: int) -> Iterator[list[memoryview]]:
    """The blocks' bytes in the same order, as lists of views with `size` bytes each; the last one may have fewer."""
    part, room = list[memoryview](), size
    for block in blocks:
        rest = memoryview(block).cast("B")
        while len(rest):
            part.append(rest[:room])
            rest, room = rest[room:], room - len(part[-1])
            if not room:
                yield part
                part, room = [], size
    if part:
        yield part


class Joined(Seekable):
    """Views as one file for reading, for botocore, which seeks in it to measure, hash and send it again."""

    def __init__(self, views: list[memoryview]) -> None:
        super().__init__()
        self._views, self._at = views, 0
        self._size = sum(len(view) for view in views)

    def readinto(self, buffer: Any) -> int:
        start = self._at
        for view in self._views:
            if start < len(view):
                piece = view[start : start + len(buffer)]
                buffer[: len(piece)] = piece
                self._at += len(piece)
                return len(piece)
            start -= len(view)
        return 0


class _Upload:
    """One multipart upload."""

    def __init__(self, storage: Store, path: str) -> None:
        self.storage, self.path, self.nonce = storage, path, secrets.token_hex(16)
        self.target = {"Bucket": storage.bucket, "Key": storage.key(path)}
        self.id = storage.call(path, self._begin)
        self.tags: list[str] = []

    def _begin(self) -> str:
        answer = self.storage.client.create_multipart_upload(**self.target, Metadata={_NONCE: self.nonce})
        if "UploadId" not in answer:
            raise not_s3_error("an upload without an UploadId")
        return str(answer["UploadId"])

    def send(self, parts: Iterable[list[memoryview]]) -> None:
        """Upload all parts; at most `_IN_FLIGHT` of them are held at a time."""
        flying = deque[Future[str]]()
        with ThreadPoolExecutor(_IN_FLIGHT, thread_name_prefix="s3-part") as pool:
            try:
                for number, part in enumerate(parts, 1):
                    if len(flying) == _IN_FLIGHT:
                        self.tags.append(flying.popleft().result())
                    flying.append(pool.submit(self._send_part, number, part))
                self.tags += [future.result() for future in flying]
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise

    def _send_part(self, number: int, part: list[memoryview]) -> str:
        def put() -> str:
            answer = self.storage.client.upload_part(
                **self.target, UploadId=self.id, PartNumber=number, Body=Joined(part)
            )
            if "ETag" not in answer:
                raise not_s3_error("a part without an ETag")
            return str(answer["ETag"])

        return self.storage.call(self.path, lambda: self._unless_gone(put))

    def complete(self) -> None:
        parts = [{"PartNumber": number, "ETag": tag} for number, tag in enumerate(self.tags, 1)]

        def finish() -> None:
            try:
                self.storage.client.complete_multipart_upload(
                    **self.target, UploadId=self.id, MultipartUpload={"Parts": parts}
                )
            except Exception as error:
                # The upload is gone if an earlier attempt completed it and its answer was lost.
                if error_code(error) != "NoSuchUpload" or not self._is_done():
                    raise

        self.storage.call(self.path, lambda: self._unless_gone(finish))

    def _unless_gone(self, request: Callable[[], Result]) -> Result:
        """The request's result. An upload that was aborted cannot be continued: StorageError, without retries."""
        try:
            return request()
        except Exception as error:
            if error_code(error) != "NoSuchUpload":
                raise
            where = self.storage.uri(self.path)
            raise StorageError(f"{where}: the upload was aborted on the server", "Run again.") from error

    def _is_done(self) -> bool:
        try:
            answer = self.storage.client.get_object(**self.target, Range="bytes=0-0")
        except Exception as error:
            if error_code(error) == "NoSuchKey":
                return False
            raise
        answer["Body"].close()
        return bool(answer["Metadata"].get(_NONCE) == self.nonce)

    def abort(self) -> None:
        """Delete the parts, with one request. An error of S3 is ignored, as this follows the one to be raised."""
        try:
            self.storage.client.abort_multipart_upload(**self.target, UploadId=self.id)
        except Exception as error:
            if not is_s3_error(error):
                raise
