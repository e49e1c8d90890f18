"""Which finished training a longer one goes on from, and what is said where it goes on from none."""

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from pipeline.artifacts import FileRecord, Manifest
from pipeline.config import Config, load_config
from pipeline.workflow import make_plan, print_plan, shorter_training, survey
from tests.support.artifacts import artifact_writer, manifest, put

KNOWN = ["data.revision=abc", "data.classes=10", "sit.decay=constant", "sit.warmup=0"]


class Root:
    """A root with finished trainings, without their weights."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        config = self.config()
        self.inputs = {
            stage: put(config, manifest(config, stage, artifact_writer(config, stage), {}))
            for stage in ("train-tokenizer", "encode")
        }

    def config(self, *sets: str) -> Config:
        return load_config("quickstart", [*KNOWN, *sets], str(self.folder))

    def trained(self, *sets: str, state: bool = True) -> Manifest:
        config = self.config(*sets)
        writer = artifact_writer(config, "train-sit")
        if state:
            writer.add_stored("state/000000001/state.json", FileRecord(bytes=1, sha256="0" * 64))
        return put(config, manifest(config, "train-sit", writer, self.inputs))

    def planned(self, *sets: str) -> dict[str, Any]:
        """The plan, and what is printed of it as `text`."""
        config, text = self.config(*sets), io.StringIO()
        plan = make_plan(config, survey(config))
        print_plan(Console(file=text, width=200), config, plan)
        return {**plan, "text": text.getvalue()}

    def found(self, *sets: str) -> Manifest | None:
        return shorter_training(self.config(*sets), "train-sit")[0]

    def reason(self, *sets: str) -> str:
        found, reason = shorter_training(self.config(*sets), "train-sit")
        assert found is None
        assert reason is not None
        return reason


@pytest.fixture
def root(tmp_path: Path) -> Root:
    return Root(tmp_path)


def test_the_longest_that_is_this_training(root: Root) -> None:
    assert shorter_training(root.config("sit.steps=100"), "train-sit") == (None, None)
    short, longest = root.trained("sit.steps=40"), root.trained("sit.steps=60")
    root.trained("sit.steps=100"), root.trained("sit.steps=120")
    root.trained("sit.steps=80", "sit.learning_rate=2e-4")
    assert root.found("sit.steps=100") == longest
    assert root.found("sit.steps=50") == short
    assert shorter_training(root.config("sit.steps=40"), "train-sit") == (None, None)
    root.trained("sit.steps=70", state=False)
    assert root.found("sit.steps=100") == longest, "what cannot be gone on from hides no other"


def test_where_and_how_fast_do_not_matter(root: Root) -> None:
    made = root.trained("sit.steps=40", "sit.keep_state=true")
    assert root.found("sit.steps=80", "sit.log_every=7", "sit.checkpoint_every=3", "cluster.accumulate=2") == made


def test_a_cosine_begins_at_the_first_step(root: Root) -> None:
    made = root.trained("sit.steps=40", "sit.decay=cosine")
    assert root.reason("sit.steps=80", "sit.decay=cosine") == (
        f"train-sit begins at the first step, and not after {made.name}: sit.decay cosine ends at sit.steps, so 40 "
        "steps of 80 have other learning rates than 40 of 40"
    )


def test_without_a_state(root: Root) -> None:
    made = root.trained("sit.steps=40", state=False)
    assert root.reason("sit.steps=80").endswith(f"after {made.name}: it kept no state (sit.keep_state)")


def test_a_warm_up_of_the_same_steps(root: Root) -> None:
    made = root.trained("sit.steps=40", "sit.warmup=0.25")
    assert root.found("sit.steps=80", "sit.warmup=0.125") == made
    assert root.reason("sit.steps=80", "sit.warmup=0.25").endswith(
        "sit.warmup 0.25 of 80 steps is 20, and there it was 10"
    )


def test_milestones_that_are_there(root: Root) -> None:
    made = root.trained("sit.steps=40", "sit.milestones=[10]")
    for more in ("[10,60]", "[10,40,80]", "[]", "[50]"):
        assert root.found("sit.steps=80", f"sit.milestones={more}") == made
    assert root.reason("sit.steps=80", "sit.milestones=[10,20,60]").endswith("it has no milestone 20")


def test_what_was_trained_on_other_latents_is_not_this_training(root: Root) -> None:
    made = root.trained("sit.steps=40")
    put(root.config(), made.model_copy(update={"input_contents": {**made.input_contents, "encode": "0" * 64}}))
    assert shorter_training(root.config("sit.steps=80"), "train-sit") == (None, None)


# --- what `plan` says before anything is started ---


def stage_of(plan: dict[str, Any], stage: str = "train-sit") -> dict[str, Any]:
    return next(one for one in plan["stages"] if one["name"] == stage)


def test_plan_says_where_a_longer_training_goes_on_and_counts_the_rest(root: Root) -> None:
    alone = stage_of(root.planned("sit.steps=80"))
    assert alone["goes_on_from"] is None
    made = root.trained("sit.steps=60")
    plan = root.planned("sit.steps=80")
    longer = stage_of(plan)
    assert longer["goes_on_from"] == {"artifact": made.name, "step": 60}
    assert longer["device_hours"] == alone["device_hours"] == alone["device_hours_left"]
    assert longer["device_hours_left"] == pytest.approx(alone["device_hours"] / 4)
    assert longer["resumes_at"] is None
    assert longer["status"] == "new"
    assert f"train-sit: goes on from {made.name} at step 60\n" in plan["text"]
    cached = stage_of(root.planned("sit.steps=60"))
    assert cached["goes_on_from"] is None
    assert cached["device_hours"] > cached["device_hours_left"] == 0


def test_plan_says_why_a_longer_training_begins_at_the_first_step(root: Root) -> None:
    sets = ("sit.steps=80", "sit.decay=cosine")
    alone = root.planned(*sets)
    root.trained("sit.steps=40", "sit.decay=cosine")
    plan = root.planned(*sets)
    assert [line for line in plan["warnings"] if line not in alone["warnings"]] == [root.reason(*sets)]
    assert f"! {root.reason(*sets)}\n" in plan["text"]
    assert stage_of(plan)["device_hours"] == stage_of(alone)["device_hours"]
    assert root.planned("sit.steps=40", "sit.decay=cosine")["warnings"] == [], "that one is cached"


def test_plan_says_that_more_steps_of_a_tokenizer_are_a_new_training(root: Root) -> None:
    config = root.config()
    rows = {"data/train_rows": 90.0, "data/validation_rows": 10.0}
    unmeasured = manifest(config, "prepare", artifact_writer(config, "prepare"), {})
    prepare = put(config, unmeasured.model_copy(update={"metrics": rows}))
    writer = artifact_writer(config, "train-tokenizer")
    made = put(config, manifest(config, "train-tokenizer", writer, {"prepare": prepare}))
    (said,) = [line for line in root.planned("tokenizer.steps=1000")["warnings"] if "first step" in line]
    begins = f"train-tokenizer begins at the first step, and not after {made.name}: "
    assert said.startswith(f"{begins}tokenizer.decay cosine ends at tokenizer.steps, so 500 steps of 1000")


def test_a_training_with_a_checkpoint_resumes_that(root: Root) -> None:
    """Not the shorter training; and what is left is counted. If an input has changed since, it will be discarded."""
    root.trained("sit.steps=60")
    longer = stage_of(root.planned("sit.steps=80"))
    config = root.config("sit.steps=80")
    work = root.folder / ".work" / artifact_writer(config, "train-sit").folder
    for step, files in ((70, ["state.json"]), (65, ["state.json"]), (75, [])):  # the last one was cut off
        (work / "checkpoints" / f"{step:09d}").mkdir(parents=True)
        for file in files:
            (work / "checkpoints" / f"{step:09d}" / file).write_text("{}")
    plan = root.planned("sit.steps=80")
    resumed = stage_of(plan)
    assert (resumed["resumes_at"], resumed["goes_on_from"]) == (70, None)
    assert resumed["device_hours_left"] == pytest.approx(resumed["device_hours"] / 8)
    assert "train-sit: resumes at step 70 of 80\n" in plan["text"]
    (work / "inputs.json").write_text("{}")
    assert stage_of(root.planned("sit.steps=80")) == longer


def test_nothing_is_said_while_the_latents_are_still_to_be_made(root: Root) -> None:
    root.trained("sit.steps=60")
    (root.folder / artifact_writer(root.config(), "encode").folder / "manifest.json").unlink()
    assert stage_of(root.planned("sit.steps=80"))["goes_on_from"] is None
    assert not [line for line in root.planned("sit.steps=80", "sit.decay=cosine")["warnings"] if "first step" in line]


def test_a_state_that_nothing_can_go_on_from(root: Root) -> None:
    kept, cosine = "sit.keep_state=true", "sit.decay=cosine"
    (said,) = [line for line in root.planned(kept, cosine)["warnings"] if "keep_state" in line]
    assert "sit.decay cosine" in said
    for sets in ((kept,), (cosine,)):
        assert "keep_state" not in root.planned(*sets)["text"]
