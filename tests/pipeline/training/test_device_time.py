"""Device time: of all attempts, times the workers that each had, and of a shorter training that is gone on from."""

from pathlib import Path

import pytest

from pipeline.inference import device_seconds
from pipeline.storage import open_storage
from pipeline.training import device_time
from pipeline.training.device_time import DeviceTime
from tests.support.longer import Trainings


class Clock:
    now = 0.0

    def monotonic(self) -> float:
        return self.now

    def time_ns(self) -> int:
        return int(self.now * 1e9)


def test_attempts_add_up_whatever_their_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, storage = Clock(), open_storage(str(tmp_path))
    monkeypatch.setattr(device_time, "time", clock)
    died = DeviceTime(storage, "work", workers=2)
    clock.now = 10.0
    died.write()
    clock.now = 12.0  # what it did after its last checkpoint is done again
    went_on = DeviceTime(storage, "work", workers=1)
    clock.now = 15.0
    went_on.write()
    assert went_on.total() == pytest.approx(2 * 10.0 + 3.0)


def test_a_longer_training_has_the_time_of_the_shorter_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = Trainings(tmp_path, monkeypatch)
    short = own.train("sit.keep_state=true", "sit.steps=2")
    assert device_seconds(short) > 0
    longer = own.train("sit.keep_state=true", "sit.steps=4", die_at=(3,))
    assert device_seconds(longer) > device_seconds(short)
