"""The history of the losses: its lines, and that each of them reaches the outbox."""

import functools
import json
import math
import operator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

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


CPU = torch.device("cpu")


def step_of(**means: float) -> dict[str, torch.Tensor]:
    return {name: torch.tensor(value, dtype=torch.float64) for name, value in means.items()}


def test_history_averages_what_counts() -> None:
    lines = History(CPU)
    lines.add(step_of(loss=1.0, diffusion_t0=math.nan))
    lines.add(step_of(loss=3.0, diffusion_t0=5.0))
    lines.add(step_of(loss=math.nan, diffusion_t0=7.0))
    assert lines.close_line(3) == ({"step": 3, "loss": 2.0, "diffusion_t0": 5.0, "skipped": 1}, 1)


def test_a_line_without_a_loss_is_json() -> None:
    history = History(CPU)
    history.add(step_of(loss=math.nan))
    history.close_line(1)
    assert json.loads(history.text(1)) == {"step": 1, "loss": None, "skipped": 1}


def test_a_term_that_begins_within_a_line_counts_in_its_steps() -> None:
    history = History(CPU)
    history.add(step_of(loss=1.0, mse=1.0))
    history.add(step_of(loss=2.0, mse=2.0, adversarial=8.0))
    history.add(step_of(loss=3.0, adversarial=10.0))
    line, _ = history.close_line(3)
    assert line == {"step": 3, "adversarial": 9.0, "loss": 2.0, "mse": 1.5, "skipped": 0}
    history.add(step_of(loss=4.0))
    assert history.close_line(4)[0] == {"step": 4, "loss": 4.0, "skipped": 0}


def test_the_most_skipped_in_a_row_are_counted_across_lines() -> None:
    history, most = History(CPU), []
    for index, line in enumerate(["..xx", "xx.x", "x...", "...."]):
        for step in line:
            history.add(step_of(loss=math.nan if step == "x" else 1.0))
        most.append(history.close_line(index)[1])
    assert most == [2, 4, 2, 0]


@given(st.lists(st.floats(-1e3, 1e3) | st.just(math.nan), min_size=1, max_size=8), st.integers(0, 8))
def test_a_history_goes_on_within_a_line_as_if_it_had_not_stopped(losses: list[float], cut: int) -> None:
    """To the last bit: its sums are a part of the state, and they are summed as numbers of fp64 in Python are."""
    whole, first, second = (History(CPU) for _ in range(3))
    for index, loss in enumerate(losses):
        whole.add(step_of(loss=loss))
        if index == cut:
            second.load_state_dict(first.state_dict())
        (first if index < cut else second).add(step_of(loss=loss))
    resumed = second if cut < len(losses) else first
    assert repr(resumed.close_line(1)) == repr(whole.close_line(1))
    kept = [loss for loss in losses if math.isfinite(loss)]
    assert not kept or whole.lines[0]["loss"] == functools.reduce(operator.add, kept, 0.0) / len(kept)
