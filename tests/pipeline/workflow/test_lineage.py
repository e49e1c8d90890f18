"""From an artifact back to the config that it was made under."""

from pathlib import Path

import pytest

from pipeline.config import load_config
from pipeline.errors import ContractError
from pipeline.storage import open_storage
from pipeline.workflow import lineage
from tests.support.artifacts import prepared, put, trainer_inputs
from tests.support.trainers import small_config


def test_the_config_of_an_artifact_is_its_own_and_the_place_is_here(tmp_path: Path) -> None:
    config = small_config(tmp_path, "data.validation_share=0.3")
    made = put(config, prepared(config))
    place = load_config("quickstart", ["cluster.workers=2"], config.root)
    found = lineage.config_of(open_storage(config.root), made, place)
    assert found.data == config.data
    assert found.cluster == place.cluster


def test_what_does_not_count_is_as_it_was_too(tmp_path: Path) -> None:
    """A repair reads the source where it was, and writes as many lines of history; unless it is told otherwise."""
    config = small_config(tmp_path, "data.quarantine_budget=0.2", "tokenizer.log_every=3", "encode.batch_size=7")
    inputs = trainer_inputs(config, "train-sit", tmp_path / "scratch")
    for made in (prepared(config), *inputs.values()):
        put(config, made)
    latents = inputs["encode"]
    assert latents.uncounted["encode.batch_size"] == 7
    storage, given = open_storage(config.root), ["data.uri=/moved", "data.image_size=64", "encode.batch_size=9"]
    place = load_config("quickstart", given, config.root)
    found = lineage.config_of(storage, latents, place)
    assert (found.data, found.tokenizer, found.encode) == (config.data, config.tokenizer, config.encode)
    names = [override.partition("=")[0] for override in given]
    told = lineage.config_of(storage, latents, place, names)
    assert (told.data.uri, told.encode.batch_size, told.data.image_size) == ("/moved", 9, config.data.image_size)


def test_a_field_that_came_later_was_done_as_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The manifest does not have it, and what this place has set meanwhile is not what was done then."""
    config = small_config(tmp_path)
    made = prepared(config)
    older = {name: value for name, value in made.config.items() if name != "data.shard_rows"}
    made = put(config, made.model_copy(update={"config": older}))
    place = load_config("quickstart", ["data.shard_rows=99"], config.root)
    storage = open_storage(config.root)
    with pytest.raises(ContractError, match="by other code"):
        lineage.config_of(storage, made, place)
    monkeypatch.setattr(lineage, "values_as_before", lambda: {"data.shard_rows": config.data.shard_rows})
    assert lineage.config_of(storage, made, place).data == config.data
