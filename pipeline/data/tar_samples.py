"""Groups the members of a tar to samples: which image belongs to which label. No bytes of a tar are read here.

WebDataset cuts a member's name at the first dot of its base name: what is before it is the sample's key, what is behind
it the field (`0001.seg.png` is field `seg.png` of sample `0001`). Sets that have dots in their keys (`v1.001.jpg`) are
common, though, and all of their images would be one sample. So here an image's label is that of the longest part of its
name that ends at a dot and has one: `v1.001.cls` for `v1.001.jpg`, `0001.cls` for `0001.jpg` and for `0001.seg.png`.
Of the images of one label, the one of exactly that name is the sample's image; others, such as `0001.seg.png`, are
counted, as they may be masks. Where there is none of that name, a single image with further parts is the sample's
(`0001.image.jpg`); more than one are quarantined, since nothing tells which one the label describes.
"""

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from pipeline.data.endings import ENDINGS
from pipeline.data.raw import as_label
from pipeline.errors import DataError

LABEL_ENDINGS = ("cls", "json")  # the first one that a sample has decides
# The endings of images. Of images of one name, such as a.jpg and a.png, the sample's is the first in this order.
_PREFERRED = ("jpg", "jpeg", "jpe", "jfif", "png", "webp")
_OTHERS = sorted({suffix[1:] for suffix in ENDINGS["folder"]} - {*_PREFERRED})
IMAGE_ENDINGS = {ending: place for place, ending in enumerate((*_PREFERRED, *_OTHERS))}


class TarImage(NamedTuple):
    """An image in a tar: its path without the ending, the ending in lower case, and where its bytes are."""

    stem: str
    ending: str
    offset: int
    bytes: int

    @property
    def name(self) -> str:
        return f"{self.stem}.{self.ending}"


class Sample(NamedTuple):
    """An image with its label. Samples sort in the order in which a tar is read."""

    offset: int
    key: str
    label: int
    bytes: int


# A label; or why it cannot be used: a DataError stops the stage, a text quarantines its image.
Label = int | DataError | str


@dataclass
class Samples:
    """The samples of a tar in the order of their bytes, and what is no sample."""

    samples: list[Sample] = field(default_factory=list)
    excluded: list[tuple[str, str]] = field(default_factory=list)  # names and reasons: for the quarantine
    skipped: Counter[str] = field(default_factory=Counter)  # numbers of members by reason: no images by intention


def group_samples(images: Iterable[TarImage], labels: Mapping[str, Label], unlabelled: set[str], path: str) -> Samples:
    """Group as the file's docstring says. `labels` goes by lower-case names such as 0001.cls.

    `unlabelled`: names of .json members without "label". DataError for an image without a label, or with one that is no
    number.
    """
    found = Samples()
    by_key: dict[str, list[TarImage]] = {}
    for image in images:
        key = _labelled_part(image.stem, labels)
        if key is None:
            raise _no_label(image, unlabelled, path)
        by_key.setdefault(key, []).append(image)
    for key, group in by_key.items():
        chosen = _image_of(key, group, found)
        label = next(labels[f"{key}.{ending}"] for ending in LABEL_ENDINGS if f"{key}.{ending}" in labels)
        if isinstance(label, DataError):
            raise label
        if chosen is None:
            continue
        if isinstance(label, str):
            found.excluded.append((chosen.name, label))
        else:
            found.samples.append(Sample(chosen.offset, chosen.stem, label, chosen.bytes))
    found.samples.sort()
    return found


def label_of(name: str, content: bytes, where: str) -> Label | None:
    """The label in a .cls or .json member, or why it is none; None for JSON without "label"."""
    try:
        if name.endswith(".cls"):
            return as_label(content.decode(errors="replace").strip(), where)
        value = json.loads(content)
        return as_label(value["label"], where) if isinstance(value, dict) and "label" in value else None
    except DataError as error:
        return error
    except (ValueError, RecursionError):  # no JSON, or not UTF-8
        return None


def _labelled_part(stem: str, labels: Mapping[str, Label]) -> str | None:
    """The longest part of the name that has a label: the stem itself, then without what follows its last dot, ..."""
    folder, slash, base = stem.rpartition("/")
    while base:
        part = f"{folder}{slash}{base}"
        if any(f"{part}.{ending}" in labels for ending in LABEL_ENDINGS):
            return part
        base = base.rpartition(".")[0]
    return None


def _image_of(key: str, group: list[TarImage], found: Samples) -> TarImage | None:
    """The sample's image; the others are counted in `found`. None: it cannot be told."""
    plain = [image for image in group if image.stem == key]
    if not plain and len(group) > 1:
        reason = f"{len(group)} images share the label of {key}, and none is named {key}: which is meant cannot be told"
        found.excluded += [(image.name, reason) for image in group]
        return None
    chosen = min(plain or group, key=lambda image: IMAGE_ENDINGS[image.ending])
    others = (image for image in group if image is not chosen)
    found.skipped.update(f"{image.name.removeprefix(key)} beside the sample's image" for image in others)
    return chosen


def _no_label(image: TarImage, unlabelled: set[str], path: str) -> DataError:
    if f"{image.stem}.json" in unlabelled:
        return DataError(f'{path}/{image.stem}.json: "label" is missing', "Add the label, or a .cls member.")
    return DataError(
        f"{path}/{image.stem}: the image has no label", "Add a .cls or .json member of the same name to the tar."
    )
