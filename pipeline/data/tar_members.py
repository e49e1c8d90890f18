"""Reads the members of a tar, forwards: plain or compressed, on a local disk or in a bucket. Knows no images or labels.

Python's `tarfile` parses the headers. Its loop over members is not used, since it takes damage in the middle, and a
missing end, for the end of the archive, and keeps every member in memory.
"""

import bz2
import gzip
import lzma
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO, cast

from pipeline.data.endings import readable
from pipeline.data.raw import read_errors
from pipeline.errors import DataError
from pipeline.storage import Storage

BLOCK = tarfile.BLOCKSIZE
_MAGIC: dict[bytes, Callable[[IO[bytes]], IO[bytes]]] = {
    b"\x1f\x8b": lambda stream: cast(IO[bytes], gzip.GzipFile(fileobj=stream)),
    b"BZh": lambda stream: cast(IO[bytes], bz2.BZ2File(stream)),
    b"\xfd7zXZ\x00": lambda stream: cast(IO[bytes], lzma.LZMAFile(stream)),  # noqa: SIM115  # closed by TarStream
}
_ZSTD = b"\x28\xb5\x2f\xfd"
_HEADER_BYTES = 16 << 20  # of a long name or extended attributes; a damaged header may promise any number
_READ_THROUGH = 4 << 20  # bytes of a gap that a stream from a bucket reads faster than it opens again behind them
_PIECE = 1 << 20
_PADDING = 4 << 20  # zeros that may follow the end mark: more than any usual size of a record


class TarStream:
    """The bytes of a tar, read forwards, with the interface that `tarfile` needs of a file.

    What is skipped of a plain tar is not read: a local file is sought in, an object in a bucket opened again behind a
    large gap. A compressed tar has to be read through.
    """

    def __init__(self, storage: Storage, path: str, start: int = 0) -> None:
        self._storage, self._path, self._at = storage, path, start
        first = storage.read_start(path, BLOCK)
        if first.startswith(_ZSTD):
            raise tarfile.ReadError("it is compressed by zstd, which is not supported: gzip, bzip2 and xz are")
        opener = next((opener for magic, opener in _MAGIC.items() if first.startswith(magic)), None)
        self.compressed = opener is not None
        self._file = storage.open(path, 0 if opener else start)
        self._stream: IO[bytes] = opener(self._file) if opener else self._file
        if opener:
            self._at = 0
            self.seek(start)

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int) -> None:
        """Go forwards to an offset in the (decompressed) tar."""
        if self._stream.seekable():  # a local file, or a compressed one, which is then read through
            self._stream.seek(offset)
        elif offset - self._at > _READ_THROUGH:
            self._file.close()
            self._file = self._stream = self._storage.open(self._path, offset)
        else:
            while self._at < offset and (piece := self._stream.read(min(_PIECE, offset - self._at))):
                self._at += len(piece)
        self._at = offset

    def read(self, size: int) -> bytes:
        """Up to `size` bytes of a header. ReadError for a size that no header has."""
        if size > _HEADER_BYTES:
            raise tarfile.ReadError(f"it is damaged at byte {self._at}: a header of {size} bytes")
        return self.body(size)

    def body(self, size: int) -> bytes:
        """The next bytes of a member: less than `size` only at the end of the file."""
        content = self._stream.read(size)
        self._at += len(content)
        return content

    def close(self) -> None:
        self._stream.close()
        self._file.close()


class TarMembers(tarfile.TarFile):
    """The members of a tar in order: iterate once, forwards. A TarFile only because `tarfile` parses headers for one.

    A block of zeros is the end mark, as for GNU tar; what follows it is read on if it is another tar (`cat a b`).
    ReadError for damaged headers, and for a tar without an end mark: it was cut.
    """

    def __init__(self, stream: TarStream) -> None:
        self.stream = stream
        self.fileobj = stream  # type: ignore[assignment]
        self.offset = stream.tell()
        self.encoding, self.errors = "utf-8", "surrogateescape"
        self.pax_headers = {}
        self.garbage_at: int | None = None  # the offset of bytes behind the end mark that are no tar
        self.zeros = 0  # bytes of zeros at the end, if they are more than the padding of a tar

    def __iter__(self) -> Iterator[tarfile.TarInfo]:
        ended, ends_at = False, 0
        while True:
            begin = self.offset
            self.stream.seek(begin)
            try:
                member = tarfile.TarInfo.fromtarfile(self)
            except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
                ended = True
                self.offset = begin + BLOCK
                continue
            except tarfile.EmptyHeaderError as error:  # type: ignore[attr-defined]
                if ended:
                    self.zeros = begin - ends_at if begin - ends_at > _PADDING else 0
                    return
                missing = f"it is cut after byte {begin}: the end mark of a tar is missing" if begin else "it is empty"
                raise tarfile.ReadError(missing) from error
            except (tarfile.HeaderError, ValueError) as error:  # ValueError: numbers in extended headers
                if not ended:
                    raise tarfile.ReadError(f"it is damaged at byte {begin}: {error}") from error
                self.garbage_at = begin
                return
            if self.offset <= begin:  # a negative size
                raise tarfile.ReadError(f"it is damaged at byte {begin}")
            ended, ends_at = False, self.offset
            yield member


@contextmanager
def opened_tar(storage: Storage, path: str, start: int = 0) -> Iterator[TarStream]:
    """A tar, from byte `start` of its (decompressed) content on. DataError for what cannot be read as a tar."""
    where = storage.uri(path)
    with read_errors(where, "a tar"):
        stream = TarStream(storage, path, start)
        try:
            yield stream
        finally:
            stream.close()


def read_body(stream: TarStream, offset: int, size: int, where: str) -> bytes:
    """The content of the member whose data begin at `offset`. DataError if there is none of that size any more."""
    stream.seek(offset - BLOCK)
    header = stream.read(BLOCK)
    try:
        found = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape").size == size
    except tarfile.HeaderError:
        found = False
    content = stream.body(size) if found else b""
    if not found or len(content) < size:
        raise DataError(f"{where}: the tar has changed since the source was listed", "Run again.")
    return content


def readable_name(name: str) -> str:
    """A member's `readable` path without `./`: a key has to be text."""
    return "/".join(part for part in readable(name).split("/") if part not in ("", "."))
