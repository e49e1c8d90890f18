"""The classes of the config and those of the source: where they differ, both counts are said before a training."""

from collections import Counter
from pathlib import Path

import pytest

from pipeline.config.schema import DataConfig
from pipeline.data.classes import check_folders, check_labels
from pipeline.data.listing import list_source
from pipeline.errors import DataError
from pipeline.storage.local import LocalStorage
from tests.support import sources


def folders(classes: int | None, uri: str = "/images") -> DataConfig:
    return DataConfig.model_validate({"format": "folder", "uri": uri, "classes": classes})


@pytest.mark.parametrize("classes", [None, 3])
def test_as_many_folders_as_classes_fit(classes: int | None) -> None:
    check_folders(folders(classes), 3)


@pytest.mark.parametrize(
    ("classes", "said"),
    [
        (12, r"10 classes without any image, 2 class folders but data.classes is 12. Set data.classes=2, or add"),
        (3, r"1 class without any image, 2 class folders but data.classes is 3"),
        (1, r"label out of range, 2 class folders but data.classes is 1. Set data.classes=2, or remove"),
    ],
)
def test_other_folders_are_refused_when_they_are_listed(classes: int, said: str, tmp_path: Path) -> None:
    sources.put_folder(LocalStorage(tmp_path), sources.examples(6, classes=2))
    with pytest.raises(DataError, match=said):
        list_source(folders(classes, str(tmp_path)))


def test_one_class_is_enough(tmp_path: Path) -> None:
    sources.put_folder(LocalStorage(tmp_path), sources.examples(6, classes=1))
    assert list_source(folders(1, str(tmp_path))).classes == ("class0",)
    check_labels(folders(1), Counter({0: 6}), ())


def test_every_label_needs_an_image() -> None:
    check_labels(folders(3), {0: 1, 1: 5, 2: 1}, ())


@pytest.mark.parametrize(
    ("classes", "images", "names", "said"),
    [
        (4, {0: 7, 1: 5}, (), r"2 classes without any readable image \(2, 3\): data.classes is 4, and 2 classes have "
         r"12 images. Set data.classes=2, or add images of them"),
        (3, {0: 7, 2: 5}, (), r"1 class without any readable image \(1\).*number the labels from 0 to 1 and set "
         r"data.classes=2"),
        (3, {0: 7, 1: 0, 2: 5}, ("ant", "bird", "cat"), r"1 class without any readable image \('bird'\)"),
        (1000, {0: 7}, (), r"999 classes without any readable image \(1, 2, 3, 4, 5, \.\.\.\)"),
    ],
)  # fmt: skip
def test_labels_without_images_are_refused(
    classes: int, images: dict[int, int], names: tuple[str, ...], said: str
) -> None:
    with pytest.raises(DataError, match=said):
        check_labels(folders(classes), images, names)
