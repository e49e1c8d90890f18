"""From an artifact back to the config that it was made under."""

from pathlib import Path

import pytest

from pipeline.config import load_config
from pipeline.errors import ContractError
from pipeline.storage import open_storage
from pipeline.workflow import lineage
from tests.support.artifacts import prepared, put
from tests.support.trainers import small_config


def test_the_config_of_an_artifact_is_its_own_and_the_place_is_here(tmp_path: Path) -> None:
    config = small_config(tmp_path, "data.validation_share=0.3")
    made = put(config, prepared(config))
    place = load_config("quickstart", ["cluster.workers=2"], config.root)
    found = lineage.config_of(open_storage(config.root), made, place)
    assert found.data == config.data
    assert found.cluster == place.cluster


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
