"""The benchmarks' sides at tiny sizes: what is compared computes the same, or the comparison is refused."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks import loader, memory, train_step
from tests.support.artifacts import config_at
from tests.support.trainers import SETS


@pytest.mark.parametrize("which", ["tokenizer", "adversarial", "sit"])
def test_plain_step_has_our_loss(which: str, tmp_path: Path) -> None:
    pair = train_step.make_pair(config_at(tmp_path, "quickstart", *SETS), tmp_path, which, "cpu", batches=2)
    row = pair.measure(rounds=1, peak_seconds=0.01)
    assert row["first_loss"] == pytest.approx(row["first_loss_plain"], rel=1e-4)
    seconds, peak = 1e-3 * row["ms_ours"], row["peak_gflops_per_s"]
    assert row["mfu"] == pytest.approx(row["gflops_step"] / seconds / peak)


def test_a_plain_step_of_another_loss_is_refused(tmp_path: Path) -> None:
    """As without the discriminator's term, once D is at work."""
    pair = train_step.make_pair(config_at(tmp_path, "quickstart", *SETS), tmp_path, "adversarial", "cpu", batches=1)
    pair.plain.adversarial = False
    pair.trainee.config = pair.trainee.config.model_copy(update={"adversarial_weight": 1.0})
    with pytest.raises(AssertionError, match="computes another loss"):
        pair.measure(rounds=1, peak_seconds=0.01)


def test_loaders_give_what_they_are_compared_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DVAE_TEST_DATA", raising=False)
    for case in loader.cases(tmp_path, batches=2, latent_rows=600).values():
        ours = [_channels_last(batch) for batch in case.loader()]
        assert sum(len(batch) for batch in ours) == case.examples
        rivals = case.rivals()
        if (copies := rivals.pop("memcpy", None)) is not None:
            assert [_channels_last(batch).shape for batch in copies()] == [batch.shape for batch in ours]
        for side in rivals.values():
            assert all(np.array_equal(a, _channels_last(b)) for a, b in zip(ours, side(), strict=True))


def _channels_last(batch: object) -> np.ndarray:
    """Pixels (B, H, W, 3), or both moments of latents beside each other, (B, h, w, 2 D)."""
    if isinstance(batch, tuple):
        batch = np.concatenate(batch, axis=1)
    assert isinstance(batch, np.ndarray)
    return batch if batch.shape[-1] == 3 else batch.transpose(0, 2, 3, 1)


@pytest.mark.slow
def test_memory_of_every_process_is_seen(tmp_path: Path) -> None:
    peaks = memory.measure(tmp_path, rows=600, units=20)
    assert {"driver", "reader"} <= {role for roles in peaks.values() for role in roles}
    assert all(most[when] > 1 for roles in peaks.values() for most in roles.values() for when in ("early", "late"))
