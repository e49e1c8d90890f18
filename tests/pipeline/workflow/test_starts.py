"""Warm starts: how an artifact is named, and what is refused before anything starts."""

from pathlib import Path

import pytest
from safetensors.torch import save_file

from pipeline.artifacts import Manifest, work_path
from pipeline.config import Config, load_config
from pipeline.errors import ConfigError, ContractError
from pipeline.storage import open_storage
from pipeline.workflow import import_sit, stage_fingerprints, starts, unneeded
from pipeline.workflow.lineage import ancestors
from pipeline.workflow.starts import remembered_start, start_of, with_whole_starts
from tests.pipeline.workflow.world import World
from tests.support.artifacts import artifact_writer, manifest, put
from tests.support.public_sit import HEADS, SMALL, public_weights

KNOWN = ["data.revision=abc", "data.classes=10"]


def config_at(root: Path, *sets: str) -> Config:
    return load_config("quickstart", [*KNOWN, *sets], str(root))


def made(root: Path, stage: str = "train-sit", *sets: str) -> Manifest:
    """An artifact of another training, without its weights."""
    config = config_at(root, *sets)
    network = config.sit_network if stage == "train-sit" else config.tokenizer_network
    details = {"network": network, "kind": config.tokenizer.kind}
    return put(config, manifest(config, stage, artifact_writer(config, stage), {}, **details))


@pytest.mark.parametrize(("stage", "section"), [("train-sit", "sit"), ("train-tokenizer", "tokenizer")])
def test_digits_are_made_whole_and_count(tmp_path: Path, stage: str, section: str) -> None:
    start = made(tmp_path, stage, f"{section}.steps=7")
    plain = config_at(tmp_path)
    few, whole = (config_at(tmp_path, f"{section}.start_from='{start.fingerprint[:digits]}'") for digits in (10, 64))
    assert stage_fingerprints(few)[stage] is None, "it is not known yet which artifact that is"
    assert with_whole_starts(few) == with_whole_starts(whole) == whole
    prints = stage_fingerprints(whole)
    assert prints[stage] not in (None, stage_fingerprints(plain)[stage])
    assert start_of(whole, stage) == start
    assert start_of(plain, stage) is None


def test_digits_of_none_and_of_several(tmp_path: Path) -> None:
    start = made(tmp_path)
    other = start.model_copy(update={"fingerprint": start.fingerprint[:8] + "0" * 56})
    put(config_at(tmp_path), other)
    with pytest.raises(ConfigError, match=r"sit\.start_from \w{8}: 2 artifacts train-sit/\w{8}\.\.\. are at"):
        with_whole_starts(config_at(tmp_path, f"sit.start_from='{start.fingerprint[:8]}'"))
    with pytest.raises(ConfigError, match=r"sit\.start_from 00ff: no artifacts train-sit/00ff\.\.\. are at"):
        with_whole_starts(config_at(tmp_path, "sit.start_from='00ff'"))


def test_an_alias_is_the_artifact_of_its_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tags = {"m/champion": {"dvae.input.train-sit": "a" * 64}, "m/odd": {}}
    monkeypatch.setattr(starts, "aliased_tags", lambda uri, name, alias: tags.get(f"{name}/{alias}"))

    def whole(alias: str) -> str | None:
        return with_whole_starts(config_at(tmp_path, f"sit.start_from=models:/{alias}")).sit.start_from

    assert whole("m@champion") == "a" * 64
    with pytest.raises(ConfigError, match="no version of the model m has the alias best"):
        whole("m@best")
    with pytest.raises(ConfigError, match="does not say which train-sit it is made from"):
        whole("m@odd")


@pytest.mark.parametrize("given", ["xyz", "12", "models:/m", "models:/m/3", "A" * 64, "a" * 65])
def test_what_names_no_artifact(tmp_path: Path, given: str) -> None:
    with pytest.raises(ConfigError, match=r"sit\.start_from: (write a fingerprint|it was read as a number)"):
        config_at(tmp_path, f"sit.start_from={given}")


def test_a_start_of_another_network_is_refused_with_both_values(tmp_path: Path) -> None:
    start = made(tmp_path, "train-sit", "sit.patch_size=2")
    with pytest.raises(ContractError, match=r"sit\.start_from \w{12} has .*: patch_size is 2 there and 1 here"):
        start_of(config_at(tmp_path, f"sit.start_from={start.fingerprint}"), "train-sit")
    start = made(tmp_path, "train-tokenizer", "tokenizer.hidden=8")
    with pytest.raises(ContractError, match=r"tokenizer\.start_from \w{12} has .* hidden is 8 there and \d+ here"):
        start_of(config_at(tmp_path, f"tokenizer.start_from={start.fingerprint}"), "train-tokenizer")


@pytest.mark.parametrize(("stage", "section"), [("train-sit", "sit"), ("train-tokenizer", "tokenizer")])
def test_what_is_imported_starts_from_nothing(tmp_path: Path, stage: str, section: str) -> None:
    """A preset may have the start of its parent."""
    config = config_at(tmp_path)
    own = getattr(config, section).model_copy(update={"imported": "b" * 64, "start_from": "cccc"})
    config = config.model_copy(update={section: own})
    assert with_whole_starts(config) == config
    assert start_of(config, stage) is None


def test_a_public_generator_can_be_started_from(tmp_path: Path) -> None:
    """Its artifact says of its network what a trained one's says."""
    file = tmp_path / "repa.safetensors"
    save_file(public_weights("repa", **{**SMALL, "classes": 10}), file)
    start = import_sit(str(tmp_path), "repa", str(file), HEADS)
    sets = ["sit.width=24", "sit.depth=3", f"sit.heads={HEADS}", "sit.patch_size=2"]
    config = config_at(tmp_path, *sets, f"sit.start_from={start.fingerprint}")
    assert start_of(config, "train-sit") == start


def test_a_start_that_is_gone_is_missed_before_anything_starts(world: World) -> None:
    sets = [f"sit.start_from={'e' * 64}"]
    with pytest.raises(ConfigError, match=r"sit\.start_from e{12} is not at .*artifact ls"):
        world.run(*sets)
    assert world.connected == 0
    assert world.run(*sets, until="encode"), "these stages do not need it"


def test_a_training_with_a_checkpoint_needs_its_start_no_more(world: World) -> None:
    config = world.config(f"sit.start_from={'e' * 64}")
    fingerprint = stage_fingerprints(config)["train-sit"]
    checkpoint = world.root / ".work" / "train-sit" / f"{fingerprint}"[:12] / "checkpoints" / "000000004" / "state.json"
    checkpoint.parent.mkdir(parents=True)
    with pytest.raises(ConfigError, match="is not at"):
        start_of(config, "train-sit")
    checkpoint.write_text("{}")
    assert start_of(config, "train-sit") is None


def test_what_a_registered_training_started_from_is_needed(tmp_path: Path) -> None:
    """With what that was made of, and started from itself; and without it nothing of them is."""
    tokenizer = made(tmp_path, "train-tokenizer")
    first = made(tmp_path, "train-sit", "sit.steps=7")
    config = config_at(tmp_path, "sit.steps=8", f"sit.start_from={first.fingerprint}")
    inputs = {"train-tokenizer": tokenizer}
    second = put(config, manifest(config, "train-sit", artifact_writer(config, "train-sit"), inputs))
    config = config_at(tmp_path, "sit.steps=9", f"sit.start_from={second.fingerprint}")
    third = put(config, manifest(config, "train-sit", artifact_writer(config, "train-sit"), {}))
    other, storage = made(tmp_path, "train-sit", "sit.steps=10"), open_storage(str(tmp_path))
    assert ancestors(storage, third) == [third, second, tokenizer, first]
    assert len(unneeded(storage, set())) == 5
    model = manifest(config, "register", artifact_writer(config, "register"), {"train-sit": third})
    put(config, model)
    assert unneeded(storage, set()) == [other]


@pytest.mark.parametrize("stage", ["train-sit", "train-tokenizer"])
def test_what_an_unfinished_training_started_from_is_needed(tmp_path: Path, stage: str) -> None:
    """And is remembered as it was."""
    start, storage, work = made(tmp_path, stage), open_storage(str(tmp_path)), work_path(stage, "f" * 64)
    assert remembered_start(storage, work, None) is None
    assert unneeded(storage, set()) == [start]
    assert remembered_start(storage, work, start) == start
    assert remembered_start(storage, work, None) == start
    assert unneeded(storage, set()) == []
    storage.delete_folder(work)
    assert unneeded(storage, set()) == [start]


@pytest.mark.parametrize(
    ("milestones", "said"),
    [("[10,500]", "milestones: 500 is beyond the last step, 400"), ("[20,20]", "must rise: 20, 20")],
)
def test_milestones_that_are_refused(tmp_path: Path, milestones: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        config_at(tmp_path, "sit.steps=400", f"sit.milestones={milestones}")
