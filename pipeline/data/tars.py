"""Images in WebDataset tars: units of work, samples, labels, and how they are read."""

import json
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from pipeline.data.raw import RawExample, as_label, read_errors
from pipeline.data.split import Split
from pipeline.errors import DataError
from pipeline.storage import Storage, open_storage

_MEMBERS = ("jpg", "jpeg", "png", "webp")  # suffixes of images in a tar


@dataclass(frozen=True)
class TarUnit:
    """One tar of images, each with a .cls or .json member for its label."""

    index: int
    split: Split | None
    uri: str
    path: str

    def read(self) -> Iterator[RawExample]:
        with _local(open_storage(self.uri), self.path) as local, read_errors(f"{self.uri}/{self.path}", "a tar"):
            if local.stat().st_size % tarfile.BLOCKSIZE:
                raise tarfile.ReadError("it is truncated")
            with tarfile.open(local, "r|") as tar:
                for key, members in _samples(tar):
                    found = [name for name in _MEMBERS if name in members]
                    if found:
                        yield RawExample(f"{self.path}/{key}", _label_of(members, key, self.path), members[found[0]])


@contextmanager
def _local(storage: Storage, path: str) -> Iterator[Path]:
    """A local path of the file; a remote one is downloaded, as a download can be resumed but a stream cannot."""
    file = storage.local_path(path)
    if file is not None:
        yield file
        return
    with tempfile.TemporaryDirectory(prefix="dvae-") as folder:
        target = Path(folder, "source.tar")
        try:
            storage.download(path, target)
        except FileNotFoundError as error:
            raise DataError(
                f"{storage.uri(path)}: the file was removed since the source was listed", "Run again."
            ) from error
        yield target


def _samples(tar: tarfile.TarFile) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Consecutive members with the same key, as {lower-case suffix: content}; one sample is in memory at a time."""
    current, members = "", dict[str, bytes]()
    for member in tar:
        path = PurePosixPath(member.name)
        stem, _, suffix = path.name.partition(".")
        if not member.isfile() or not stem or suffix.lower() not in (*_MEMBERS, "cls", "json"):
            continue
        key = str(path.with_name(stem))
        if key != current and members:
            yield current, members
            members = {}
        current = key
        content = tar.extractfile(member)
        assert content is not None
        members[suffix.lower()] = content.read()
    if members:
        yield current, members


def _label_of(members: dict[str, bytes], key: str, path: str) -> int:
    """The label from KEY.cls, or from "label" in KEY.json. DataError if there is none."""
    if "cls" in members:
        return as_label(members["cls"].decode(errors="replace").strip(), f"{path}/{key}.cls")
    if "json" in members:
        try:
            return as_label(json.loads(members["json"])["label"], f"{path}/{key}.json")
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f'{path}/{key}.json: "label" is missing', "Add the label, or a .cls member.") from error
    raise DataError(f"{path}/{key}: the image has no label", "Add a .cls or .json member of the same name.")
