"""Several averages of SiT's weights: each is what it would be alone, is kept, and can be chosen when sampling."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from safetensors.torch import load

from pipeline.config import Config, load_config
from pipeline.errors import ConfigError, ContractError
from pipeline.inference import sit_weights, weights_names
from pipeline.stages import register
from tests.support.artifacts import artifact_writer, manifest
from tests.support.trainers import Ranks, ranks_of, run_ranks, same_state

ALONE = ["sit.alignment=none", "sit.steps=4"]  # without a teacher, which the first average is


def trained(folder: Path, *sets: str) -> Ranks:
    made = ranks_of(folder, "train-sit", 1, None, *ALONE, *sets)
    run_ranks(made)
    return made


def weights(made: Ranks, name: str) -> dict[str, Any]:
    loop = made.loop
    return load(loop.storage.read(f"{loop.stage}/{loop.fingerprint[:12]}/{name}"))


def test_an_average_beside_others_is_what_it_is_alone(tmp_path: Path) -> None:
    several = trained(tmp_path / "several", "sit.ema_decay=0.9", "sit.ema_decays=[0.5]")
    alone = trained(tmp_path / "alone", "sit.ema_decay=0.5")
    first, second = weights(several, "weights.safetensors"), weights(several, "weights-ema0.5.safetensors")
    assert same_state(second, weights(alone, "weights.safetensors"))
    assert not same_state(first, second)


def of(config: Config, **details: Any) -> Any:
    return manifest(config, "train-sit", artifact_writer(config, "train-sit"), {}, **details)


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return load_config("quickstart", ["data.revision=abc", "sit.ema_decays=[0.5]"], str(tmp_path))


def test_the_file_of_a_chosen_average(config: Config) -> None:
    made = of(config, averages=[0.99, 0.5])
    assert [sit_weights(made, decay) for decay in (None, 0.99, 0.5)] == [
        "weights.safetensors", "weights.safetensors", "weights-ema0.5.safetensors",
    ]  # fmt: skip
    with pytest.raises(ContractError, match=r"train-sit/\w+ has the averages 0\.99, 0\.5 alone, not 0\.7"):
        sit_weights(made, 0.7)


def test_an_artifact_from_before_has_one_average(config: Config) -> None:
    assert sit_weights(of(config), None) == "weights.safetensors"
    with pytest.raises(ContractError, match=r"has one average alone, not 0\.5"):
        sit_weights(of(config), 0.5)


def test_decays_that_differ_in_the_last_digit_have_files_of_their_own() -> None:
    decays = [0.9999999, 0.99999999, 1 / 3, 0.3333]
    assert len(set(weights_names("weights", decays).values())) == len(decays)


@pytest.mark.parametrize(
    ("set_", "said"),
    [
        ("sit.ema_decays=[0.5,0.99]", r"one decay twice: 0\.99, 0\.5, 0\.99"),
        ("sample.ema_decay=0.7", r"sample\.ema_decay 0\.7 is none of sit's averages, 0\.99"),
        ("sit.ema_decays=[1.0]", "less than 1"),
    ],
)
def test_what_is_refused(set_: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load_config("quickstart", [set_])


def test_the_registered_model_has_the_average_that_was_sampled(config: Config) -> None:
    """The gate's metrics are of these weights."""

    sampled = config.model_copy(update={"sample": config.sample.model_copy(update={"ema_decay": 0.5})})
    context: Any = SimpleNamespace(config=sampled, inputs={"train-sit": of(config, averages=[0.99, 0.5])})
    assert register._sit_weights(context) == "weights-ema0.5.safetensors"
