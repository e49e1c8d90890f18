"""Lists a source: names and sizes of its files, splits and class folders. No image is decoded here.

It imports no pyarrow, Pillow or scikit-learn, so that `plan` and `data index` stay light. `find.py` finds the files,
`sources.py` reads images, `revision.py` digests what a listing holds.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from pipeline.config import DataConfig
from pipeline.data.classes import check_folders
from pipeline.data.endings import ENDINGS, NO_ENDING, ending_of, is_junk_folder, readable
from pipeline.data.find import OUTSIDE, Found, class_of, find_files
from pipeline.data.source_splits import Parts, training_parts, validation_files
from pipeline.data.split import Split
from pipeline.errors import DataError
from pipeline.storage import Entry

DIGITS = 1797  # images in scikit-learn's digits
DIGITS_CLASSES = 10
_SHOWN = 10  # endings in a line


class BrokenLink(NamedTuple):
    """An image that is listed but cannot be read: a symbolic link that leads nowhere."""

    split: Split
    path: str
    reason: str


@dataclass(frozen=True)
class Listing:
    """The files of both splits, sorted by path; paths are relative to the split's root.

    For format digits there are no files, and `train_root` is empty.
    """

    format: str
    train_root: str
    train: tuple[Entry, ...]
    validation_root: str | None  # None: a share of the training images is used
    validation: tuple[Entry, ...]
    classes: tuple[str, ...]  # names of the class folders in the order of their labels; empty for other formats
    train_level: int = 0  # which part of a path is the class folder, as in `class_of`
    validation_level: int = 0
    skipped: dict[str, int] = field(default_factory=dict)  # files that are not read, by ending or reason
    broken: tuple[BrokenLink, ...] = ()
    heif: tuple[str, ...] = ()  # images that need pillow-heif
    choices: tuple[str, ...] = ()  # what was chosen where the source has several splits, one line each

    @property
    def files(self) -> int:
        return len(self.train) + len(self.validation)

    @property
    def bytes(self) -> int:
        return sum(entry.bytes for entry in (*self.train, *self.validation))

    @property
    def remarks(self) -> tuple[str, ...]:
        """What a person should know about the source, one line each."""
        return tuple(line for line in (*self.choices, _counts(self.skipped, "not read: ")) if line)


def list_source(data: DataConfig, progress: Callable[[int], None] | None = None) -> Listing:
    """List the training and the validation URI; `progress` receives the number of files found so far.

    DataError if the source is not configured, missing, empty, ambiguous or unreadable, or has another number of class
    folders than `data.classes`, or one without images.
    """
    if data.format == "digits":
        return Listing("digits", "", (), None, (), ())
    return _list_files(data, progress or (lambda _: None))


def _list_files(data: DataConfig, progress: Callable[[int], None]) -> Listing:
    parts = _parts(data, progress)
    train, validation = parts.train, parts.validation
    classes = _classes(data, train, validation) if data.format == "folder" else ()
    splits: dict[Split, Found] = {"train": train}
    if validation is not None:
        splits["validation"] = validation
    entries = {split: tuple(found.entries) for split, found in splits.items()}
    broken = [
        BrokenLink(split, readable(path), reason)
        for split, found in splits.items()
        for path, reason in sorted(found.broken.items())
    ]
    return Listing(
        data.format,
        train.storage.root,
        entries["train"],
        validation.storage.root if validation is not None else None,
        entries.get("validation", ()),
        classes,
        train_level=train.class_level,
        validation_level=validation.class_level if validation is not None else 0,
        skipped=dict(sum((found.skipped for found in splits.values()), Counter[str]()).most_common()),
        broken=tuple(broken),
        heif=tuple(path for found in splits.values() for path in found.heif),
        choices=(*parts.choices, *_about_one_class(train, classes)),
    )


def _parts(data: DataConfig, progress: Callable[[int], None]) -> Parts:
    """The files of each split, as data.uri and data.validation_uri name them. DataError if there are none."""
    if data.uri is None:
        raise DataError("data.uri is not set", "Set it to the images' URI: --set data.uri=URI, or in the site file.")
    share = data.validation_share if data.validation_uri is None else None
    whole = _found("data.uri", data.uri, data, progress)
    parts = training_parts(whole, data.uri, share)
    if data.validation_uri is None:
        return parts
    before = len(parts.train.entries)
    found = _found("data.validation_uri", data.validation_uri, data, lambda count: progress(before + count))
    validation, choices = validation_files(found, data.validation_uri)
    return Parts(parts.train, validation, (*parts.choices, *choices))


def _found(name: str, uri: str, data: DataConfig, progress: Callable[[int], None]) -> Found:
    found = find_files(name, uri, data.format, progress)
    if not found.entries:
        endings = ".jpg/.png/.webp/... " if data.format == "folder" else f"{'/'.join(sorted(ENDINGS[data.format]))} "
        where = "in its class folders" if data.format == "folder" else "there"
        raise DataError(
            f"{name} {uri}: the source is empty, no {endings}file {where}{_counts(found.skipped, ' (', ')')}",
            f"Correct the URI, or data.format (currently {data.format}).",
        )
    return found


def _counts(skipped: dict[str, int], before: str, after: str = "") -> str:
    """The most frequent ones: file names such as scan.0001 have endings without number."""
    shown, rest = Counter(skipped).most_common(_SHOWN), len(skipped) - _SHOWN
    counts = ", ".join(f"{count} {what}" for what, count in shown)
    if rest > 0:
        counts += f", {sum(skipped.values()) - sum(count for _, count in shown)} with {rest} other endings"
    return f"{before}{counts}{after}" if counts else ""


def _classes(data: DataConfig, train: Found, validation: Found | None) -> tuple[str, ...]:
    """The class folders of the training images in order; a label is the place in it.

    DataError for one without images, for another number than `data.classes`, and for one that only the validation
    images have.
    """
    _check_no_class_is_empty(f"data.uri {data.uri}", train)
    classes = ordered_classes({class_of(entry.path, train.class_level) for entry in train.entries})
    check_folders(data, len(classes))
    if validation is None:
        return classes
    where = f"data.uri {data.uri}" if data.validation_uri is None else f"data.validation_uri {data.validation_uri}"
    _check_no_class_is_empty(where, validation)
    unknown = sorted({class_of(entry.path, validation.class_level) for entry in validation.entries} - set(classes))
    if unknown:
        raise DataError(
            f"{where}: class folder '{unknown[0]}' is not among the training classes",
            "Give the validation folders the names of the training folders.",
        )
    return classes


def _about_one_class(train: Found, classes: tuple[str, ...]) -> Iterator[str]:
    """A line if the only class holds nothing but folders: they may be meant, as those of a folder that was unpacked."""
    if len(classes) != 1 or train.explicit:
        return
    below = [entry.path.split("/")[1:-1] for entry in train.entries]
    names = ordered_classes({folders[0] for folders in below if folders})
    if len(names) > 1 and all(below):
        shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
        yield (
            f"{train.storage.root}: one class, {classes[0]}/, with the images of its {len(names)} folders ({shown}); "
            f"if these are the classes, set data.uri={train.storage.uri(classes[0])}"
        )


def ordered_classes(names: set[str]) -> tuple[str, ...]:
    """By number if all names are whole numbers (equal ones, such as 7 and 007, by text), else by text."""
    if all(name.isascii() and name.isdigit() for name in names):
        return tuple(sorted(names, key=lambda name: (int(name), name)))
    return tuple(sorted(names))


def _check_no_class_is_empty(where: str, found: Found) -> None:
    """DataError if a class folder has no image to read. A folder counts as a class unless it is hidden.

    Links that lead nowhere and belong to no class are moved to the files that are not read.
    """
    level = found.class_level
    full = {class_of(entry.path, level) for entry in found.entries}
    empty: dict[str, Counter[str]] = {}
    if not found.explicit:
        empty = {name: Counter() for name in found.storage.folders() if name not in full and not is_junk_folder(name)}
    for path in found.others:
        if (name := class_of(path, level)) not in full and name:
            empty.setdefault(name, Counter())[ending_of(path) or NO_ENDING] += 1
    for path, reason in list(found.broken.items()):
        name = class_of(path, level)
        if not name and not ending_of(path) and level == 0:
            name = path  # the folder itself is a link
        if name and name not in full:
            empty.setdefault(name, Counter())[reason] += 1
        elif not name:
            del found.broken[path]
            found.skipped[OUTSIDE] += 1
    if empty:
        name = min(empty)
        counts = _counts(empty[name], " (", ")")
        more = f", as {len(empty) - 1} others have not" if len(empty) > 1 else ""
        raise DataError(
            f"{where}: class folder '{readable(name)}' has no image that can be read{counts}{more}",
            "Add images, remove the folder, or name the other folders by a glob, such as data.uri=.../{cat,dog}.",
        )
