"""More steps after the last one, milestones and warm starts: the same bits as if it had been asked for at once."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline.errors import ContractError
from pipeline.inference import weights_names
from pipeline.training.restore import load_start
from pipeline.training.world import World
from tests.support.longer import Trainings
from tests.support.trainers import Ranks, job_of, make_trainee, ranks_of, same_state

# A save waits for the one before it: of these that of the last but one step is there at a death.
OFTEN = "sit.checkpoint_every=1"
ALL = ["sit.keep_state=true", "sit.ema_decays=[0.5]", OFTEN]


@pytest.mark.parametrize(
    ("short", "long", "first", "more"),
    [
        # A line of the history is open at the last step of the short one, which is a milestone of the long one alone.
        (4, 7, "[2]", "[2,4,6]"),
        pytest.param(40, 80, "[10,40]", "[10,40,70,80]", marks=pytest.mark.slow),
    ],
)
def test_more_steps_equal_as_many_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, short: int, long: int, first: str, more: str
) -> None:
    """Weights of both averages, milestones, history and the whole state; also when it is killed on the way."""
    whole = [*ALL, f"sit.steps={long}", f"sit.milestones={more}"]
    at_once = Trainings(tmp_path / "once", monkeypatch).train(*whole)
    longer = Trainings(tmp_path / "longer", monkeypatch)
    begun = longer.train(*ALL, f"sit.steps={short}", f"sit.milestones={first}")
    made = longer.train(*whole, die_at=(short, long - 1))
    assert longer.said.count(f"goes on from {begun.name} at step {short}") == 2, "as often as there was no checkpoint"
    assert made.files == at_once.files
    assert made.fingerprint == at_once.fingerprint
    assert {name.partition("/")[0] for name in made.files} == {
        "weights.safetensors", "weights-ema0.5.safetensors", "milestones", "state", "history.jsonl", "losses.png",
    }  # fmt: skip
    assert made.details["went_on_from"] == {"artifact": begun.name, "step": short}
    assert "went_on_from" not in at_once.details
    stored = longer.root / made.name
    assert sorted(path.name for path in stored.glob("milestones/*")) == sorted(
        name.partition("/")[2] for name in made.files if name.startswith("milestones/")
    )


def test_killed_and_resumed_with_everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """FDA, two averages, milestones and a warm start. Killed: in front of the first checkpoint; behind a milestone that
    no checkpoint has; at the last step. The start is not needed any more then, but is still known.
    """

    def run(root: Path, die_at: tuple[int, ...]) -> Any:
        own = Trainings(root, monkeypatch)
        start = own.train("sit.steps=1")
        sets = ["sit.steps=7", "sit.ema_decays=[0.5]", "sit.milestones=[2,5,7]", f"sit.start_from={start.fingerprint}"]
        assert own.config(*sets).sit.alignment == "fda"
        if die_at:
            own.attempt(own.config(*sets), die_at[0])
            own.attempt(own.config(*sets), die_at[1])
            (own.root / start.name / "weights.safetensors").unlink()
            (own.root / start.name / "manifest.json").unlink()
        made = own.train(*sets, die_at=die_at[2:])
        assert made.details["started_from"] == {"artifact": start.name, "content": start.content}
        return made

    still, cut = run(tmp_path / "still", ()), run(tmp_path / "cut", (1, 5, 6))
    assert cut.files == still.files
    assert [name for name in cut.files if name.startswith("milestones/")] == [
        f"milestones/{step:06d}{more}.safetensors" for step in (2, 5, 7) for more in ("", "-ema0.5")
    ]  # fmt: skip
    assert cut.files["milestones/000007.safetensors"] == cut.files["weights.safetensors"]
    assert cut.files["milestones/000005.safetensors"] != cut.files["weights.safetensors"]


def test_a_longer_training_says_what_the_shorter_one_started_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = Trainings(tmp_path, monkeypatch)
    start = own.train("sit.steps=1")
    assert "started_from" not in start.details
    sets = ["sit.keep_state=true", f"sit.start_from={start.fingerprint}"]
    own.train(*sets, "sit.steps=2")
    longer = own.train(*sets, "sit.steps=3")
    assert longer.details["went_on_from"]["step"] == 2
    assert longer.details["started_from"] == {"artifact": start.name, "content": start.content}


@pytest.mark.slow
def test_two_ranks_start_and_go_on_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(root: Path, *lengths: int) -> Any:
        own = Trainings(root, monkeypatch, world=2)
        start = own.train("sit.steps=1")
        sets = [*ALL, "sit.milestones=[2]", f"sit.start_from={start.fingerprint}"]
        return [own.train(*sets, f"sit.steps={steps}") for steps in lengths][-1]

    longer = run(tmp_path / "longer", 3, 5)
    assert longer.files == run(tmp_path / "once", 5).files
    assert longer.details["went_on_from"]["step"] == 3


def test_a_start_gives_weights_and_averages_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The head of the alignment and the optimizer are as of a training without a start."""
    own = Trainings(tmp_path, monkeypatch)
    config = own.config("sit.ema_decays=[0.5]")
    ranks = Ranks(job_of(config, "train-sit", own.given(config)))
    trainee, plain = make_trainee(ranks, World.alone()), make_trainee(ranks, World.alone())
    weights = {name: torch.randn(tensor.shape) for name, tensor in plain.model.sit.state_dict().items()}
    trainee.start_from(dict.fromkeys(trainee.weights(), weights), "train-sit/abc")
    assert same_state(trainee.model.sit.state_dict(), weights)
    assert all(same_state(average, weights) for average in trainee.weights().values())
    assert len(trainee.weights()) == 2
    head = {name: tensor for name, tensor in trainee.model.state_dict().items() if not name.startswith("sit.")}
    assert head
    assert same_state(head, {name: plain.model.state_dict()[name] for name in head})
    assert same_state(trainee.optimizer.state_dict(), plain.optimizer.state_dict())


def test_each_average_starts_from_that_of_its_decay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or from the first one, where there is none of its decay; the network itself as its first average."""
    own = Trainings(tmp_path, monkeypatch)
    start = own.train("sit.steps=2", "sit.ema_decays=[0.5]")
    files = {decay: own.root / start.name / name for decay, name in weights_names("weights", [0.9, 0.5]).items()}
    first, second = (load_file(file) for file in files.values())
    assert max((first[name] - second[name]).abs().max() for name in first) > 1e-4
    still = ["sit.steps=1", "sit.learning_rate=1e-30"]  # so small a step changes no weight
    decays = ["sit.ema_decay=0.5", "sit.ema_decays=[0.9,0.7]"]
    made = own.train(*still, *decays, f"sit.start_from={start.fingerprint}")
    begun = {0.5: second, 0.9: first, 0.7: first}
    for decay, name in weights_names("weights", list(begun)).items():
        expected = {key: decay * begun[decay][key] + (1 - decay) * second[key] for key in first}
        torch.testing.assert_close(load_file(own.root / made.name / name), expected, atol=1e-7, rtol=1e-5)


def test_weights_of_another_shape_are_refused_with_both(tmp_path: Path) -> None:
    module = torch.nn.Linear(3, 2)
    save_file({"bias": torch.zeros(2), "weight": torch.zeros(2, 4)}, tmp_path / "weights")
    with pytest.raises(ContractError, match=r"of train-sit/abc.*: weight is \[2, 4\] there and \[2, 3\] here"):
        load_start(module, load_file(tmp_path / "weights"), "train-sit/abc")
    with pytest.raises(ContractError, match=r"bias is missing there and \[2\] here"):
        load_start(module, {"weight": torch.zeros(2, 3)}, "train-sit/abc")


def test_a_tokenizer_starts_too(tmp_path: Path) -> None:
    trainee = make_trainee(ranks_of(tmp_path, "train-tokenizer"), World.alone())
    weights = {name: tensor + 1 for name, tensor in trainee.tokenizer.state_dict().items()}
    trainee.start_from({trainee.ema.decay: weights}, "train-tokenizer/abc")
    assert same_state(trainee.tokenizer.state_dict(), weights)
    assert same_state(trainee.ema.state_dict(), weights)


def test_a_damaged_state_is_refused_and_not_begun_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = Trainings(tmp_path, monkeypatch)
    begun = own.train("sit.keep_state=true", "sit.steps=1")
    (path,) = (own.root / begun.name).glob("state/*/state.safetensors")
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(ContractError, match=rf"the state of {begun.name}, .* is missing or damaged.*artifact repair"):
        own.train("sit.steps=2")


def test_a_lost_milestone_is_missed_before_the_training_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = Trainings(tmp_path, monkeypatch)
    config = own.config("sit.steps=6", "sit.milestones=[2]", OFTEN)
    assert own.attempt(config, 5) is None
    (path,) = own.root.glob("train-sit/*/milestones/000002.safetensors")
    path.unlink()
    with pytest.raises(ContractError, match=r"milestone 2 of train-sit/\w+ is missing at .*is at step [45]"):
        own.attempt(config)
