"""What `prepare` leaves in its manifest and says, of sources as people have them."""

from pathlib import Path

import numpy as np
import pytest

from pipeline.config.schema import Config
from pipeline.data.split import split_of
from pipeline.errors import DataError
from pipeline.stages import prepare, sample
from pipeline.storage import open_storage
from tests.support import sources
from tests.support.artifacts import config_at
from tests.support.contexts import committed, local_context


def made_of(root: Path, *sets: str) -> tuple[Config, dict[str, object], list[str]]:
    config = config_at(root, "quickstart", "data.validation_share=0.4", *sets)
    context, said = local_context(config, "prepare", {}, root / "scratch"), list[str]()
    context.say = said.append
    outcome = prepare.run(context)
    committed(context, outcome)
    return config, outcome.details, said


def test_a_folder_of_numbers(tmp_path: Path) -> None:
    storage = open_storage(str(tmp_path / "images"))
    for number in range(1, 13):
        for i in range(3):
            storage.write(f"{number}/{i}.png", sources.encoded(sources.picture(10 * number + i)))
    storage.write("1/notes.txt", b"x")
    _, details, said = made_of(tmp_path, "data.format=folder", f"data.uri={tmp_path}/images")
    assert details["class_names"] == [str(number) for number in range(1, 13)]
    assert details["skipped"] == {".txt": 1}
    assert "not read: 1 .txt" in said
    assert details["remarks"] == said


def test_classes_of_one_and_two_images_are_told(tmp_path: Path) -> None:
    storage = open_storage(str(tmp_path / "images"))
    for number in range(40):
        for i in range(1 + number % 2):
            storage.write(f"c{number:02d}/{i}.png", sources.encoded(sources.picture(100 * number + i)))
    _, _, said = made_of(tmp_path, "data.format=folder", f"data.uri={tmp_path}/images")
    assert any("classes train on one image that the share would hold out" in line for line in said)
    assert any("classes have a single image, which validates" in line for line in said)


def test_a_class_of_which_one_image_is_left_is_told(tmp_path: Path) -> None:
    """It has two; the one that the hash gives to training is damaged, so no image of it trains."""
    storage = open_storage(str(tmp_path / "images"))
    for i in range(9):
        storage.write(f"a/{i}.png", sources.encoded(sources.picture(i)))
    seed = config_at(tmp_path, "quickstart").seed
    keys = [f"b/{i}.png" for i in range(40)]
    trains = next(key for key in keys if split_of(key, seed, 0.4) == "train")
    validates = next(key for key in keys if split_of(key, seed, 0.4) == "validation")
    storage.write(trains, b"damaged")
    storage.write(validates, sources.encoded(sources.picture(20)))
    sets = ("data.format=folder", f"data.uri={tmp_path}/images", "data.quarantine_budget=0.5", "data.classes=2")
    _, details, said = made_of(tmp_path, *sets)
    assert said == ["1 classes have a single readable image, which validates: they are not trained on"]
    assert details["remarks"] == said


def test_splits_are_told(tmp_path: Path) -> None:
    for name, count in (("train", 12), ("test", 6)):
        content = sources.parquet(sources.examples(count))
        open_storage(str(tmp_path / "images")).write(f"{name}-00000-of-00001.parquet", content)
    sets = ("data.format=parquet", f"data.uri={tmp_path}/images", "data.classes=3", "sample.count=10")
    _, details, said = made_of(tmp_path, *sets)
    assert said == [f"data.uri {tmp_path}/images: train trains, test validates"]
    splits = details["splits"]
    assert isinstance(splits, dict)
    assert {name: sum(part["rows"] for part in parts) for name, parts in splits.items()} == {
        "train": 12,
        "validation": 6,
    }


def test_a_class_that_only_the_test_split_has_is_refused(tmp_path: Path) -> None:
    for name, classes in (("train", 3), ("test", 4)):
        content = sources.parquet(sources.examples(12, classes))
        open_storage(str(tmp_path / "images")).write(f"{name}-00000-of-00001.parquet", content)
    sets = ("data.format=parquet", f"data.uri={tmp_path}/images", "data.classes=4", "sample.count=10")
    with pytest.raises(DataError, match="class 3 has no readable training image, and 3 for validation"):
        made_of(tmp_path, *sets)


def test_the_grid_names_the_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The names reach the figure from the prepare artifact of the latents."""
    from pipeline import reports

    drawn: list[object] = []

    def grid(images: np.ndarray, labels: np.ndarray, names: object = None) -> bytes:
        drawn.append(names)
        return b"png"

    monkeypatch.setattr(reports, "sample_grid", grid)
    config = config_at(tmp_path, "quickstart")
    context = local_context(config, "sample", {}, tmp_path / "scratch")
    buffer_path = tmp_path / "0.npz"
    np.savez(buffer_path, images=np.zeros((3, 3, 4, 4), np.uint8), labels=np.arange(3))
    context.writer.add(buffer_path, "images/000000.npz")
    for names in (["ant", "bee", "cat"], []):
        spec = sample.GridSpec(
            context.storage.root, context.writer.folder, context.fingerprint, ["images/000000.npz"], 3, names
        )
        sample.draw_grid(spec)
    assert drawn == [["ant", "bee", "cat"], None]
