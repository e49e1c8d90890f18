"""Finds the files of one URI, be it a folder, a file or a glob: which hold images, which do not, which links are dead.

Only names are read, and the first bytes of files whose ending does not tell. Splits and classes are in `listing.py`.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

from pipeline.data.endings import (
    ENDINGS,
    HEAD,
    HEIF_ENDINGS,
    NO_ENDING,
    TAR_HEAD,
    UNDECIDED,
    ending_of,
    image_kind,
    is_ignored,
    is_tar,
)
from pipeline.data.globs import Glob, has_glob, literal_path, parse_glob
from pipeline.errors import DataError, StorageError
from pipeline.storage import Entry, Storage, broken_links, local_entry, open_storage, split_uri

OUTSIDE = "outside of class folders"
HOLDING = -2  # as a class level: the folder that holds the file
_AHEAD = 16  # files whose first bytes are read concurrently


@dataclass
class Found:
    """The files below `storage.root`; `entries` are those to read, sorted by path."""

    storage: Storage
    layout: str
    entries: list[Entry] = field(default_factory=list)
    class_level: int = 0  # which part of a path is the class folder; HOLDING after a glob of files
    explicit: bool = False  # chosen by a glob, or by the name of one file
    skipped: Counter[str] = field(default_factory=Counter)  # files that are not read, by ending
    others: list[str] = field(default_factory=list)  # their paths
    broken: dict[str, str] = field(default_factory=dict)  # paths of links that lead nowhere, with the reason
    heif: list[str] = field(default_factory=list)  # paths of images that need pillow-heif


def find_files(name: str, uri: str, layout: str, progress: Callable[[int], None]) -> Found:
    """The files of the URI in the field `name`. DataError if it is missing or unreadable, or a glob matches nothing."""
    try:
        storage, listed, glob = _open(uri, layout)
        explicit = glob is not None or (isinstance(listed, list) and len(listed) == 1)
        found = Found(storage, layout, explicit=explicit)
        levels = _sort_out(found, _matching(listed, glob, uri), progress)
        folder = storage.local_path()
        if folder is not None and folder.is_dir():
            _add_broken(found, folder, glob, name)
    except FileNotFoundError as error:
        raise DataError(f"{name} {uri}: '{error.filename or error}' does not exist", "Correct the URI.") from error
    except StorageError as error:
        raise DataError(f"{name} {error.what}", error.hint) from error
    if layout == "folder":
        found = _with_classes(found, levels, f"{name} {uri}")
    found.entries.sort()
    progress(len(found.entries))
    return found


def class_of(path: str, level: int) -> str:
    """The class folder of an image; empty for one outside of class folders."""
    *folders, _ = path.split("/")
    if level == HOLDING:
        return folders[-1] if folders else ""
    return folders[level] if len(folders) > level else ""


# --- which files there are ---


def _open(uri: str, layout: str) -> tuple[Storage, Iterable[Entry], Glob | None]:
    """The storage, what is listed in it, and the glob that has to match. A path that exists as it is is no glob."""
    if has_glob(uri):
        path = literal_path(uri)
        if path is not None and path.exists():
            uri = path.absolute().as_uri()
        elif path is not None or not _is_object(uri):
            glob = parse_glob(uri)
            storage = open_storage(glob.root)
            return storage, (entry for prefix in glob.prefixes() for entry in storage.list(prefix)), glob
    storage = open_storage(uri)
    folder = storage.local_path()
    if folder is None:
        if layout != "folder" and (ending := ending_of(uri)) and ending in ENDINGS[layout] | UNDECIDED[layout]:
            storage, name = split_uri(uri)
            return storage, [entry for entry in storage.list() if entry.path == name], None
    elif folder.is_file() and layout != "folder":
        return open_storage(folder.parent.as_uri()), [local_entry(folder.name, folder.stat())], None
    elif not folder.exists():
        raise FileNotFoundError(2, "no such folder", str(folder))
    return storage, storage.list(), None


def _is_object(uri: str) -> bool:
    """Whether an object of S3, or a folder with objects, has exactly this name."""
    storage = open_storage(uri)
    return storage.exists("") or next(iter(storage.list()), None) is not None


def _matching(listed: Iterable[Entry], glob: Glob | None, uri: str) -> Iterator[tuple[Entry, int]]:
    """Each listed file that matches, with the class level. DataError if nothing does, or not for some alternative."""
    matched = set()
    for entry in listed:
        if is_ignored(entry.path):
            continue
        if glob is None:
            yield entry, 0
        elif (match := glob.match(entry.path)) is not None:
            number, parts = match
            matched.add(number)
            yield entry, parts - 1 if parts <= entry.path.count("/") else HOLDING
    if glob is not None and len(matched) < len(glob.patterns):
        missing = next(text for number, text in enumerate(glob.texts) if number not in matched)
        raise DataError(f"{uri}: nothing matches {missing}", "Correct the glob, or what it should find.")


def _sort_out(found: Found, files: Iterable[tuple[Entry, int]], progress: Callable[[int], None]) -> set[int]:
    """Divide the files into those to read and others. Returns the class levels of those to read."""
    levels, unnamed = set[int](), list[tuple[Entry, int]]()
    for entry, level in files:
        ending = ending_of(entry.path)
        if ending in ENDINGS[found.layout]:
            found.entries.append(entry)
            levels.add(level)
            if ending in HEIF_ENDINGS:
                found.heif.append(entry.path)
            if len(found.entries) % 1000 == 0:
                progress(len(found.entries))
        elif ending in UNDECIDED[found.layout]:
            unnamed.append((entry, level))
        else:
            _skip(found, entry.path)
    kinds = _kinds(found, [entry for entry, _ in unnamed])
    for seen, ((entry, level), kind) in enumerate(zip(unnamed, kinds, strict=True)):
        if seen % 1000 == 0:
            progress(len(found.entries))
        if kind is None:
            _skip(found, entry.path)
            continue
        found.entries.append(entry)
        levels.add(level)
        if kind == "heif":
            found.heif.append(entry.path)
    return levels


def _skip(found: Found, path: str) -> None:
    found.skipped[ending_of(path) or NO_ENDING] += 1
    found.others.append(path)


def _kinds(found: Found, entries: list[Entry]) -> Iterator[str | None]:
    """What each of these files of undecided ending is, by its first bytes; None for what the layout does not read."""

    def kind(entry: Entry) -> str | None:
        if not entry.bytes:
            return None
        if found.layout == "folder":
            return image_kind(found.storage.read_start(entry.path, HEAD))
        return "tar" if is_tar(found.storage.read_start(entry.path, TAR_HEAD)) else None

    with ThreadPoolExecutor(_AHEAD, "heads") as pool:
        yield from pool.map(kind, entries)


def _add_broken(found: Found, folder: Path, glob: Glob | None, name: str) -> None:
    """Links that lead nowhere, where an image or a class folder could be. DataError for one of another layout."""
    for path, reason in broken_links(folder):
        ending = ending_of(path)
        if is_ignored(path) or (glob is not None and glob.match(path) is None):
            continue
        if found.layout == "folder" and (ending in ENDINGS["folder"] or not ending):
            found.broken[path] = reason
        elif ending in ENDINGS[found.layout]:
            raise DataError(f"{name}: {folder / path} is {reason}", "Restore what it links to, or remove the link.")
        else:
            _skip(found, path)


# --- class folders ---


def _with_classes(found: Found, levels: set[int], where: str) -> Found:
    """With one class level, and without images outside of class folders. DataError if the glob is ambiguous."""
    if len(levels) > 1:
        raise DataError(
            f"{where}: the glob matches some images and some folders with images, so their classes are ambiguous",
            "End it with / to name class folders, or with the ending of the images, such as *.jpg.",
        )
    level = levels.pop() if levels else 0
    if level == HOLDING and not any("/" in entry.path for entry in found.entries):
        found = _one_folder_up(found)  # images in the folder that the glob begins with: that is their class
    kept = [entry for entry in found.entries if class_of(entry.path, level)]
    if len(kept) < len(found.entries):
        found.skipped[OUTSIDE] += len(found.entries) - len(kept)
    return replace(found, entries=kept, class_level=level)


def _one_folder_up(found: Found) -> Found:
    parent, folder = split_uri(found.storage.root)
    path = found.storage.local_path()
    if path is not None:
        parent, folder = open_storage(path.parent.as_uri()), path.name
    return replace(
        found,
        storage=parent,
        entries=[entry._replace(path=f"{folder}/{entry.path}") for entry in found.entries],
        others=[f"{folder}/{other}" for other in found.others],
        broken={f"{folder}/{link}": reason for link, reason in found.broken.items()},
        heif=[f"{folder}/{other}" for other in found.heif],
    )
