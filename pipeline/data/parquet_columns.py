"""The columns of a Parquet file that hold images and labels, and the names of the labels in its metadata."""

import json
from collections.abc import Callable, Sequence

import pyarrow as pa

from pipeline.errors import DataError

# In any case of letters. `coarse_label` is not among them: CIFAR-100 has it beside `fine_label`.
IMAGE_COLUMNS = ("image", "img", "images", "jpg", "jpeg", "png", "webp")
LABEL_COLUMNS = ("label", "labels", "fine_label", "class", "cls", "target")


def find_columns(schema: pa.Schema, path: str, image: str | None, label: str | None) -> tuple[str, str]:
    """The names of the image and the label column: as configured, else by name.

    DataError if there is none or more than one, or if the image column has no encoded images.
    """
    images = _candidates(schema, image, IMAGE_COLUMNS, _has_images)
    labels = _candidates(schema, label, LABEL_COLUMNS, _is_scalar)
    for field, given, found in (("data.image_column", image, images), ("data.label_column", label, labels)):
        if given is not None and not found:
            raise DataError(
                f"{path}: there is no column '{given}'; it has {', '.join(schema.names)}", f"Correct {field}."
            )
        if len(found) > 1:
            what = "images" if field == "data.image_column" else "labels"
            raise DataError(f"{path}: the columns {', '.join(found)} may all be the {what}", f"Set {field} to one.")
    if not images or not labels:
        raise DataError(
            f"{path}: an image or label column is missing; it has {', '.join(schema.names)}",
            "Name them by data.image_column and data.label_column.",
        )
    if not _has_images(schema.field(images[0]).type):
        raise DataError(
            f"{path}: column '{images[0]}' contains {schema.field(images[0]).type}, not encoded images",
            "Store the encoded bytes of the images in it, or name another by data.image_column.",
        )
    return images[0], labels[0]


def image_column(schema: pa.Schema, path: str) -> str:
    """The column of the images alone, by its name. DataError as `find_columns`."""
    found = _candidates(schema, None, IMAGE_COLUMNS, _has_images)
    if len(found) != 1 or not _has_images(schema.field(found[0]).type):
        raise DataError(
            f"{path}: one column of encoded images is wanted; it has {', '.join(schema.names)}",
            f"Name it {IMAGE_COLUMNS[0]}.",
        )
    return found[0]


def label_column(schema: pa.Schema) -> str | None:
    """The column of whole numbers with a label's name; None if there is none or more than one."""
    found = _candidates(schema, None, LABEL_COLUMNS, pa.types.is_integer)
    return found[0] if len(found) == 1 and pa.types.is_integer(schema.field(found[0]).type) else None


def names_of_labels(schema: pa.Schema, label: str) -> tuple[str, ...]:
    """The names of a `ClassLabel` of Hugging Face's datasets; empty if the column is none."""
    try:
        info = json.loads((schema.metadata or {})[b"huggingface"])
        names = info["info"]["features"][label]["names"]
    except (KeyError, TypeError, ValueError):
        return ()
    return tuple(map(str, names)) if isinstance(names, list) else ()


def check_same_names(found: Sequence[tuple[str, tuple[str, ...]]], classes: int | None) -> tuple[str, ...]:
    """The names that all files give that give some. DataError if they differ, or are not `classes`."""
    named = [(path, names) for path, names in found if names]
    if not named:
        return ()
    first, names = named[0]
    for path, other in named:
        if other != names:
            label = next(i for i in range(max(len(names), len(other))) if names[i : i + 1] != other[i : i + 1])
            one, two = (f"'{own[label]}'" if label < len(own) else "nothing" for own in (names, other))
            raise DataError(
                f"{path}: label {label} is {two}, but {one} in {first}",
                "Give both splits the same labels: cast them to one ClassLabel.",
            )
    if classes is not None and classes != len(names):
        raise DataError(
            f"{first}: its ClassLabel names {len(names)} classes, but data.classes is {classes}",
            f"Set data.classes={len(names)}.",
        )
    return names


def _candidates(
    schema: pa.Schema, given: str | None, names: Sequence[str], fits: Callable[[pa.DataType], bool]
) -> list[str]:
    """The configured column if it is there; else those with a known name, and of several those whose type fits."""
    if given is not None:
        return [given] if schema.names.count(given) == 1 else []
    found = [name for name in schema.names if name.lower() in names]
    if len(found) > 1:
        fitting = [name for name in found if schema.names.count(name) == 1 and fits(schema.field(name).type)]
        found = fitting if len(fitting) == 1 else found
    return found


def _has_images(kind: pa.DataType) -> bool:
    kind = _decoded(kind)
    if pa.types.is_struct(kind):
        position = kind.get_field_index("bytes")
        kind = _decoded(kind.field(position).type) if position >= 0 else kind
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind))


def _is_scalar(kind: pa.DataType) -> bool:
    return not pa.types.is_nested(_decoded(kind))


def _decoded(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if pa.types.is_dictionary(kind) else kind
