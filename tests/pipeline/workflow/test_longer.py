"""Which finished training a longer one goes on from, and what is said where it goes on from none."""

from pathlib import Path

import pytest

from pipeline.artifacts import FileRecord, Manifest
from pipeline.config import Config, load_config
from pipeline.workflow import shorter_training
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
