"""Assigns the images of a source without splits to training and validation, each by a hash of its key.

No files are read here: the keys and labels come from the listing, or from the labels of Parquet files and tars.
"""

import hashlib
from collections.abc import Iterable, Mapping
from typing import Literal

Split = Literal["train", "validation"]


def split_of(key: str, seed: int, validation_share: float) -> Split:
    """The split of an image of a source without splits: validation if a hash of (seed, key) is below the share.

    It is independent of the other images: adding images does not change the split of existing ones. The exceptions are
    in `forced_training`.
    """
    return "validation" if _drawn(key, seed) < validation_share else "train"


def forced_training(keys_by_label: Mapping[int, Iterable[str]], seed: int, validation_share: float) -> set[str]:
    """The keys that train although `split_of` draws them for validation.

    One for each class of two or more images of which none would train: that with the greatest hash, which is the one
    that would train first if the share were smaller. A class of one image stays as drawn.
    """
    forced = set()
    for keys in keys_by_label.values():
        found = _all_validation(keys, seed, validation_share)
        if len(found) > 1:
            forced.add(max(found)[1])
    return forced


def without_training(keys_by_label: Mapping[int, Iterable[str]], seed: int, validation_share: float) -> int:
    """The number of classes of one image that is drawn for validation: they are not trained on."""
    return sum(len(_all_validation(keys, seed, validation_share)) == 1 for keys in keys_by_label.values())


def _all_validation(keys: Iterable[str], seed: int, validation_share: float) -> list[tuple[float, str]]:
    """(hash, key) of each image if all of them are drawn for validation; empty as soon as one is not."""
    found = []
    for key in keys:
        drawn = _drawn(key, seed)
        if drawn >= validation_share:
            return []
        found.append((drawn, key))
    return found


def _drawn(key: str, seed: int) -> float:
    """A number in [0, 1), equally distributed."""
    digest = hashlib.sha256(f"{seed}/{key}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64
