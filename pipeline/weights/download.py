"""Downloads a public file: resumed where it was cut, its size and sum verified. No torch here."""

import fcntl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote

import requests

from pipeline.errors import ConfigError, StorageError
from pipeline.storage import storage_errors
from pipeline.weights.catalogue import PublicFile
from pipeline.weights.local import sha256_of

Progress = Callable[[int, int], None]
"""Called with the bytes that are here, and with all of them or 0 if their number is not known."""
_BLOCK = 1 << 16  # bytes; what a cut loses
_SECONDS = 30.0  # to connect, and between two blocks
_ATTEMPTS = 5  # without one new byte
_ELSEWHERE = (
    "On a machine with internet: `python -m pipeline weights fetch {name} --to FOLDER`; then bring FOLDER here "
    "and set `weights` to it, or get {url} and run the command with `--from` its folder."
)


class _CutError(Exception):
    """A connection that ended early, or a server that answered with an error that may pass."""


def download(file: PublicFile, folder: Path, name: str, progress: Progress, source: str | None = None) -> Path:
    """The file in `folder`, which this process has `alone`, whole and verified. What an earlier attempt left goes on.

    `name`: in the catalogue, for messages. `source`: a folder, or the address of a mirror that has the files by their
    publisher's names.

    Raises ConfigError for a wrong `source`, StorageError if it cannot be got, is not the file of the catalogue, or
    cannot be written.
    """
    url = file.url if source is None else _address(source, file.name)
    with storage_errors(str(folder)):
        target, partial = folder / file.name, folder / f"{file.name}.part"
        if target.exists():
            if _wrong(file, target) is None:
                return target
            target.unlink()  # damaged since, or somebody else's
        resumed = partial.exists() and partial.stat().st_size > 0
        _get(url, partial, name, file, progress)
        if resumed and _wrong(file, partial) is not None:  # the rest was of another file than the beginning
            partial.unlink()
            _get(url, partial, name, file, progress)
        if wrong := _wrong(file, partial):
            partial.unlink()
            raise StorageError(f"{url} is not the file of the catalogue: {wrong}", "Try again, or another source.")
        partial.replace(target)
        return target


def _address(source: str, name: str) -> str:
    """Where a folder, or a mirror, has the file: a path or an address. ConfigError if `source` is neither."""
    if source.startswith(("http://", "https://")):
        return f"{source.rstrip('/')}/{name}"
    if "://" in source and not source.startswith("file:///"):
        raise ConfigError(
            f"--from {source} is neither a folder nor the address of a mirror",
            "Give a path, file:///PATH or https://...; what lies on S3 is named by the config's `weights`.",
        )
    path = unquote(source.removeprefix("file://")) if source.startswith("file://") else source
    folder = Path(path).expanduser()
    if not path or not folder.is_dir():
        raise ConfigError(f"--from {source} is not a folder", "Give the folder that has the publishers' files.")
    return str(folder / name)


def _wrong(file: PublicFile, path: Path) -> str | None:
    """What is wrong with a file; None if nothing is."""
    size = path.stat().st_size
    if file.bytes is not None and size != file.bytes:
        return f"it has {size:,} bytes, not {file.bytes:,}"
    if file.sha256 is not None and not (found := sha256_of(path)).startswith(file.sha256):
        return f"its sha256 is {found[: len(file.sha256)]}, not {file.sha256}"
    return None


def _get(url: str, partial: Path, name: str, file: PublicFile, progress: Progress) -> None:
    if not url.startswith(("http://", "https://")):
        _copy(Path(url), partial, progress)
        return
    elsewhere = _ELSEWHERE.format(name=name, url=file.url)
    failed = 0
    while True:
        before = partial.stat().st_size if partial.exists() else 0
        try:
            _request(url, partial, before, progress, elsewhere)
            return
        except (
            _CutError,
            requests.ConnectionError,
            requests.Timeout,
            requests.exceptions.ChunkedEncodingError,
        ) as error:
            failed = 0 if partial.exists() and partial.stat().st_size > before else failed + 1
            if failed == _ATTEMPTS:
                raise _unreachable(url, error, elsewhere) from error
            time.sleep(min(0.5 * 2**failed, 8.0))
        except requests.RequestException as error:  # which no further attempt would mend, such as a wrong address
            raise _unreachable(url, error, elsewhere) from error


def _unreachable(url: str, error: Exception, hint: str) -> StorageError:
    return StorageError(f"{url} cannot be got ({' '.join(str(error).split())[:200]})", hint)


def _request(url: str, partial: Path, start: int, progress: Progress, elsewhere: str) -> None:
    """Append what is missing, or begin anew if the server does not send a part."""
    headers = {"Accept-Encoding": "identity", **({"Range": f"bytes={start}-"} if start else {})}
    with requests.get(url, headers=headers, stream=True, timeout=_SECONDS) as answer:
        if start and answer.status_code == 416:  # it is whole, or longer than the server's
            return
        if answer.status_code in (429, 500, 502, 503, 504):
            raise _CutError(f"HTTP status {answer.status_code}")
        if answer.status_code not in (200, 206):
            raise StorageError(f"{url} answered with HTTP status {answer.status_code}", elsewhere)
        begin = start if answer.status_code == 206 else 0
        length = answer.headers.get("Content-Length")
        total = begin + int(length) if length is not None else 0
        with open(partial, "ab" if begin else "wb") as handle:
            for block in answer.iter_content(_BLOCK):
                handle.write(block)
                progress(handle.tell(), total)
        if total and partial.stat().st_size != total:
            raise _CutError(f"the connection was cut after {partial.stat().st_size:,} of {total:,} bytes")


def _copy(source: Path, partial: Path, progress: Progress) -> None:
    try:
        total = source.stat().st_size
        with open(source, "rb") as reader, open(partial, "wb") as writer:
            while block := reader.read(_BLOCK):
                writer.write(block)
                progress(writer.tell(), total)
    except FileNotFoundError:
        raise StorageError(f"{source} is missing", "Bring it there under this name, as its publisher has it.") from None


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Make the folder and hold its lock: a second process waits. StorageError if it cannot be written."""
    with storage_errors(str(folder)):
        folder.mkdir(parents=True, exist_ok=True)
        lock = open(folder / "lock", "w")  # noqa: SIM115
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
