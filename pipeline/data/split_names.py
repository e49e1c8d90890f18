"""Recognises splits by name: `train/` beside `val/`, `train-00000-of-00004.parquet` beside `test-00000.parquet`.

Only names are looked at. What is ambiguous is refused, as a wrong guess would train on test images. The assignment by a
hash, for a source without splits, is in `split.py`.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, NamedTuple

from pipeline.errors import DataError

Kind = Literal["train", "validation", "test"]

_KINDS: dict[str, Kind] = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "eval": "validation",
    "test": "test",
    "testing": "test",
}
_WORD = f"({'|'.join(_KINDS)})"
# The whole name of a folder, such as train, val2017, trainset, test_images; but not test_tube or bullet_train.
_FOLDER = re.compile(rf"(?:partial-)?({_WORD}(?:[-_ ]?(?:set|split|data|images|imgs))?)[-_ ]?\d*", re.IGNORECASE)
# A word of the name of a file, such as train-00000-of-00004, imagenet-val-0001, test_3; with set and digits behind it.
_TOKEN = re.compile(rf"({_WORD}(?:set)?)\d*", re.IGNORECASE)


class Chosen(NamedTuple):
    """The names of the parts that train, that validate, and that are left out."""

    train: str
    validation: str | None  # None: a share of the training images is held out, or data.validation_uri is set
    left_out: tuple[str, ...]


def folder_kind(name: str) -> Kind | None:
    found = _FOLDER.fullmatch(name)
    return _KINDS[found[2].lower()] if found else None


def file_split(path: str) -> tuple[str, Kind] | None:
    """The word that names a file's split, and its kind: that of a folder above it, else of its name.

    None if there is no such word, or words of several kinds.
    """
    *folders, name = path.split("/")
    for folder in reversed(folders):
        if (kind := folder_kind(folder)) is not None:
            found = _FOLDER.fullmatch(folder)
            assert found is not None
            return found[1].lower(), kind
    words = [found for token in re.split(r"[-_. ]", name) if (found := _TOKEN.fullmatch(token))]
    if len({_KINDS[word[2].lower()] for word in words}) != 1:
        return None
    return words[0][1].lower(), _KINDS[words[0][2].lower()]


def choose(where: str, kinds: Mapping[str, Kind], validation_given: bool, example: Mapping[str, str]) -> Chosen:
    """Which part trains and which validates: validation, else test; the others are left out.

    `kinds` are the parts by name, `example` a URI that names each of them alone. DataError if none is for training, or
    two names mean the same.
    """
    train = _only(where, "train", kinds, "data.uri", example)
    if train is None:
        name = next(iter(kinds))
        raise DataError(
            f"{where} has {_listed(kinds)}, but no part for training",
            f"Name what to train on: data.uri={example[name]}",
        )
    validation = None if validation_given else validation_part(where, kinds, example)
    left_out = tuple(name for name in kinds if name not in (train, validation))
    return Chosen(train, validation, left_out)


def validation_part(where: str, kinds: Mapping[str, Kind], example: Mapping[str, str]) -> str | None:
    """The part that validates: validation, else test. DataError if two names mean the same."""
    for kind in ("validation", "test"):
        found = _only(where, kind, kinds, "data.validation_uri", example)
        if found is not None:
            return found
    return None


def remark(where: str, chosen: Chosen, share: float | None) -> str:
    """One line that says what was chosen; `share` is what is held out, None if data.validation_uri is set."""
    if chosen.validation is not None:
        text = f"{chosen.train} trains, {chosen.validation} validates"
    elif share is not None:
        text = f"{chosen.train} trains but for a share of {share:g}, which validates"
    else:
        text = f"{chosen.train} trains, data.validation_uri validates"
    left = f"; left out: {_listed(chosen.left_out)}" if chosen.left_out else ""
    return f"{where}: {text}{left}"


def ambiguous(where: str, known: Iterable[str], others: Sequence[str], hint: str) -> DataError:
    """The error about names of splits beside other names."""
    rest = _listed(others[:3]) + (f" and {len(others) - 3} more" if len(others) > 3 else "")
    return DataError(f"{where}: {_listed(known)} may be a split, but {rest} beside it is none", hint)


def _only(where: str, kind: Kind, kinds: Mapping[str, Kind], field: str, example: Mapping[str, str]) -> str | None:
    found = [name for name, own in kinds.items() if own == kind]
    if len(found) > 1:
        raise DataError(
            f"{where}: {_listed(found)} are both for {'training' if kind == 'train' else kind}",
            f"Name the one to use: {field}={example[found[0]]}",
        )
    return found[0] if found else None


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names)
