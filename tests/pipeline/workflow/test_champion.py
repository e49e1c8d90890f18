"""Retraining from the champion: what it starts from, when it has nothing to do, and what is refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from rich.console import Console

from pipeline.artifacts import artifact_path
from pipeline.config import Config, load_config
from pipeline.console import Display
from pipeline.errors import ConfigError, ContractError
from pipeline.storage import open_storage
from pipeline.workflow import champion, config_of, from_champion, graph, stage_fingerprints
from pipeline.workflow.runner import Runner
from tests.pipeline.workflow.world import World, folder_of_images

ALL = ["prepare", "train-tokenizer", "evaluate-tokenizer", "analyze", "encode", "reference", "floor", "train-sit",
       "sample", "evaluate-samples", "register"]  # fmt: skip
Run = Callable[..., list[str]]


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The tags of the champion; none in the beginning."""
    tags: dict[str, str] = {}
    monkeypatch.setattr(champion, "aliased_tags", lambda uri, name, alias: dict(tags) or None)
    return tags


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return folder_of_images(tmp_path / "images")


@pytest.fixture
def retrained(world: World, registry: dict[str, str], source: Path) -> Run:
    """Retrain from the champion and promote what comes of it; the stages that were made."""

    def run(*sets: str, steps: int | None = None) -> list[str]:
        config, _ = from_champion(config_at(world, source, *sets), steps)
        world.made = []
        Runner(config, Display(Console(file=world.said)), "quickstart").run(None)
        prints = stage_fingerprints(config)
        registry.update({f"dvae.input.{stage}": str(prints[stage]) for stage in ALL[:-1]})
        return world.made

    return run


def config_at(world: World, source: Path, *sets: str) -> Config:
    gate = ["evaluate.class_accuracy=false", "register.gate.metric=samples/frechet_distance/efficientnet_lite0"]
    return world.config("data.format=folder", f"data.uri={source}", *gate, *sets)


def new_image(source: Path) -> None:
    count = len(list(source.rglob("*.png")))
    Image.new("RGB", (8, 8), (0, 9, count)).save(source / "cat" / f"{count}.png")


def test_without_a_champion_all_is_trained_and_then_nothing(retrained: Run) -> None:
    assert retrained() == ALL
    assert retrained() == []
    assert retrained() == []


def test_new_images_keep_the_tokenizer_and_start_from_the_champion_once(
    world: World, source: Path, retrained: Run, registry: dict[str, str]
) -> None:
    """Twice: a promotion changes what a training would start from, and is no reason for one."""
    retrained()
    first = dict(registry)
    new_image(source)
    config, text = from_champion(config_at(world, source))
    assert config.sit.start_from == first["dvae.input.train-sit"]
    assert text.endswith("; changed: data.revision")
    assert retrained() == [stage for stage in ALL if stage != "train-tokenizer"]
    assert registry["dvae.input.train-sit"] != first["dvae.input.train-sit"]
    assert registry["dvae.input.train-tokenizer"] == first["dvae.input.train-tokenizer"]
    assert retrained() == retrained() == []
    new_image(source)
    (source / "dog" / "0.png").unlink()
    second = dict(registry)
    assert retrained() == [stage for stage in ALL if stage != "train-tokenizer"]
    assert config_at(world, source).sit.start_from is None
    assert world.manifest("train-sit") is None, "none is trained from nothing"
    assert registry["dvae.input.train-sit"] != second["dvae.input.train-sit"]


def test_what_is_used_as_it_is_and_goes_away_is_not_trained_in_its_place(
    world: World, source: Path, retrained: Run, registry: dict[str, str]
) -> None:
    retrained()
    new_image(source)
    tokenizer = artifact_path("train-tokenizer", registry["dvae.input.train-tokenizer"])
    world.before["prepare"] = lambda context: context.storage.delete_folder(tokenizer)
    with pytest.raises(ContractError, match=r"which is used as it is, is not at .* any more"):
        retrained()
    assert world.made == ["prepare"]


def test_fewer_steps_are_those_of_a_start(world: World, source: Path, retrained: Run) -> None:
    few = ["sit.steps=400", "sit.milestones=[5,100,400]"]
    assert retrained(*few, steps=7) == ALL
    assert retrained(*few, steps=7) == []
    new_image(source)
    config, _ = from_champion(config_at(world, source, *few), 7)
    assert (config.sit.steps, config.sit.milestones) == (7, (5,))
    assert "train-sit" in retrained(*few, steps=7)
    assert retrained(*few, steps=7) == []
    assert "train-sit" in retrained(*few, steps=9), "another recipe"


def test_a_later_stage_is_run_for_the_champion_itself(source: Path, retrained: Run) -> None:
    """Another gate, or more samples, are no reason to train."""
    retrained()
    new_image(source)
    retrained()
    assert retrained("register.gate.margin=0.5") == ["register"]
    assert retrained("register.gate.margin=0.5") == []
    assert retrained("sample.steps=3", "register.gate.margin=0.5") == ["sample", "evaluate-samples", "register"]


def test_another_recipe_of_the_tokenizer_trains_it_from_the_champions(
    world: World, source: Path, retrained: Run, registry: dict[str, str]
) -> None:
    retrained()
    first = dict(registry)
    config, text = from_champion(config_at(world, source, "tokenizer.steps=7"))
    assert config.tokenizer.start_from == first["dvae.input.train-tokenizer"]
    assert config.sit.start_from == first["dvae.input.train-sit"]
    assert text.endswith("; changed: tokenizer.steps")
    assert "train-tokenizer" in retrained("tokenizer.steps=7")
    assert retrained("tokenizer.steps=7") == []


@pytest.mark.parametrize("stage", ["prepare", "train-tokenizer", "encode", "train-sit"])
def test_an_upgrade_trains_nothing(retrained: Run, source: Path, monkeypatch: pytest.MonkeyPatch, stage: str) -> None:
    """A version that makes other fingerprints, of a stage up to the generator."""
    retrained()
    new_image(source)
    retrained()
    raised = graph.find_stage(stage)
    versions = {raised.name: raised.version + 1}
    monkeypatch.setattr(graph.Stage, "version", property(lambda one: versions.get(one.name, 2)), raising=False)
    assert "train-sit" not in retrained()
    assert "train-tokenizer" not in retrained()


def test_a_preset_that_starts_from_the_champion_itself_trains_once(
    world: World, source: Path, retrained: Run, registry: dict[str, str]
) -> None:
    retrained()
    own = [f"sit.start_from={registry['dvae.input.train-sit']}", "sit.steps=400"]
    new_image(source)
    assert "train-sit" in retrained(*own, steps=7)
    assert retrained(*own, steps=7) == retrained(*own, steps=7) == []


def test_a_start_of_the_presets_own_is_for_the_first_training(
    world: World, source: Path, retrained: Run, registry: dict[str, str]
) -> None:
    retrained()
    own = f"sit.start_from={registry.pop('dvae.input.train-sit')}"
    registry.clear()
    assert retrained(own, "seed=2", steps=7)[:2] == ["prepare", "train-tokenizer"]
    assert retrained(own, "seed=2", steps=7) == []
    new_image(source)
    begun = registry["dvae.input.train-sit"]
    assert from_champion(config_at(world, source, own, "seed=2"), 7).config.sit.start_from == begun


def test_the_config_of_what_was_made_with_the_champions_tokenizer(
    world: World, source: Path, retrained: Run, registry: dict[str, str]
) -> None:
    """Its tokenizer was made of other images than its latents: for a repair, it is one that was imported."""
    retrained()
    new_image(source)
    retrained()
    storage = open_storage(str(world.root))
    made = champion._champion_made(config_at(world, source))
    assert made is not None
    for manifest in (made["encode"], made["train-sit"], made["train-tokenizer"]):
        found = config_of(storage, manifest, load_config("quickstart", [], str(world.root)))
        assert stage_fingerprints(found)[manifest.stage] == manifest.fingerprint
    found = config_of(storage, made["train-sit"], load_config("quickstart", [], str(world.root)))
    assert found.tokenizer.imported == registry["dvae.input.train-tokenizer"]


@pytest.mark.parametrize(
    ("sets", "said"),
    [
        (["sit.depth=5"], "has another network: depth is"),
        (["tokenizer.hidden=48"], r"tokenizer\.start_from \w{12} has another network: hidden is \d+ there and 48"),
    ],
)
def test_another_network_is_refused(world: World, source: Path, retrained: Run, sets: list[str], said: str) -> None:
    retrained()
    with pytest.raises(ContractError, match=said):
        from_champion(config_at(world, source, *sets))


def test_an_imported_generator_is_not_retrained(world: World, source: Path, registry: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match=r"sit\.imported is used as it is"):
        from_champion(config_at(world, source, f"sit.imported={'a' * 64}"))


@pytest.mark.parametrize(
    ("tags", "said"),
    [
        ({"other": "tag"}, "does not say which prepare it was made from"),
        ({"dvae.input.prepare": "a" * 64}, r"prepare/a{12}, which the champion of \S+ was made from, is not at "),
    ],
)
def test_a_champion_without_its_artifacts(
    world: World, source: Path, registry: dict[str, str], tags: dict[str, Any], said: str
) -> None:
    registry.update(tags)
    with pytest.raises(ContractError, match=said):
        from_champion(config_at(world, source))
