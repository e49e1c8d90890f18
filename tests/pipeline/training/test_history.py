"""The history of the losses: its lines, and that each of them reaches the outbox."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import StorageError
from pipeline.tracking.outbox import OUTBOX, Outbox
from pipeline.training import history as history_module
from pipeline.training.history import History
from tests.support.trainers import Dies, Ranks, ranks_of, run_ranks


def posted(made: Ranks) -> list[int]:
    """The steps in the outbox, in its order."""
    storage = made.loop.storage
    lines = [line for entry in storage.list(f"{OUTBOX}/test") for line in storage.read(entry.path).splitlines()]
    return [json.loads(line)["step"] for line in lines]


@pytest.mark.parametrize("die_at", [13, 23])
def test_a_line_in_hand_at_a_death_is_posted_after_all(tmp_path: Path, die_at: int) -> None:
    """The first line goes out at once, the others wait for company: all but one were lost with the process."""
    cut = ranks_of(tmp_path, "train-sit", 1, die_at)
    with pytest.raises(Dies):
        run_ranks(cut)
    assert len(posted(cut)) < die_at
    again = Ranks(cut.job, 1)
    run_ranks(again)
    assert set(posted(again)) == set(range(1, 25))


def test_metrics_that_could_not_be_written_go_with_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, post, refused = ranks_of(tmp_path, "train-sit"), Outbox.post, list[int]()

    def away(self: Outbox, *events: dict[str, Any]) -> None:
        if len(refused) < 3:
            refused.append(len(events))
            raise StorageError("no answer", "Wait.")
        post(self, *events)

    monkeypatch.setattr(history_module, "_FLUSH_SECONDS", 0.0)
    monkeypatch.setattr(Outbox, "post", away)
    run_ranks(made)
    assert refused == [1, 2, 3]
    assert posted(made) == list(range(1, 25))


def test_history_averages_what_counts() -> None:
    lines = History()
    lines.add({"loss": 1.0, "diffusion_t0": math.nan})
    lines.add({"loss": 3.0, "diffusion_t0": 5.0})
    lines.add({"loss": math.nan})
    assert lines.close_line(3) == {"step": 3, "loss": 2.0, "diffusion_t0": 5.0, "skipped": 1}


def test_a_line_without_a_loss_is_json() -> None:
    history = History()
    history.add({"loss": math.nan})
    history.close_line(1)
    assert json.loads(history.text()) == {"step": 1, "loss": None, "skipped": 1}
