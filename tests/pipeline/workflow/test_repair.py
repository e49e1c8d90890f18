"""An artifact that was repaired, or came out otherwise, decides what follows. Stages are fakes."""

import pytest

from pipeline.artifacts.manifest import Manifest, remove_artifact
from pipeline.console import Display
from pipeline.errors import PipelineError
from pipeline.storage import Storage
from pipeline.storage.uri import open_storage
from pipeline.workflow import runner
from pipeline.workflow.context import StageContext
from pipeline.workflow.fingerprints import stage_fingerprints
from pipeline.workflow.graph import Stage
from tests.pipeline.workflow.world import World
from tests.support.stages import PLAIN

AFTER_TOKENIZER = [name for name in PLAIN if name not in ("prepare", "train-tokenizer", "reference")]


def test_what_was_made_from_another_input_is_made_again(world: World) -> None:
    world.run()
    old = world.manifest("train-tokenizer")
    assert old is not None
    remove_artifact(open_storage(str(world.root)), "train-tokenizer", old.fingerprint)
    assert world.statuses()["encode"] == "cached", "an input that is gone makes nothing stale"
    world.content["train-tokenizer"] = "other weights"
    assert world.driver().rerun("train-tokenizer", ["file"]).content != old.content
    assert world.statuses()["encode"] == "new"
    for name in AFTER_TOKENIZER:
        world.content[name] += ", from other weights"
    assert world.run() == AFTER_TOKENIZER
    assert world.run() == []
    encode = world.manifest("encode")
    assert encode is not None
    assert encode.input_contents["train-tokenizer"] != old.content


@pytest.mark.parametrize("repaired", ["the same", "another"])
def test_what_was_begun_with_another_input_is_not_continued(
    world: World, monkeypatch: pytest.MonkeyPatch, repaired: str
) -> None:
    """As the checkpoints of a training whose latents were repaired meanwhile, on other hardware."""
    found, said = list[bool](), list[str]()

    def interrupted(context: StageContext) -> None:
        path = f"{context.work}/checkpoints/1/state.json"
        found.append(context.storage.exists(path))
        context.storage.write(path, b"1")
        context.storage.write(f"{context.work}/progress.json", b"1")
        assert context.storage.exists(f"{context.work}/lease.json")
        if len(found) == 1:
            raise PipelineError("interrupted")

    monkeypatch.setattr(Display, "say", lambda self, text: said.append(text))
    world.before["train-sit"] = interrupted
    with pytest.raises(PipelineError, match="interrupted"):
        world.run()
    assert world.statuses()["train-sit"] == "resumable"
    if repaired == "another":
        world.content["encode"] = "other latents"
    world.driver().rerun("encode", ["file"])
    resumes = repaired == "the same"
    assert world.statuses()["train-sit"] == ("resumable" if resumes else "new")
    world.run()
    assert found == [False, resumes]
    line = "train-sit: what an earlier attempt left is discarded, as encode has changed since"
    assert (line in said) is not resumes


def test_an_input_that_comes_out_the_same_makes_nothing_stale(world: World) -> None:
    world.run()
    remove_artifact(open_storage(str(world.root)), "sample", stage_fingerprints(world.config())["sample"] or "")
    assert world.run() == ["sample"]


def test_a_repair_that_cannot_begin_takes_nothing_away(world: World) -> None:
    world.run()
    before = world.manifest("encode")
    assert before is not None

    def refuse() -> None:
        raise PipelineError("Ray did not start")

    world.on_connect = refuse
    with pytest.raises(PipelineError, match="did not start"):
        runner.repair(world.driver(), before, ["file"], lambda text: None)
    assert world.manifest("encode") == before


def test_repair_says_whether_it_came_out_the_same(world: World) -> None:
    world.run(until="train-tokenizer")
    manifest, said = world.manifest("train-tokenizer"), list[str]()
    assert manifest is not None
    runner.repair(world.driver(), manifest, ["file"], said.append)
    world.content["train-tokenizer"] = "other weights"
    runner.repair(world.driver(), manifest, ["file"], said.append)
    assert said[0].startswith("restored")
    assert said[1].startswith("replaced: 1 files differ from the recorded ones (file)")


def test_a_stage_that_can_use_whole_files_keeps_them(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.run(until="encode")
    before = world.manifest("encode")
    assert before is not None
    folder, salvaged, found = world.root / before.name, list[tuple[str, ...]](), list[bool]()
    (folder / "broken").write_text("half")

    def salvage(storage: Storage, manifest: Manifest, broken: list[str], work: str) -> None:
        assert storage.exists(f"{manifest.name}/manifest.json"), "a repair that dies here begins anew"
        salvaged.append((*broken, work))

    def look(context: StageContext) -> None:
        found.extend((folder / name).exists() for name in ("manifest.json", "broken", "file"))

    monkeypatch.setattr(Stage, "salvage", property(lambda stage: salvage))
    world.before["encode"] = look
    runner.repair(world.driver(), before, ["broken"], lambda text: None)
    assert salvaged == [("broken", f".work/{before.name}")]
    assert found == [False, False, True]
