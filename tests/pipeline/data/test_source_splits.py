from collections.abc import Sequence
from pathlib import Path

import pytest

from pipeline.config.schema import DataConfig
from pipeline.data.listing import Listing, list_source
from pipeline.data.revision import Listener, revision
from pipeline.data.sources import read_unit, work_units
from pipeline.data.split_names import file_split, folder_kind
from pipeline.errors import DataError
from pipeline.storage import open_storage
from pipeline.storage.local import LocalStorage
from tests.support import sources

PNG = sources.encoded(sources.picture(1))


def put(root: str, names: Sequence[str]) -> None:
    storage = open_storage(root)
    for name in names:
        storage.write(name, PNG)


def listed(uri: str, layout: str = "folder", **more: object) -> Listing:
    return list_source(DataConfig.model_validate({"format": layout, "uri": uri, **more}))


def paths(listing: Listing) -> tuple[list[str], list[str] | None]:
    """The paths of both splits with the last part of their root before it; None for a share."""

    def full(root: str, names: Sequence[str]) -> list[str]:
        return [f"{root.rpartition('/')[2]}/{name}" for name in names]

    train = full(listing.train_root, [entry.path for entry in listing.train])
    if listing.validation_root is None:
        return train, None
    return train, full(listing.validation_root, [entry.path for entry in listing.validation])


# --- names ---


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("train", "train"), ("Training", "train"), ("train2017", "train"), ("trainset", "train"),
        ("train_images", "train"), ("val", "validation"), ("valid", "validation"), ("validation", "validation"),
        ("dev", "validation"), ("eval", "validation"), ("VAL_2014", "validation"), ("test", "test"),
        ("test-set", "test"), ("partial-train", "train"), ("bullet_train", None), ("test_tube", None),
        ("trains", None), ("evaluation_board", None), ("n01440764", None), ("testament", None), ("valley", None),
    ],
)  # fmt: skip
def test_names_of_folders(name: str, kind: str | None) -> None:
    assert folder_kind(name) == kind


@pytest.mark.parametrize(
    ("path", "split"),
    [
        ("train-00000-of-00004.parquet", ("train", "train")),
        ("data/test-00000-of-00001.parquet", ("test", "test")),
        ("default/train/0000.parquet", ("train", "train")),
        ("validation/0000.parquet", ("validation", "validation")),
        ("cifar10-train.parquet", ("train", "train")),
        ("imagenet_val_0001.tar", ("val", "validation")),
        ("train0001.tar", ("train", "train")),
        ("trainset-1.tar.gz", ("trainset", "train")),
        ("trainset-1.tar.xz", ("trainset", "train")),
        ("train/test-0000.parquet", ("train", "train")),
        ("train_test_mix.parquet", None),
        ("a.parquet", None),
        ("retrained-0.parquet", None),
    ],
)
def test_names_of_files(path: str, split: tuple[str, str] | None) -> None:
    assert file_split(path) == split


# --- folders ---


@pytest.mark.parametrize(("train", "val"), [("train", "val"), ("Train", "validation"), ("train2017", "val2017")])
def test_a_folder_for_each_split(train: str, val: str, any_root: str, tmp_path: Path) -> None:
    def revised(found: Listing) -> str:
        return revision(found, LocalStorage(tmp_path / "own"), Listener())

    put(any_root, [f"{train}/ant/1.png", f"{train}/bee/2.png", f"{train}/loose.png", f"{val}/ant/3.png", "top.txt"])
    found = listed(any_root)
    assert paths(found) == ([f"{train}/ant/1.png", f"{train}/bee/2.png"], [f"{val}/ant/3.png"])
    assert found.classes == ("ant", "bee")
    assert found.remarks[0] == f"data.uri {any_root}: {train}/ trains, {val}/ validates"
    assert found.skipped == {"outside of class folders": 1}
    apart = listed(f"{any_root}/{train}", validation_uri=f"{any_root}/{val}")
    assert apart.train == found.train
    for other in (
        apart,
        listed(any_root, validation_uri=f"{any_root}/{val}"),
        listed(any_root, validation_uri=any_root),
    ):
        assert revised(other) == revised(found)


def test_validation_goes_before_test(any_root: str) -> None:
    put(any_root, ["train/ant/1.png", "test/ant/2.png"])
    assert paths(listed(any_root)) == (["train/ant/1.png"], ["test/ant/2.png"])
    put(any_root, ["val/ant/3.png"])
    found = listed(any_root)
    assert paths(found) == (["train/ant/1.png"], ["val/ant/3.png"])
    assert found.remarks == (f"data.uri {any_root}: train/ trains, val/ validates; left out: test/",)


def test_a_test_split_without_labels_is_left_out(tmp_path) -> None:
    put(str(tmp_path), ["train/ant/1.png", "test/2.png"])
    found = listed(str(tmp_path))
    assert paths(found) == (["train/ant/1.png"], None)
    assert "train/ trains but for a share of 0.1, which validates; left out: test/ (it has no" in found.remarks[0]


def test_a_training_folder_alone(tmp_path) -> None:
    put(str(tmp_path), ["train/ant/1.png", "train/bee/2.png"])
    found = listed(str(tmp_path))
    assert (found.classes, found.validation_root) == (("ant", "bee"), None)


@pytest.mark.parametrize(
    "names",
    [
        ["train/1.png", "car/2.png", "plane/3.png"],  # a class of trains
        ["bullet_train/1.png", "test_tube/2.png"],
        ["test/1.png", "car/deep/2.png", "car/3.png"],
        ["test/1.png"],
        ["valley/1.png", "trains/2.png"],
    ],
)
def test_classes_that_are_named_like_splits(names: list[str], tmp_path) -> None:
    put(str(tmp_path), names)
    found = listed(str(tmp_path))
    assert found.classes == tuple(sorted({name.partition("/")[0] for name in names}))
    assert found.choices == ()


AMBIGUOUS = {
    "train beside classes": (["train/ant/1.png", "bee/2.png"], r"train/ may be a split, but bee/ beside it is none"),
    "two for validation": (["train/a/1.png", "val/a/2.png", "validation/a/3.png"], "val/, validation/ are both for"),
    "two for training": (["train2014/a/1.png", "train2017/a/2.png"], "train2014/, train2017/ are both for training"),
    "nothing to train on": (["val/a/1.png", "test/a/2.png"], "no part for training. Name what to train on: data.uri="),
    "deeper": (
        ["zip/sub/train/a/1.png", "zip/sub/val/a/2.png"],
        r"train/, val/ lie in zip/sub/. .*: data.uri=.*/zip/sub",
    ),
    "no class folders": (["train/1.png", "val/2.png"], "looks like a split, but its images are not in class folders"),
    "flat validation": (["train/a/1.png", "val/2.png"], "val/ looks like a split, but its images are not in class fol"),
}


@pytest.mark.parametrize("case", AMBIGUOUS)
def test_ambiguous_folders_are_refused(case: str, tmp_path) -> None:
    names, said = AMBIGUOUS[case]
    put(str(tmp_path), names)
    with pytest.raises(DataError, match=said) as caught:
        listed(str(tmp_path))
    assert "\n" not in str(caught.value)


def test_hints_help(tmp_path) -> None:
    root = str(tmp_path)
    put(root, ["train/ant/1.png", "val/ant/2.png", "validation/ant/3.png"])
    with pytest.raises(DataError, match=f"data.validation_uri={root}/val$"):
        listed(root)
    found = listed(root, validation_uri=f"{root}/val")
    assert paths(found) == (["train/ant/1.png"], ["val/ant/2.png"])
    assert found.choices == (
        f"data.uri {root}: train/ trains, data.validation_uri validates; left out: val/, validation/",
    )


# --- files ---

FILES = {
    "hub": ("train-00000-of-00002.{0}", "train-00001-of-00002.{0}", "test-00000-of-00001.{0}"),
    "data": ("data/train-00000-of-00001.{0}", "data/validation-00000-of-00001.{0}", "data/test-00000-of-00001.{0}"),
    "folders": ("default/train/0000.{0}", "default/train/0001.{0}", "default/test/0000.{0}"),
    "named": ("cifar10-train.{0}", "cifar10-test.{0}"),
}


@pytest.mark.parametrize("layout", ["parquet", "webdataset"])
@pytest.mark.parametrize("case", FILES)
def test_files_for_each_split(case: str, layout: str, tmp_path) -> None:
    storage = open_storage(str(tmp_path))
    make, ending = (sources.parquet, "parquet") if layout == "parquet" else (sources.webdataset, "tar")
    names = [name.format(ending) for name in FILES[case]]
    for number, name in enumerate(names):
        storage.write(name, make([(sources.encoded(sources.picture(number)), number)]))
    data = DataConfig.model_validate({"format": layout, "uri": str(tmp_path), "classes": 3})
    listing = list_source(data)
    labels: dict[str | None, list[int]] = {"train": [], "validation": []}
    for unit in work_units(listing, data):
        labels[unit.split] += [example.label for example in read_unit(unit, data)]
    held = [number for number, name in enumerate(names) if ("validation" if case == "data" else "test") in name]
    assert labels["validation"] == held
    assert labels["train"] == [number for number, name in enumerate(names) if "train" in name]
    assert ("left out: test" in listing.remarks[0]) == (case == "data")


def parquets(root: str, *names: str) -> str:
    for number, name in enumerate(names):
        open_storage(root).write(f"{name}.parquet", sources.parquet(sources.examples(2 + number)))
    return root


def test_a_split_named_by_its_uri_is_not_divided(any_root: str) -> None:
    root = parquets(any_root, "train-0", "train-1", "test-0")
    for pattern, count in (("test-0.parquet", 1), ("test-*.parquet", 1), ("train-*", 2), ("train-{0..1}.parquet", 2)):
        found = listed(f"{root}/{pattern}", "parquet")
        assert (len(found.train), found.validation_root, found.choices) == (count, None, ())
    found = listed(f"{root}/*.parquet", "parquet")
    assert (len(found.train), len(found.validation)) == (2, 1)
    found = listed(f"{root}/train-*", "parquet", validation_uri=f"{root}/test-*")
    assert (len(found.train), len(found.validation)) == (2, 1)
    found = listed(root, "parquet", validation_uri=f"{root}/test-0.parquet")
    assert (len(found.train), len(found.validation)) == (2, 1)


def test_other_files_beside_splits_are_refused(tmp_path) -> None:
    root = parquets(str(tmp_path), "train-0", "train-1", "extra-0")
    with pytest.raises(DataError, match=r"may be a split, but extra-0.parquet beside it is none") as caught:
        listed(root, "parquet")
    hint = caught.value.hint.partition("data.uri=")[2].partition(",")[0]
    assert hint == f"{root}/train-*.parquet"
    assert len(listed(hint, "parquet").train) == 2
    assert len(listed(f"{root}/{{train,extra}}-*.parquet", "parquet").train) == 3
    parquets(str(tmp_path), "train-0", "train-1", "extra-0", "test-0")
    with pytest.raises(DataError, match="extra-0"):
        listed(f"{root}/*.parquet", "parquet")
    found = listed(f"{root}/{{train,extra}}-*.parquet", "parquet", validation_uri=f"{root}/test-*")
    assert (len(found.train), len(found.validation)) == (3, 1)


def test_two_words_for_one_split_are_refused(tmp_path) -> None:
    root = parquets(str(tmp_path), "train-0", "val-0", "validation-0")
    with pytest.raises(DataError, match=f"val, validation are both for validation.*{root}/val-0.parquet"):
        listed(root, "parquet")
    with pytest.raises(DataError, match="no part for training"):
        listed(f"{parquets(str(tmp_path / 'b'), 'test-0', 'val-0')}", "parquet")


# --- globs of folders ---


def test_globs_of_class_folders(any_root: str) -> None:
    put(any_root, ["n01/1.png", "n01/deep/2.png", "n02/3.jpg", "m01/4.png"])
    assert listed(f"{any_root}/n*").classes == ("n01", "n02")
    assert listed(f"{any_root}/{{n01,m01}}").classes == ("m01", "n01")
    assert paths(listed(f"{any_root}/n*/*.jpg"))[0][0].endswith("n02/3.jpg")
    assert listed(f"{any_root}/**/*.png").classes == ("deep", "m01", "n01")  # the folder that holds the file
    assert listed(f"{any_root}/n02/*.jpg").classes == ("n02",)
    for nothing in ("x*", "{n01,x01}", "n*/*.gif"):
        with pytest.raises(DataError, match="nothing matches"):
            listed(f"{any_root}/{nothing}")
    with pytest.raises(DataError, match=r"their classes are ambiguous\. End it with /"):
        listed(f"{any_root}/*/*")
    assert listed(f"{any_root}/*/").classes == ("m01", "n01", "n02")


def test_a_glob_that_makes_other_classes_makes_other_data(tmp_path: Path) -> None:
    """The files and their paths are the same."""
    put(str(tmp_path), ["a/ant/1.png", "a/bee/2.png", "b/ant/3.png"])
    one, two = listed(f"{tmp_path}/*/"), listed(f"{tmp_path}/*/*/")
    assert (one.train_root, one.train) == (two.train_root, two.train)
    assert (one.classes, two.classes) == (("a", "b"), ("ant", "bee"))
    first, second, whole = (
        revision(found, LocalStorage(tmp_path / ".own"), Listener()) for found in (one, two, listed(str(tmp_path)))
    )
    assert first != second
    assert first == whole


def test_classes_in_several_folders_are_one(any_root: str) -> None:
    put(any_root, ["one/ant/1.png", "one/bee/2.png", "two/ant/3.png", "three/ant/4.png"])
    found = listed(f"{any_root}/{{one,two}}/*")
    assert found.classes == ("ant", "bee")
    assert [entry.path for entry in found.train] == ["one/ant/1.png", "one/bee/2.png", "two/ant/3.png"]
    data = DataConfig(uri=f"{any_root}/{{one,two}}/*", classes=2)
    assert [label for unit in work_units(found, data) for _, label in unit.labels()] == [0, 1, 0]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "pattern", ["{train,val}", "{train,val}/*", "*/{ant,bee}", "*/*/*.png", "{train,val}/**/*.png"]
)
def test_a_glob_of_both_splits(pattern: str, any_root: str) -> None:
    put(any_root, ["train/ant/1.png", "train/bee/2.png", "val/ant/3.png"])
    found = listed(f"{any_root}/{pattern}")
    assert found.classes == ("ant", "bee")
    assert (len(found.train), len(found.validation)) == (2, 1)
    assert "train/" in found.choices[0] or "train trains" in found.choices[0]
    data = DataConfig(uri=f"{any_root}/{pattern}", classes=2)
    units = work_units(found, data)
    assert [(unit.split, example.label) for unit in units for example in read_unit(unit, data)] == [
        ("train", 0), ("train", 1), ("validation", 0),
    ]  # fmt: skip


def test_a_glob_of_splits_and_more_is_refused(any_root: str) -> None:
    put(any_root, ["train/ant/1.png", "val/ant/2.png", "extra/ant/3.png"])
    for pattern in ("*", "*/*"):
        with pytest.raises(DataError, match="extra/ beside it is none"):
            listed(f"{any_root}/{pattern}")
    assert len(listed(f"{any_root}/{{train,extra}}/*", validation_uri=f"{any_root}/val").train) == 2


def test_a_name_that_exists_is_no_glob(any_root: str) -> None:
    put(any_root, ["a[1]*?/ant/1.png", "a1bc/bee/1.png"])
    assert listed(
        f"{any_root}/a[1]*?" if not any_root.startswith("file") else f"{any_root}/a%5B1%5D%2A%3F"
    ).classes == ("ant",)
    assert listed(f"{any_root}/a[1]b?").classes == ("a1bc",)
