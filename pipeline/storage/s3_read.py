"""Reading objects of S3 as files: from front to back, and here and there.

Retries and error messages are those of `S3Storage.call`. Both read one version of the object, or say that it changed.
"""

import io
from collections.abc import Callable
from contextlib import closing
from typing import Any, Protocol, TypeVar

from pipeline.errors import StorageError
from pipeline.storage.s3_errors import error_code, not_s3_error

Result = TypeVar("Result")

_BLOCK = 1024**2
_TAIL = 64 * 1024  # bytes at the end of a file, where Parquet has its footer


class Store(Protocol):
    """What reading uses of `S3Storage`."""

    @property
    def client(self) -> Any: ...
    def uri(self, path: str = "") -> str: ...
    def arguments(self, path: str) -> dict[str, str]: ...
    def call(self, path: str, function: Callable[[], Result]) -> Result: ...


class BrokenOffError(StorageError):
    """A stream broke and cannot be resumed."""


class Body(io.RawIOBase):
    """An object's content from byte `start` on, as a stream. A broken connection is resumed at its offset, in the same
    version of the object; BrokenOffError if the object was replaced or the content is damaged.
    """

    def __init__(self, storage: Store, path: str, start: int = 0) -> None:
        super().__init__()
        self._storage, self._path, self._start, self._at = storage, path, start, start
        self._size, self.tag = 0, ""
        self._stream: Any = None
        self._stream = storage.call(path, self._get)

    def _get(self) -> Any:
        request = self._storage.arguments(self._path)
        if self._at:
            request["Range"] = f"bytes={self._at}-"
        if self._at > self._start:
            request["IfMatch"] = self.tag
        answer = self._storage.client.get_object(**request)
        if "ETag" not in answer:
            raise not_s3_error("an object without an ETag")
        if self._at == self._start:
            # Without quotes: S3 accepts both forms in a condition, Ceph 16 at a put only the unquoted one.
            self._size, self.tag = self._at + answer["ContentLength"], answer["ETag"].strip('"')
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
            raise self._broken("was damaged in transfer") from error
        except Exception:
            self._stream = None
            raise

    def _reopened(self) -> Any:
        try:
            return self._get()
        except Exception as error:
            if error_code(error) in ("PreconditionFailed", "InvalidRange"):
                raise self._broken("changed while it was read") from error
            raise

    def _broken(self, what: str) -> BrokenOffError:
        return BrokenOffError(f"{self._storage.uri(self._path)} {what}", "Run again.")

    def close(self) -> None:
        if not self.closed and self._stream is not None:
            self._stream.close()
        super().close()


class Seekable(io.RawIOBase):
    """A file to read of known size, whose position is a number."""

    _at: int
    _size: int

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        return self._at


class Ranges(Seekable):
    """An object as a file to seek in: each read is one request for exactly its bytes. For Parquet and the like.

    Opening it reads the end, whose bytes need no request afterwards. BrokenOffError if the object is replaced.
    """

    def __init__(self, storage: Store, path: str) -> None:
        super().__init__()
        self._storage, self._path, self._at = storage, path, 0
        self._size, self._tag, self._tail = storage.call(path, self._read_end)

    def _read_end(self) -> tuple[int, str, bytes]:
        """Size, tag and last bytes of the object."""
        try:
            answer, data = self._get(Range=f"bytes=-{_TAIL}")
        except Exception as error:
            if error_code(error) == "InvalidRange":  # of an empty object
                return 0, "", b""
            raise
        size = int(answer.get("ContentRange", f"/{len(data)}").rpartition("/")[2])  # a server may ignore the range
        return size, answer["ETag"].strip('"'), data

    def _get(self, **request: str) -> tuple[dict[str, Any], bytes]:
        answer = self._storage.client.get_object(**self._storage.arguments(self._path), **request)
        if "ETag" not in answer:
            raise not_s3_error("an object without an ETag")
        with closing(answer["Body"]) as body:
            return answer, body.read()

    def readinto(self, buffer: Any) -> int:
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def read(self, size: int | None = -1) -> bytes:
        end = self._size if size is None or size < 0 else min(self._at + size, self._size)
        if self._at >= end:
            return b""
        before_tail = self._size - len(self._tail)
        if self._at >= before_tail:
            data = self._tail[self._at - before_tail : end - before_tail]
        else:
            data = self._storage.call(self._path, lambda: self._range(self._at, end))
        self._at = end
        return data

    def _range(self, start: int, end: int) -> bytes:
        try:
            _, data = self._get(Range=f"bytes={start}-{end - 1}", IfMatch=self._tag)
        except Exception as error:
            if error_code(error) in ("PreconditionFailed", "InvalidRange"):
                raise BrokenOffError(
                    f"{self._storage.uri(self._path)} changed while it was read", "Run again."
                ) from error
            raise
        if len(data) != end - start:
            raise not_s3_error(f"{len(data)} bytes instead of {end - start}")
        return data
