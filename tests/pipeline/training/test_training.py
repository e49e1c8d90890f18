"""The loop of both trainers: resumed runs equal undisturbed ones to the last bit, and ranks share one model."""

import json
import math
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import LeaseError, PipelineError, StorageError
from pipeline.storage.uri import open_storage
from pipeline.tracking.outbox import OUTBOX, Outbox
from pipeline.training import history as history_module
from pipeline.training.checkpoint import Checkpoints, flatten_state, same_state, unflatten_state
from pipeline.training.history import History
from pipeline.training.loop import MAX_SKIPPED_IN_A_ROW, train
from pipeline.training.optimizer import generator, learning_rate
from pipeline.training.worker import no_notice
from pipeline.training.world import World
from tests.support.artifacts import trainer_inputs
from tests.support.trainers import (
    Dies,
    Ranks,
    final_state,
    history,
    job_of,
    make_trainee,
    put_lease,
    run_ranks,
    small_config,
)

STAGES = ["train-tokenizer", "train-sit"]


def job(folder: Path, stage: str, world: int = 1, die_at: int | None = None, *sets: str) -> Ranks:
    config = small_config(folder, *sets)
    return Ranks(job_of(config, stage, trainer_inputs(config, stage, folder / "scratch")), world, die_at)


def result(made: Ranks) -> dict[str, Any]:
    loop = made.loop
    return json.loads(loop.storage.read(f"{loop.work}/result.json"))["files"]


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("die_at", [1, 7, 13, 23])
def test_resumed_equals_undisturbed(tmp_path: Path, stage: str, die_at: int) -> None:
    """Before D starts (step 6), after it, after the tokenizer sees it (12), in front of the last step."""
    still = job(tmp_path / "still", stage)
    run_ranks(still)
    cut = job(tmp_path / "cut", stage, 1, die_at)
    with pytest.raises(Dies):
        run_ranks(cut)
    again = Ranks(cut.job, 1)
    run_ranks(again)
    assert result(again) == result(still)
    assert same_state(final_state(again), final_state(still))
    assert [row["step"] for row in history(again)] == list(range(1, 25))


def posted(made: Ranks) -> list[int]:
    """The steps in the outbox, in its order."""
    storage = made.loop.storage
    lines = [line for entry in storage.list(f"{OUTBOX}/test") for line in storage.read(entry.path).splitlines()]
    return [json.loads(line)["step"] for line in lines]


@pytest.mark.parametrize("die_at", [13, 23])
def test_a_line_in_hand_at_a_death_is_posted_after_all(tmp_path: Path, die_at: int) -> None:
    """The first line goes out at once, the others wait for company: all but one were lost with the process."""
    cut = job(tmp_path, "train-sit", 1, die_at)
    with pytest.raises(Dies):
        run_ranks(cut)
    assert len(posted(cut)) < die_at
    again = Ranks(cut.job, 1)
    run_ranks(again)
    assert set(posted(again)) == set(range(1, 25))


def test_metrics_that_could_not_be_written_go_with_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, post, refused = job(tmp_path, "train-sit"), Outbox.post, list[int]()

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


@pytest.mark.parametrize("stage", STAGES)
def test_three_ranks_resume_to_the_same_bits(tmp_path: Path, stage: str) -> None:
    still = job(tmp_path / "still", stage, 3)
    run_ranks(still)
    cut = job(tmp_path / "cut", stage, 3, 15)
    run_ranks(cut)
    again = Ranks(cut.job, 3)
    run_ranks(again)
    assert result(again) == result(still)
    assert same_state(final_state(again), final_state(still))


@pytest.mark.parametrize("stage", STAGES)
def test_one_and_two_ranks_train_the_same_model(tmp_path: Path, stage: str) -> None:
    """24 steps, across D's start at 6 and the tokenizer's meeting it at 12."""
    one, two = job(tmp_path / "one", stage, 1), job(tmp_path / "two", stage, 2)
    run_ranks(one)
    run_ranks(two)
    for a, b in zip(history(one), history(two), strict=True):
        assert a.keys() == b.keys()
        for name in a:
            assert a[name] == pytest.approx(b[name], rel=2e-4, abs=1e-6), (a["step"], name)


@pytest.mark.parametrize("stage", STAGES)
def test_every_state_is_in_the_checkpoint(tmp_path: Path, stage: str) -> None:
    """Each part's saved state differs from a fresh one's, and loading it makes them equal."""
    made = job(tmp_path, stage)
    run_ranks(made)
    state = final_state(made)
    fresh = make_trainee(made, World.alone())
    assert state["parts"].keys() == fresh.states().keys()
    for name, part in fresh.states().items():
        assert not same_state(part.state_dict(), state["parts"][name]), name
        part.load_state_dict(state["parts"][name])
        assert same_state(part.state_dict(), state["parts"][name]), name
    assert len(state["history"]["lines"]) == 24


def test_every_object_that_changes_is_a_state(tmp_path: Path) -> None:
    """Whatever a trainee holds with a state_dict is in the list, or does not change."""
    for stage in STAGES:
        made = job(tmp_path / stage, stage)
        trainee = make_trainee(made, World.alone())
        before = {
            name: flatten_state(part.state_dict())
            for name, part in vars(trainee).items()
            if hasattr(part, "state_dict")
        }
        batches = trainee.batches(20, 24)
        for step, batch in enumerate(batches, 20):
            trainee.step(batch, step)
        batches.close()
        listed = [id(part) for part in trainee.states().values()]
        for name, (tree, tensors) in before.items():
            part = getattr(trainee, name)
            tree_after, after = flatten_state(part.state_dict())
            changed = tree != tree_after or any(not torch.equal(tensors[key], after[key]) for key in tensors)
            assert not changed or id(part) in listed, name


def test_broken_checkpoint_is_passed_over(tmp_path: Path) -> None:
    """A kill between the two files, or a torn file, leaves the one before it."""
    storage = open_storage(tmp_path.as_uri())
    checkpoints = Checkpoints(storage, "c", keep=5)
    for step in (1, 2, 3):
        checkpoints.save(step, {"step": step, "x": torch.full((3,), float(step))})
    checkpoints.wait()
    storage.delete("c/000000003/state.json")
    storage.write("c/000000002/state.safetensors", storage.read("c/000000002/state.safetensors")[:-1])
    assert checkpoints.newest() == 1
    assert checkpoints.load(1)["x"].tolist() == [1, 1, 1]


def test_only_the_newest_checkpoints_stay(tmp_path: Path) -> None:
    checkpoints = Checkpoints(open_storage(tmp_path.as_uri()), "c", keep=2)
    for step in range(5):
        checkpoints.save(step, {"step": step})
    checkpoints.wait()
    assert checkpoints.steps() == [4, 3]


def test_a_saved_state_does_not_move_with_training(tmp_path: Path) -> None:
    """The copy is taken before `save` returns, though it is written later."""
    checkpoints = Checkpoints(open_storage(tmp_path.as_uri()), "c", keep=2)
    tensor = torch.zeros(3)
    checkpoints.save(1, {"x": tensor})
    tensor.fill_(9)
    checkpoints.wait()
    assert checkpoints.load(1)["x"].tolist() == [0, 0, 0]


leaves = st.none() | st.booleans() | st.integers(-(2**40), 2**40) | st.floats(allow_nan=False) | st.text(max_size=5)
states = st.recursive(
    leaves | st.integers(0, 5).map(lambda n: torch.arange(n, dtype=torch.float32)),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=4).filter(lambda key: not key.startswith("__")), inner, max_size=3)
        | st.dictionaries(st.integers(0, 9), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(states)
def test_flattening_is_undone(state: Any) -> None:
    tree, tensors = flatten_state(state)
    assert same_state(unflatten_state(json.loads(json.dumps(tree)), tensors), state)


def test_a_lost_lease_stops_the_writer(tmp_path: Path) -> None:
    """A worker whose driver was replaced neither saves nor leaves a result."""
    made = job(tmp_path, "train-sit")
    put_lease(made.job, "another")
    world = World.alone()
    with pytest.raises(LeaseError):
        train(make_trainee(made, world), made.loop, world, no_notice)
    assert not made.loop.storage.exists(f"{made.loop.work}/result.json")
    assert Checkpoints(made.loop.storage, f"{made.loop.work}/checkpoints", 2).newest() is None


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
    made = job(tmp_path, "train-sit")
    put_lease(made.job)
    world = World.alone()
    trainee = make_trainee(made, world)
    poison(trainee, {3, 9, 10})
    train(trainee, made.loop, world, no_notice)
    assert all(torch.isfinite(weight).all() for weight in trainee.weights().values())
    assert history(made)[-1]["skipped"] == 3


def test_too_many_in_a_row_stop_the_run(tmp_path: Path) -> None:
    made = job(tmp_path, "train-sit", 1, None, "sit.steps=60")
    put_lease(made.job)
    world = World.alone()
    trainee = make_trainee(made, world)
    poison(trainee, set(range(6, 60)))
    with pytest.raises(PipelineError, match=rf"{MAX_SKIPPED_IN_A_ROW} steps in a row .* checkpoint is step"):
        train(trainee, made.loop, world, no_notice)


def saved_after_a_notice(folder: Path, notice: Callable[[], float | None], seconds: float = 0.0) -> list[int]:
    """The steps of a training of 24 that are saved, of which the last one always is, when a write takes so long."""
    made = job(folder, "train-sit", 1, None, "sit.checkpoint_every=100", "sit.log_every=5")
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


def test_none_is_begun_while_one_is_written(tmp_path: Path) -> None:
    storage = open_storage(tmp_path.as_uri())
    checkpoints, goes_on = Checkpoints(storage, "c", keep=2), threading.Event()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(storage, "write", lambda *_: goes_on.wait())
        checkpoints.save(1, {"step": 1})
        assert not checkpoints.would_finish_by(math.inf)
        goes_on.set()
        checkpoints.wait()
    assert checkpoints.would_finish_by(math.inf)


def test_learning_rate() -> None:
    rates = [learning_rate(step, 100, 1.0, 0.25, "cosine") for step in range(100)]
    assert rates[:3] == pytest.approx([1 / 25, 2 / 25, 3 / 25])
    assert max(rates) == 1.0
    assert rates[25:] == sorted(rates[25:], reverse=True)
    assert rates[-1] < 1e-3
    assert learning_rate(99, 100, 1.0, 0.0, "constant") == learning_rate(0, 100, 1.0, 0.0, "constant") == 1.0


def test_randomness_is_keyed() -> None:
    cpu = torch.device("cpu")
    draws = {
        torch.rand(1, generator=generator(*key, cpu)).item()
        for key in [(0, 0, "t"), (0, 1, "t"), (1, 0, "t"), (0, 0, "noise")]
    }
    assert len(draws) == 4
    assert torch.equal(
        torch.rand(5, generator=generator(3, 4, "t", cpu)), torch.rand(5, generator=generator(3, 4, "t", cpu))
    )


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
