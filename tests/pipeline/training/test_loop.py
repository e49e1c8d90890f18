"""What the loop does besides the steps: lost leases, gradients that are not finite, a notice that the node ends."""

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.errors import ContractError, LeaseError, PipelineError
from pipeline.training.checkpoint import Checkpoints, flatten_state
from pipeline.training.history import History
from pipeline.training.loop import MAX_SKIPPED_IN_A_ROW, train
from pipeline.training.worker import no_notice
from pipeline.training.world import World
from tests.support.trainers import Dies, Ranks, history, make_trainee, put_lease, ranks_of


def test_a_lost_lease_stops_the_writer(tmp_path: Path) -> None:
    """A worker whose driver was replaced neither saves nor leaves a result."""
    made = ranks_of(tmp_path, "train-sit")
    put_lease(made.job, "another")
    world = World.alone()
    with pytest.raises(LeaseError):
        train(make_trainee(made, world), made.loop, world, no_notice)
    assert not made.loop.storage.exists(f"{made.loop.work}/result.json")
    assert Checkpoints(made.loop.storage, f"{made.loop.work}/checkpoints", 2).newest() is None


def test_damaged_checkpoints_stop_the_training(tmp_path: Path) -> None:
    """It neither begins anew nor removes what may be repaired."""
    made = ranks_of(tmp_path, "train-sit", 1, 14)
    put_lease(made.job)
    world = World.alone()
    with pytest.raises(Dies):
        train(make_trainee(made, world), made.loop, world, no_notice)
    checkpoints = Checkpoints(made.loop.storage, f"{made.loop.work}/checkpoints", 2)
    while checkpoints.steps() != [12, 8]:
        time.sleep(0.01)  # the last one is still being written
    for step in (12, 8):
        made.loop.storage.write(f"{checkpoints.folder}/{step:09d}/state.safetensors", b"damaged")
    again = Ranks(made.job)
    with pytest.raises(ContractError, match="no checkpoint to resume from"):
        train(make_trainee(again, world), again.loop, world, no_notice)
    assert checkpoints.steps() == [12, 8]


def poison(trainee: Any, steps: set[int]) -> None:
    """Make the gradient of some steps not a number."""
    step, parameter = trainee.step, next(p for p in trainee.model.parameters() if p.requires_grad)

    def poisoned(batch: Any, number: int) -> Any:
        hook = parameter.register_hook(lambda grad: grad * math.nan) if number in steps else None
        losses = step(batch, number)
        if hook:
            hook.remove()
        return losses

    trainee.step = poisoned


def test_a_step_without_a_finite_gradient_is_skipped(tmp_path: Path) -> None:
    made = ranks_of(tmp_path, "train-sit")
    put_lease(made.job)
    world = World.alone()
    trainee = make_trainee(made, world)
    poison(trainee, {3, 9, 10})
    train(trainee, made.loop, world, no_notice)
    assert all(torch.isfinite(weight).all() for average in trainee.weights().values() for weight in average.values())
    assert history(made)[-1]["skipped"] == 3


def test_too_many_in_a_row_stop_the_run(tmp_path: Path) -> None:
    made = ranks_of(tmp_path, "train-sit", 1, None, "sit.steps=60")
    put_lease(made.job)
    world = World.alone()
    trainee = make_trainee(made, world)
    poison(trainee, set(range(6, 60)))
    with pytest.raises(PipelineError, match=rf"{MAX_SKIPPED_IN_A_ROW} steps in a row .* checkpoint is step"):
        train(trainee, made.loop, world, no_notice)


def test_skipped_steps_are_known_at_the_next_line(tmp_path: Path) -> None:
    """Also if the last of them were not skipped. What is saved before is the state of the last step that was made."""
    made = ranks_of(tmp_path, "train-sit", 1, None, "sit.steps=60", "sit.log_every=50", "sit.checkpoint_every=15")
    put_lease(made.job)
    world = World.alone()
    trainee = make_trainee(made, world)
    poison(trainee, set(range(6, 40)))
    with pytest.raises(PipelineError, match=r"34 steps in a row .* checkpoint is step 45"):
        train(trainee, made.loop, world, no_notice)


def test_a_checkpoint_among_skipped_steps_is_that_of_the_last_that_was_made(tmp_path: Path) -> None:
    made = ranks_of(tmp_path, "train-sit", 1, None, "sit.steps=12", "sit.log_every=20", "sit.checkpoint_every=4")
    put_lease(made.job)
    world = World.alone()
    trainee = make_trainee(made, world)
    poison(trainee, set(range(4, 12)))
    train(trainee, made.loop, world, no_notice)
    checkpoints = Checkpoints(made.loop.storage, f"{made.loop.work}/checkpoints", 2)
    parts = [flatten_state(checkpoints.load(step)["parts"])[1] for step in (8, 12)]
    assert parts[0].keys() == parts[1].keys()
    assert [name for name in parts[0] if not torch.equal(parts[0][name], parts[1][name])] == []


def test_where_the_tokenizer_does_not_step_neither_does_the_discriminator(tmp_path: Path) -> None:
    trainee = make_trainee(ranks_of(tmp_path, "train-tokenizer"), World.alone())
    batches = trainee.batches(20, 22)
    trainee.step(next(iter(batches)), 20)
    before = flatten_state({name: part.state_dict() for name, part in trainee.states().items()})[1]
    next(iter(trainee.tokenizer.parameters())).register_hook(lambda grad: grad * math.nan)
    losses = trainee.step(next(iter(batches)), 21)
    batches.close()
    after = flatten_state({name: part.state_dict() for name, part in trainee.states().items()})[1]
    assert losses["loss"].isnan()
    assert [name for name in before if not torch.equal(before[name], after[name])] == []


def test_a_step_that_only_the_discriminator_skips_is_counted(tmp_path: Path) -> None:
    trainee = make_trainee(ranks_of(tmp_path, "train-tokenizer"), World.alone())
    next(iter(trainee.discriminator.parameters())).register_hook(lambda grad: grad * math.nan)
    batches, lines = trainee.batches(20, 22), History(torch.device("cpu"))
    before = flatten_state(trainee.discriminator.state_dict())[1]
    for step, batch in enumerate(batches, 20):
        lines.add(trainee.step(batch, step))
    batches.close()
    after = flatten_state(trainee.discriminator.state_dict())[1]
    assert [name for name in before if not torch.equal(before[name], after[name])] == []
    line, in_a_row = lines.close_line(22)
    assert (line["skipped"], in_a_row) == (2, 2)


def saved_after_a_notice(folder: Path, notice: Callable[[], float | None], seconds: float = 0.0) -> list[int]:
    """The steps of a training of 24 that are saved, of which the last one always is, when a write takes so long."""
    made = ranks_of(folder, "train-sit", 1, None, "sit.checkpoint_every=100", "sit.log_every=5")
    put_lease(made.job)
    world, saved = World.alone(), []
    trainee = make_trainee(made, world)
    save = Checkpoints.save

    def noting(self: Checkpoints, step: int, state: dict[str, Any]) -> None:
        saved.append(step)
        save(self, step, state)
        self.wait()  # as if the steps took longer than the write
        self._seconds = max(self._seconds, seconds)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Checkpoints, "save", noting)
        train(trainee, made.loop, world, notice)
    return saved


def test_after_a_notice_everything_is_saved_that_can_be(tmp_path: Path) -> None:
    assert saved_after_a_notice(tmp_path / "none", no_notice) == [24]
    assert saved_after_a_notice(tmp_path / "no end", lambda: math.inf) == [5, 10, 15, 20, 24]
    later = iter([None, None, time.time() + 3600, time.time() + 3600, None])
    assert saved_after_a_notice(tmp_path / "later", lambda: next(later)) == [15, 20, 24]


def test_nothing_is_begun_that_would_not_be_whole_in_time(tmp_path: Path) -> None:
    assert saved_after_a_notice(tmp_path / "over", lambda: time.time() - 1) == [24]
    assert saved_after_a_notice(tmp_path / "once", lambda: time.time() + 10, seconds=20) == [5, 24]
