"""The revision of a source: a digest of what it holds, wherever that lies. It makes fingerprints follow the content.

Listing is in `listing.py`, the MD5s of local files in `hashes.py`; `index.py` joins the three and records the result.
"""

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from pipeline.data.find import class_of
from pipeline.data.hashes import LocalSums
from pipeline.data.listing import Listing
from pipeline.data.split import Split
from pipeline.errors import DataError
from pipeline.storage import Entry, Storage, open_storage

DIGITS_REVISION = hashlib.sha256(b"scikit-learn digits: 1797 images of 8 x 8, 16 grey levels").hexdigest()
_MD5 = re.compile("[0-9a-f]{32}")


class Listener(NamedTuple):
    """What hears of the listing and reading of a source: lines of text, and (done, total, unit) from time to time."""

    say: Callable[[str], None] = lambda text: None  # noqa: ARG005
    progress: Callable[[int, int, str], None] = lambda done, total, unit: None  # noqa: ARG005


def revision(listing: Listing, root: Storage, listener: Listener) -> str:
    """sha256 in hex over the format, and the split, class folder, relative path and tag of each file.

    The value of `data.revision`. The class folder is counted since a glob may choose which folder it is. A tag is the
    MD5 of the content: S3's ETag, and of a local file the MD5 that is remembered at `root` or taken now. So the same
    files at another place have the same revision, except those whose ETag is no MD5, which are said. DataError for a
    name that is not UTF-8, and as `LocalSums.take`.
    """
    if listing.format == "digits":
        return DIGITS_REVISION
    for _, _, entries in _parts(listing):
        _check_names(entries)  # first: taking MD5s may last
    tags = {uri: iter(tags) for uri, tags in _tags(listing, root, listener).items()}
    levels = {"train": listing.train_level, "validation": listing.validation_level}
    digest = hashlib.sha256(listing.format.encode())
    for split, uri, entries in _parts(listing):
        for entry, tag in zip(entries, tags[uri], strict=False):  # both splits may lie below one root
            name = class_of(entry.path, levels[split]) if listing.format == "folder" else ""
            digest.update(f"\n{split}\0{name}\0{entry.path}\0{tag}".encode())
    return digest.hexdigest()


def _parts(listing: Listing) -> Iterator[tuple[Split, str, tuple[Entry, ...]]]:
    yield "train", listing.train_root, listing.train
    if listing.validation_root is not None:
        yield "validation", listing.validation_root, listing.validation


def _check_names(entries: Iterable[Entry]) -> None:
    for entry in entries:
        try:
            entry.path.encode()
        except UnicodeEncodeError as error:
            raise DataError(f"the file name {entry.path!a} is not UTF-8", "Rename the file.") from error


def _tags(listing: Listing, root: Storage, listener: Listener) -> dict[str, Iterable[str]]:
    """The tags of the files below each root of the listing, in order: training before validation."""
    below: dict[str, list[Entry]] = {}
    for _, uri, entries in _parts(listing):
        below.setdefault(uri, []).extend(entries)
    found, local = dict[str, Iterable[str]](), list[LocalSums]()
    for uri, files in below.items():
        storage = open_storage(uri)
        if storage.local_path() is None:
            _say_other_tags(storage, files, listener.say)
            found[uri] = (entry.tag for entry in files)
        else:
            found[uri] = sums = LocalSums(storage, files, root, listener.say)
            local.append(sums)
    _take(local, listener)
    return found


def _take(local: list[LocalSums], listener: Listener) -> None:
    """Read what is not remembered, with progress in megabytes over all of it."""
    total, before = sum(sums.missing_bytes for sums in local), 0
    for sums in local:

        def progress(done: int, before: int = before) -> None:
            listener.progress((before + done) // 10**6, total // 10**6, "MB")

        sums.take(progress)
        before += sums.missing_bytes


def _say_other_tags(storage: Storage, files: list[Entry], say: Callable[[str], None]) -> None:
    """One line if ETags are no MD5s: of multipart uploads, which end in -N, or of objects encrypted with a key.

    The latter look like MD5s. A bucket is encrypted as a whole, so one object is asked.
    """
    alike = [entry.path for entry in files if _MD5.fullmatch(entry.tag)]
    multipart = len(files) - len(alike)
    with_key = bool(alike) and not storage.tag_is_md5(alike[0])
    count, why = (len(files), "of encryption with a key") if with_key else (multipart, "of multipart uploads")
    if count:
        say(
            f"{storage.root}: the revision of {count} of {len(files)} files goes by S3's tags {why}, which are no MD5: "
            "a copy elsewhere counts as other data"
        )
