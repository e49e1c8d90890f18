"""Whether the classes of the config are those of the source: a class without images trains, samples and counts nothing.

Class folders are counted when the source is listed, the labels of other formats when its images have been read.
"""

from collections.abc import Mapping, Sequence

from pipeline.config import DataConfig
from pipeline.errors import DataError

_SHOWN = 5  # classes named in a message


def check_folders(data: DataConfig, found: int) -> None:
    """DataError if `data.classes` is set to another number than the class folders found."""
    if data.classes is None or data.classes == found:
        return
    missing = data.classes - found
    outcome = "label out of range" if missing < 0 else f"{_count(missing)} without any image"
    raise DataError(
        f"data.uri {data.uri}: {outcome}, {found} class folders but data.classes is {data.classes}",
        f"Set data.classes={found}, or {'remove' if missing < 0 else 'add'} folders.",
    )


def check_labels(data: DataConfig, images: Mapping[int, int], names: Sequence[str]) -> None:
    """DataError if a label from 0 to data.classes - 1 has no readable image in either split.

    `images`: label -> readable images; `names`: of the classes by label, empty if they have none.
    """
    empty = [label for label in range(data.class_count) if not images.get(label)]
    if not empty:
        return
    named = [f"'{names[label]}'" if label < len(names) else str(label) for label in empty[:_SHOWN]]
    present = data.class_count - len(empty)
    raise DataError(
        f"{data.uri or data.format}: {_count(len(empty))} without any readable image ({', '.join(named)}"
        f"{', ...' if len(empty) > _SHOWN else ''}): data.classes is {data.class_count}, and {present} classes have "
        f"{sum(images.values())} images",
        _mend(present, empty),
    )


def _mend(present: int, empty: list[int]) -> str:
    if empty[0] == present:  # only the last labels have no image
        return f"Set data.classes={present}, or add images of them."
    return f"Add images of them, or number the labels from 0 to {present - 1} and set data.classes={present}."


def _count(classes: int) -> str:
    return f"{classes} {'class' if classes == 1 else 'classes'}"
