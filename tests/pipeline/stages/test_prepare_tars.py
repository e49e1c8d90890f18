"""The stage prepare on tars: what it indexes, splits, counts and writes to the manifest."""

import io
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipeline.config.loading import load_config
from pipeline.data.index import checked_listing
from pipeline.data.split import split_of
from pipeline.errors import DataError
from pipeline.stages import prepare
from pipeline.storage.uri import open_storage
from tests.support import sources
from tests.support.contexts import LocalContext, local_context

IMAGES = sources.examples(40, 4)


def members(keys: list[str], labels: list[int], endings: tuple[str, ...] = ("png",)) -> list[tuple[str, bytes]]:
    kinds = {"png": "PNG", "jpg": "JPEG", "tif": "TIFF", "bmp": "BMP"}
    made = []
    for i, (key, label) in enumerate(zip(keys, labels, strict=True)):
        ending = endings[i % len(endings)]
        made += [(f"{key}.{ending}", sources.encoded(sources.picture(i), kinds[ending])), (f"{key}.cls", b"%d" % label)]
    return made


def context_of(source: str, scratch: Path, *sets: str) -> LocalContext:
    given = [f"data.uri={source}", "data.format=webdataset", "data.classes=4", "data.validation_share=0.25", *sets]
    config = load_config("quickstart", given, f"{source}-root")
    found = {"revision": checked_listing(config.data, open_storage(config.root))[1]}
    config = config.model_copy(update={"data": config.data.model_copy(update=found)})
    return local_context(config, "prepare", {}, scratch)


def stored(context: LocalContext) -> Counter[tuple[str, int]]:
    """The number of rows by split and label."""
    found = Counter[tuple[str, int]]()
    for path in context.writer.files:
        table = pq.read_table(io.BytesIO(context.storage.read(f"{context.writer.folder}/{path}")), columns=["label"])
        found.update((path.split("/")[1].partition("-")[0], label) for label in table["label"].to_pylist())
    return found


def test_every_image_of_some_tars_is_kept(any_root: str, tmp_path: Path) -> None:
    """Dots in keys, formats that are mixed, several tars, one of them compressed, units smaller than a tar."""
    storage = open_storage(any_root)
    keys = [f"v1.{i:03d}" if i % 2 else f"{i:03d}" for i in range(40)]
    labels = [i % 4 for i in range(40)]
    storage.write("a.tar", sources.tar(members(keys, labels, ("jpg", "tif", "bmp"))))
    storage.write("b.tar", sources.tar([*members(keys[:6], labels[:6]), ("notes.txt", b"x"), ("0.seg.png", b"x")][:-1]))
    context = context_of(any_root, tmp_path, "data.shard_rows=16")
    outcome = prepare.run(context)
    assert outcome.rows == 46
    assert outcome.metrics["data/quarantined"] == 0
    assert outcome.details["skipped"] == {".txt": 1}
    assert sum(stored(context).values()) == 46
    assert max(shard["rows"] for split in outcome.details["splits"].values() for shard in split) <= 16
    assert {unit for split in outcome.details["splits"].values() for unit in units_in(split)} == {0, 1, 2, 3}
    assert outcome.details["class_names"] == []


def units_in(shards: list[dict[str, object]]) -> set[int]:
    return {int(str(shard["path"]).split("-")[1]) for shard in shards}


def test_a_class_that_the_hash_would_leave_without_training_trains(tmp_path: Path) -> None:
    """Two images of class 3, both drawn for validation: one of them trains."""
    held = [f"k{i}" for i in range(500) if split_of(f"a.tar/k{i}", 0, 0.25) == "validation"][:2]
    keys = [*(f"p{i}" for i in range(30)), *held]
    labels = [*(i % 3 for i in range(30)), 3, 3]
    source = (tmp_path / "source").as_uri()
    open_storage(source).write("a.tar", sources.tar(members(keys, labels)))
    context = context_of(source, tmp_path)
    assert context.config.seed == 0
    prepare.run(context)
    counts = stored(context)
    assert (counts["train", 3], counts["validation", 3]) == (1, 1)


def test_a_tar_that_was_cut_stops_the_stage(tmp_path: Path) -> None:
    whole = sources.tar(members([f"{i:03d}" for i in range(40)], [i % 4 for i in range(40)]))
    source = (tmp_path / "source").as_uri()
    size = 512 + len(sources.encoded(sources.picture(0))) // 512 * 512 + 512 + 1024  # of a sample
    open_storage(source).write("a.tar", whole[: 20 * size])
    with pytest.raises(DataError, match=r"a\.tar cannot be read as a tar: it is cut after byte \d+: the end mark"):
        prepare.run(context_of(source, tmp_path))


def test_what_is_excluded_counts_against_the_budget(tmp_path: Path) -> None:
    source = (tmp_path / "source").as_uri()
    twice = members([*(f"{i:02d}" for i in range(38)), "00", "01"], [i % 4 for i in range(38)] + [0, 1])
    open_storage(source).write("a.tar", sources.tar([*twice, ("._00.png", b""), ("LICENSE", b"")]))
    with pytest.raises(DataError, match=r"2 of 40 images cannot be read; the first is a\.tar/00\.png: the key occurs"):
        prepare.run(context_of(source, tmp_path))
    outcome = prepare.run(context_of(source, tmp_path, "data.quarantine_budget=0.05"))
    assert (outcome.rows, outcome.metrics["data/quarantined"]) == (38, 2)
    assert [entry["key"] for entry in outcome.details["quarantined"]] == ["a.tar/00.png", "a.tar/01.png"]
    assert outcome.details["skipped"] == {"hidden": 1, "no ending": 1}
