"""A resumed training equals an undisturbed one to the last bit, and all ranks train one model."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.training.checkpoint import flatten_state
from pipeline.training.restore import restore_part
from pipeline.training.world import World
from tests.support.trainers import (
    NAN_AT,
    Dies,
    Ranks,
    final_state,
    history,
    make_trainee,
    ranks_of,
    run_ranks,
    same_state,
)

STAGES = ["train-tokenizer", "train-sit"]


def result(made: Ranks) -> dict[str, Any]:
    loop = made.loop
    return json.loads(loop.storage.read(f"{loop.work}/result.json"))["files"]


@pytest.fixture(scope="module", params=STAGES)
def undisturbed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Ranks:
    """A training of one rank that has ended."""
    made = ranks_of(tmp_path_factory.mktemp("undisturbed"), request.param)
    run_ranks(made)
    return made


@pytest.mark.parametrize("die_at", [1, 7, 13, 23])
def test_resumed_equals_undisturbed(tmp_path: Path, undisturbed: Ranks, die_at: int) -> None:
    """Before D starts (step 6), after it, after the tokenizer sees it (12), in front of the last step."""
    cut = ranks_of(tmp_path, undisturbed.job.stage, 1, die_at)
    with pytest.raises(Dies):
        run_ranks(cut)
    again = Ranks(cut.job, 1)
    run_ranks(again)
    assert result(again) == result(undisturbed)
    assert same_state(final_state(again), final_state(undisturbed))
    assert [row["step"] for row in history(again)] == list(range(1, 25))


def test_d_trains_from_its_start_and_the_tokenizer_meets_it_from_its_own(undisturbed: Ranks) -> None:
    """A quarter and a half of 24 steps; the history counts from 1."""
    if undisturbed.job.stage != "train-tokenizer":
        pytest.skip("of the tokenizer alone")
    lines = history(undisturbed)
    assert [line["step"] for line in lines if "discriminator" in line] == list(range(7, 25))
    assert [line["step"] for line in lines if "adversarial" in line] == list(range(13, 25))


def test_without_weight_there_is_no_d(tmp_path: Path) -> None:
    made = ranks_of(tmp_path, "train-tokenizer", 1, None, "tokenizer.adversarial_weight=0")
    run_ranks(made)
    assert not [line for line in history(made) if line.keys() & {"adversarial", "discriminator"}]


@pytest.mark.parametrize("spoiled", ["tokenizer", "discriminator"])
def test_a_nan_in_either_network_skips_the_step_of_both(tmp_path: Path, spoiled: str) -> None:
    trainee = make_trainee(ranks_of(tmp_path, "train-tokenizer"), World.alone())
    (batch,) = trainee.batches(NAN_AT, NAN_AT + 1)
    before = {name: copy.deepcopy(part.state_dict()) for name, part in trainee.states().items()}
    parameter = next(one for one in trainee.states()[spoiled].parameters() if one.requires_grad)
    hook = parameter.register_hook(lambda grad: grad * torch.nan)
    assert trainee.step(batch, NAN_AT)["loss"].isnan()
    hook.remove()
    for name, part in trainee.states().items():
        after = part.state_dict()
        if "optimizer" in name:
            assert after["state"] == {} == before[name]["state"], name
        else:
            assert same_state(after, before[name]), name
    assert trainee.step(batch, NAN_AT)["loss"].isfinite()
    assert not any(same_state(part.state_dict(), before[name]) for name, part in trainee.states().items())


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_three_ranks_resume_to_the_same_bits(tmp_path: Path, stage: str) -> None:
    still = ranks_of(tmp_path / "still", stage, 3)
    run_ranks(still)
    cut = ranks_of(tmp_path / "cut", stage, 3, 15)
    run_ranks(cut)
    again = Ranks(cut.job, 3)
    run_ranks(again)
    assert result(again) == result(still)
    assert same_state(final_state(again), final_state(still))


@pytest.mark.slow
def test_one_and_two_ranks_train_the_same_model(tmp_path: Path, undisturbed: Ranks) -> None:
    """24 steps, across D's start at 6 and the tokenizer's meeting it at 12.

    Adam's first steps divide a gradient by itself: what is but rounding in D grows to 1e-3 of its terms.
    """
    two = ranks_of(tmp_path, undisturbed.job.stage, 2)
    run_ranks(two)
    for a, b in zip(history(undisturbed), history(two), strict=True):
        assert a.keys() == b.keys()
        for name in a:
            of_d = name in ("adversarial", "discriminator")
            assert a[name] == pytest.approx(b[name], rel=5e-3 if of_d else 2e-4, abs=1e-6), (a["step"], name)


@pytest.mark.slow
def test_a_training_that_loses_a_worker_goes_on_along_the_same_curve(tmp_path: Path, undisturbed: Ranks) -> None:
    """Two ranks until step 15, then one: the last checkpoint is taken up, and the global batches stay the same."""
    cut = ranks_of(tmp_path, undisturbed.job.stage, 2, 15)
    run_ranks(cut)
    again = Ranks(cut.job, 1)
    run_ranks(again)
    for a, b in zip(history(undisturbed), history(again), strict=True):
        for name in a:
            of_d = name in ("adversarial", "discriminator")
            assert a[name] == pytest.approx(b[name], rel=5e-3 if of_d else 2e-4, abs=1e-6), (a["step"], name)


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_a_nan_on_one_of_two_ranks_skips_the_step_on_both(tmp_path: Path, stage: str) -> None:
    """Were it made on one of them, the two would not go on as one model, and not as if the other had had it."""
    runs = []
    for rank in (0, 1):
        made = ranks_of(tmp_path / str(rank), stage, 2)
        runs.append(Ranks(made.job, 2, nan_on=rank))
        run_ranks(runs[-1])
    assert same_state(final_state(runs[0]), final_state(runs[1]))
    peaceful = ranks_of(tmp_path / "peaceful", stage, 2)
    run_ranks(peaceful)
    assert not same_state(final_state(peaceful), final_state(runs[0]))
    assert all(value.isfinite().all() for value in final_state(runs[0])["parts"]["ema"].values())


def test_every_state_is_in_the_checkpoint(undisturbed: Ranks) -> None:
    """Each part's saved state differs from a fresh one's, and loading it makes them equal."""
    state = final_state(undisturbed)
    fresh = make_trainee(undisturbed, World.alone())
    assert state["parts"].keys() == fresh.states().keys()
    for name, part in fresh.states().items():
        assert not same_state(part.state_dict(), state["parts"][name]), name
        restore_part(part, state["parts"][name])
        assert same_state(part.state_dict(), state["parts"][name]), name
    assert len(state["history"]["lines"]) == 24


def test_every_object_that_changes_is_a_state(tmp_path: Path) -> None:
    """Whatever a trainee holds with a state_dict is in the list, or does not change."""
    for stage in STAGES:
        made = ranks_of(tmp_path / stage, stage)
        trainee = make_trainee(made, World.alone())
        before = {
            name: flatten_state(copy.deepcopy(part.state_dict()))
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
