"""The benchmarks' measuring functions at tiny sizes: they run, and both sides compute the same."""

from pathlib import Path

import pytest

from benchmarks import loader, train_step
from tests.support.artifacts import config_at
from tests.support.trainers import SETS


@pytest.mark.parametrize("which", ["tokenizer", "adversarial", "sit"])
def test_plain_step_has_our_loss(which: str, tmp_path: Path) -> None:
    config = config_at(tmp_path, "quickstart", *SETS)
    row = train_step.make_pair(config, tmp_path, which, "cpu", batches=2).measure(rounds=1, peak_seconds=0.01)
    assert row["ms_ours"] > 0
    assert 0 < row["mfu"] < 1


def test_images_and_latents_are_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DVAE_TEST_DATA", raising=False)
    rates = loader.measure(tmp_path, rounds=1, batches=2)
    assert rates
    assert all(value > 0 for row in rates.values() for value in row.values())
