"""Which changes of data and settings make a stage anew, and which cost nothing. Stages are fakes."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from pipeline.artifacts.writer import Outcome
from pipeline.errors import DataError
from pipeline.workflow.context import StageContext
from pipeline.workflow.fingerprints import stage_fingerprints
from pipeline.workflow.graph import Stage
from tests.pipeline.workflow.world import World, folder_of_images


def test_a_changed_generator_keeps_tokenizer_and_latents(world: World) -> None:
    world.run()
    assert world.run("sit.steps=7") == ["train-sit", "sample", "evaluate-samples", "register"]
    assert world.run("sample.guidance=3") == ["sample", "evaluate-samples", "register"]
    assert world.run("register.name=other") == ["register"]
    assert world.run() == []


@pytest.mark.parametrize("override", ["cluster.workers=2", "cluster.loader_threads=2", "tracking.experiment=other"])
def test_where_and_how_fast_changes_nothing(world: World, override: str) -> None:
    world.run()
    assert world.run(override) == []


def test_another_root_changes_nothing(world: World, tmp_path: Path) -> None:
    world.run()
    shutil.copytree(world.root, tmp_path / "moved")
    assert world.run(root=tmp_path / "moved") == []


def test_a_new_image_makes_new_data(world: World, tmp_path: Path) -> None:
    source = folder_of_images(tmp_path / "images")
    sets = ["data.format=folder", f"data.uri={source.as_uri()}"]
    world.run(*sets, until="prepare")
    before = world.config(*sets)
    assert world.run(*sets, until="prepare") == []
    shutil.copy(source / "cat" / "0.png", source / "cat" / "new.png")
    after = world.config(*sets)
    assert before.data.revision != after.data.revision
    assert stage_fingerprints(before)["prepare"] != stage_fingerprints(after)["prepare"]
    assert world.run(*sets, until="prepare") == ["prepare"]
    (source / "cat" / "new.png").unlink()
    assert world.run(*sets, until="prepare") == [], "the old data are still there"


def test_a_moved_source_is_the_same_data(world: World, tmp_path: Path) -> None:
    source = folder_of_images(tmp_path / "images")
    sets = ["data.format=folder"]
    world.run(*sets, f"data.uri={source.as_uri()}", until="encode")
    source.rename(tmp_path / "elsewhere")
    assert world.run(*sets, f"data.uri={tmp_path / 'elsewhere'}", until="encode") == []
    assert world.run(*sets, f"data.uri={tmp_path / 'elsewhere'}", "encode.batch_size=3", until="encode") == []


def test_a_replaced_image_of_the_same_size_makes_new_data(world: World, tmp_path: Path) -> None:
    source = folder_of_images(tmp_path / "images")
    sets = ["data.format=folder", f"data.uri={source.as_uri()}"]
    world.run(*sets, until="prepare")
    image = source / "cat" / "1.png"
    image.write_bytes(image.read_bytes()[::-1])
    assert world.run(*sets, until="prepare") == ["prepare"]


def test_a_wider_tolerance_costs_nothing_and_a_narrower_one_refuses(world: World) -> None:
    """Whatever is cached, a run under a config ends alike."""
    body = world.body

    def of(stage: Stage) -> Any:
        def run(context: StageContext) -> Outcome:
            made = body(stage)(context)
            found = {"data/quarantined": 3.0, "latents/quarantined": 0.0}
            return Outcome(made.files, 197, {**made.metrics, **found}, {**made.details, "canary_loss": 0.7})

        return run

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Stage, "body", property(of))
        world.run("data.quarantine_budget=0.02", until="encode")
    made = world.manifest("prepare")
    assert made is not None
    assert made.uncounted["data.quarantine_budget"] == 0.02
    assert "data.quarantine_budget" not in made.config
    assert world.run("data.quarantine_budget=0.5", until="encode") == []
    refused = r"prepare/\w+ was made with 3 of 200 images unreadable.*data.quarantine_budget 0.01.*nothing is made anew"
    with pytest.raises(DataError, match=refused):
        world.run(until="encode")
    with pytest.raises(DataError, match=refused):
        world.driver().run_stage("train-tokenizer")
    canary = ("data.quarantine_budget=0.02", "encode.canary_margin=0.5")
    with pytest.raises(DataError, match=r"decode with 0.7 dB less than .* encode.canary_margin 0.5"):
        world.run(*canary)
    assert world.run(*canary, until="analyze") == [], "these do not need the latents"
    assert world.connected == 1
