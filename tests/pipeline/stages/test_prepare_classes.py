"""prepare: formats without class folders show their classes as they are read; none may be without an image."""

from pathlib import Path

import pytest

from pipeline.errors import DataError
from pipeline.stages import prepare
from pipeline.storage.local import LocalStorage
from tests.support import sources
from tests.support.contexts import LocalContext, local_context
from tests.support.trainers import small_config


def context(folder: Path, layout: str, classes: int) -> LocalContext:
    """24 images of labels 0 and 1."""
    source = LocalStorage(folder / "source")
    sources.put_source(source, layout, sources.examples(24, classes=2))
    sets = (f"data.format={layout}", f"data.uri={source.root}", f"data.classes={classes}", "data.validation_share=0.4")
    return local_context(small_config(folder, *sets), "prepare", {}, folder / "scratch")


@pytest.mark.parametrize("layout", ["parquet", "webdataset"])
def test_a_label_without_images_is_refused(layout: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"10 classes without any readable image \(2, 3, .*Set data.classes=2"):
        prepare.run(context(tmp_path, layout, 12))


@pytest.mark.parametrize("layout", ["folder", "parquet", "webdataset"])
def test_images_are_counted_by_split_and_label(layout: str, tmp_path: Path) -> None:
    details = prepare.run(context(tmp_path, layout, 2)).details
    counts = details["class_counts"]
    assert [sum(counts[split]) for split in counts] == [
        sum(shard["rows"] for shard in details["splits"][split]) for split in ("train", "validation")
    ]
    assert [a + b for a, b in zip(*counts.values(), strict=True)] == [12, 12]
