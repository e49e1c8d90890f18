"""The mirror's and the steps' progress reach the driver's display through the work folder."""

from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import StorageError
from pipeline.storage.local import LocalStorage
from pipeline.training import progress
from pipeline.training.progress import MirrorProgress, show_progress
from pipeline.training.worker import train_as
from pipeline.training.world import World
from tests.support.trainers import put_lease, ranks_of

Shown = list[tuple[int, int, dict[str, Any]]]


@pytest.mark.parametrize(("stage", "unit"), [("train-tokenizer", "images"), ("train-sit", "latents")])
def test_the_driver_sees_the_mirror_then_the_steps(
    stage: str, unit: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "_WRITE_SECONDS", 0.0)
    job, shown = ranks_of(tmp_path, stage, 1, None, "data.shard_rows=500").job, Shown()
    storage, write = LocalStorage(tmp_path), LocalStorage.write

    def watched(self: LocalStorage, path: str, data: bytes) -> None:
        write(self, path, data)
        if path.endswith("progress.json"):
            show_progress(storage, job, {"loss"}, lambda done, total, **more: shown.append((done, total, more)))

    monkeypatch.setattr(LocalStorage, "write", watched)
    show_progress(storage, job, {"loss"}, lambda *_, **__: pytest.fail("there is nothing to show"))
    put_lease(job)
    train_as(World.alone(), job)
    mirrored = [line for line in shown if line[2].get("activity") == "mirroring"]
    rows = mirrored[-1][1]
    assert mirrored[0] == (0, rows, {"unit": unit, "activity": "mirroring"})
    assert mirrored[-1][0] == rows
    steps = shown[len(mirrored) :]
    assert steps[-1][:2] == (24, 24)
    assert steps[-1][2].keys() == {"unit", "loss"}


def test_a_complete_mirror_is_not_shown(tmp_path: Path) -> None:
    MirrorProgress(LocalStorage(tmp_path), "work")(100, 100)
    assert not (tmp_path / "work").exists()


def test_a_storage_that_is_away_stops_no_mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(self: LocalStorage, path: str, data: bytes) -> None:
        raise StorageError("no answer")

    monkeypatch.setattr(LocalStorage, "write", away)
    MirrorProgress(LocalStorage(tmp_path), "work")(0, 100)
