"""The driver: what is cached is used, what is missing is made, by one driver at a time. Stages are fakes."""

import threading
import time
from pathlib import Path
from typing import Any

import pytest

from pipeline import cluster
from pipeline.artifacts.lease import Lease
from pipeline.artifacts.manifest import all_manifests
from pipeline.artifacts.writer import Outcome
from pipeline.errors import ConfigError, ContractError, DataError, LeaseError, PipelineError
from pipeline.storage.uri import open_storage
from pipeline.workflow import runner, status
from pipeline.workflow.context import StageContext
from pipeline.workflow.fingerprints import stage_fingerprints
from pipeline.workflow.graph import Stage
from pipeline.workflow.lineage import unneeded
from pipeline.workflow.runner import Runner
from tests.pipeline.workflow.world import World, folder_of_images
from tests.support.stages import PLAIN


@pytest.mark.parametrize(
    ("sets", "said"),
    [
        (("sample.count=3",), "needs 4 real and generated images; there are 3"),
        (("evaluate.reference_images=2",), "needs 4 real and generated images; there are 2 and 500"),
        (("evaluate.images=1",), "needs 2 validation images; there are 1"),
        (("data.format=folder", "data.uri={one}"), "class_accuracy needs two classes, and the source has one"),
    ],
)
def test_what_a_late_stage_would_refuse_is_refused_before_the_first(
    world: World, tmp_path: Path, sets: tuple[str, ...], said: str
) -> None:
    one = folder_of_images(tmp_path / "images", classes=("cat",)).as_uri()
    with pytest.raises(PipelineError, match=said):
        world.run(*(pair.format(one=one) for pair in sets))
    assert world.connected == 0
    assert world.run(*(pair.format(one=one) for pair in sets), until="prepare"), "this stage does not need it"


@pytest.mark.parametrize(
    ("prepared", "said"),
    [
        ({"splits": {"train": [{"rows": 90}], "validation": [{"rows": 1}]}}, "needs 2 validation images; there are 1"),
        ({"splits": {"train": [{"rows": 3}], "validation": [{"rows": 9}]}}, "generated images; there are 3 and 500"),
        ({"class_counts": {"train": [9, 0], "validation": [0, 1]}}, "needs two classes, and the training images have"),
    ],
)
def test_what_the_images_do_not_allow_is_refused_before_a_training(
    world: World, prepared: dict[str, Any], said: str
) -> None:
    world.prepared |= prepared
    with pytest.raises(PipelineError, match=said):
        world.run()
    assert world.made == ["prepare"]
    with pytest.raises(PipelineError, match=said):  # now it is known before anything starts
        world.run()
    assert (world.made, world.connected) == ([], 1)


def test_one_class_trains_without_a_classifier(world: World, tmp_path: Path) -> None:
    one = folder_of_images(tmp_path / "images", classes=("cat",)).as_uri()
    sets = ["data.format=folder", f"data.uri={one}", "evaluate.class_accuracy=false"]
    assert world.run(*sets, "register.gate.metric=reconstruction/psnr") == PLAIN


def test_settings_that_are_hardly_meant_are_said_in_a_line(world: World) -> None:
    world.run("sit.ema_decay=0.9999", "sit.steps=300", "sample.count=7")
    (average,) = [line for line in world.said.getvalue().splitlines() if "ema_decay" in line]
    assert "! sit.ema_decay 0.9999 over 300 steps: the average still holds 97% of the first" in average
    assert "0.96" in average
    assert "! sample.count 7 is less than the number of classes, 10: 3 classes have no sample" in world.said.getvalue()
    world.said.truncate(0)
    world.run("sit.ema_decay=0.9999", "sit.steps=300", "sample.count=7")
    assert "!" not in world.said.getvalue(), "there is nothing left to do"


def test_a_longer_training_says_before_anything_starts_that_it_begins_anew(world: World) -> None:
    world.run("sit.steps=20", until="train-sit")
    world.said.truncate(0)
    said_before = list[str]()
    world.on_connect = lambda: said_before.append(world.said.getvalue())
    world.run("sit.steps=40", until="train-sit")
    (said,) = said_before
    assert "! train-sit begins at the first step, and not after train-sit/" in said
    assert "so 20 steps of 40 have other learning rates than 20 of 20" in said


def test_what_is_cached_is_used(world: World) -> None:
    assert world.run(until="encode") == PLAIN[: PLAIN.index("encode") + 1]
    assert world.run() == PLAIN[PLAIN.index("encode") + 1 :]
    assert world.connected == 2
    assert world.run() == []
    assert world.connected == 2, "Ray was started for nothing"
    assert set(world.statuses().values()) == {"cached"}
    assert len(all_manifests(open_storage(str(world.root)))) == len(PLAIN)
    assert not any((world.root / ".work").glob("*/*/lease.json"))


def test_the_status_of_register_is_asked_of_the_registry(world: World) -> None:
    world.run()
    world.registered.clear()
    assert world.statuses()["register"] == "new"
    assert world.run() == ["register"]


def test_a_registry_that_does_not_answer_removes_nothing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor is the model's lineage free to be collected because MLflow is away."""
    world.run()

    def away(*_: str) -> bool:
        raise PipelineError("MLflow does not answer")

    monkeypatch.setattr(status, "has_version", away)
    assert world.statuses()["register"] == "cached"
    assert world.run() == []
    world.driver().run_stage("register")
    kept = world.manifest("register")
    assert kept is not None
    assert [left.stage for left in unneeded(open_storage(str(world.root)), set())] == ["analyze"]


def test_a_metric_without_a_value_is_left_out(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    body = world.body

    def of(stage: Stage) -> Any:
        def run(context: StageContext) -> Outcome:
            made = body(stage)(context)
            return Outcome(made.files, made.rows, {**made.metrics, "odd": float("nan")}, made.details)

        return run

    monkeypatch.setattr(Stage, "body", property(of))
    world.run(until="prepare")
    manifest = world.manifest("prepare")
    assert manifest is not None
    assert "odd" not in manifest.metrics
    assert "sit/loss" in manifest.metrics


def test_without_a_source_nothing_starts(world: World) -> None:
    with pytest.raises(ConfigError, match=r"has no data source.*data\.uri"):
        world.run("data.format=folder")
    assert world.connected == 0


def test_a_second_driver_is_refused_with_the_owners_name(world: World) -> None:
    fingerprint = stage_fingerprints(world.config())["prepare"]
    assert fingerprint is not None
    lease = Lease(open_storage(str(world.root)), "prepare", fingerprint)
    with pytest.raises(LeaseError, match=rf"prepare is already running: {lease.holder.owner} holds"):
        world.run(until="prepare")
    assert world.made == []
    lease.check()
    lease.release(finished=False)
    assert world.run(until="prepare") == ["prepare"]


def test_a_patient_driver_uses_what_the_other_makes(world: World) -> None:
    """It waits for a lease that is held when it begins, and for one that is taken in front of it on the way."""
    storage, prints = open_storage(str(world.root)), stage_fingerprints(world.config())
    held = {name: Lease(storage, name, str(prints[name])) for name in ("prepare", "train-tokenizer")}
    with pytest.raises(LeaseError):
        world.run(until="train-tokenizer")

    def other() -> None:
        for name, lease in held.items():
            lease.release(finished=False)
            world.driver().run_stage(name)

    threading.Timer(1.5, other).start()
    patient = world.driver()
    patient.patient = True
    patient.run("train-tokenizer")
    assert world.made == ["prepare", "train-tokenizer"]
    assert "prepare: waiting for " in world.said.getvalue()


def test_what_another_driver_has_committed_meanwhile_is_used(world: World) -> None:
    """It comes between this driver's first look and its turn at the stage."""

    def other() -> None:
        world.on_connect = lambda: None
        world.driver().run("prepare")

    world.on_connect = other
    assert world.run(until="train-tokenizer") == ["prepare", "train-tokenizer"]


def test_who_was_taken_over_commits_nothing(world: World) -> None:
    def taken(context: StageContext) -> None:
        theirs = context.lease.holder.model_copy(update={"owner": "ann@far process 7", "nonce": "n"})
        context.storage.write(context.lease.path, theirs.model_dump_json().encode())

    world.before["prepare"] = taken
    with pytest.raises(LeaseError, match="taken over by ann@far process 7"):
        world.run(until="prepare")
    assert world.manifest("prepare") is None
    assert list(world.root.glob(".work/prepare/*/lease.json")), "another's lease was taken away"


@pytest.mark.parametrize(
    ("error", "status"), [(DataError("nothing is readable"), "FAILED"), (KeyboardInterrupt(), "KILLED")]
)
def test_a_stage_that_fails_leaves_nothing_to_be_taken_for_whole(
    world: World, error: BaseException, status: str
) -> None:
    def fails(context: StageContext) -> None:
        context.writer.add_bytes(b"half", "left-over")
        assert context.scratch.is_dir()
        raise error

    world.before["train-tokenizer"] = fails
    with pytest.raises(type(error)):
        world.run(until="encode")
    assert world.made == ["prepare"]
    assert world.manifest("prepare") is not None
    assert world.manifest("train-tokenizer") is None
    assert not list(world.root.glob(".work/*/*/lease.json"))
    closed = {key: [e["status"] for e in world.events(key) if e["kind"] == "close"] for key in ("prepare", "tokenizer")}
    assert closed == {"prepare": ["FINISHED"], "tokenizer": [status]}
    del world.before["train-tokenizer"]
    assert world.run(until="encode") == [
        "train-tokenizer", "evaluate-tokenizer", "analyze", "encode",
    ]  # fmt: skip
    assert not list(world.root.glob("train-tokenizer/*/left-over"))
    manifest = world.manifest("train-tokenizer")
    assert manifest is not None
    assert list(manifest.files) == ["file"]


def test_one_stage_by_itself(world: World) -> None:
    with pytest.raises(ContractError, match=r"encode needs prepare .* is missing.*stage prepare quickstart"):
        world.driver().run_stage("encode")
    assert world.connected == 0
    world.run(until="train-tokenizer")
    world.made = []
    world.driver().run_stage("encode")
    world.driver().run_stage("encode")
    assert world.made == ["encode"]


def test_what_a_run_tells_mlflow(world: World) -> None:
    world.run(until="prepare")
    world.run(until="train-tokenizer")
    opened = [event for event in world.events("train-tokenizer") if event["kind"] == "open"]
    parent = world.driver().key
    assert [event["parent"] for event in opened] == [parent]
    assert opened[0]["tags"]["dvae.input.prepare"] == stage_fingerprints(world.config())["prepare"]
    (dataset,) = [event for event in world.events("train-tokenizer") if event["kind"] == "dataset"]
    prepare = world.manifest("prepare")
    assert prepare is not None
    assert (dataset["name"], prepare.content.startswith(dataset["digest"])) == ("prepare", True)
    (told,) = [event for event in world.events("train-tokenizer") if event["kind"] == "metrics"]
    assert told["values"].keys() == {"samples/count", "seconds"}, "what a trainer told over its steps is not told again"
    tags = [event["values"] for event in world.events(parent) if event["kind"] == "tags"]
    assert tags == [{}, {"dvae.cached.prepare": prepare.fingerprint}]


def test_the_same_work_at_two_roots_is_two_runs(world: World, tmp_path: Path) -> None:
    """Two people may have one MLflow. A root that was moved goes on with its runs."""
    world.run(until="prepare")
    here = world.driver().key
    assert world.driver(root=tmp_path / "another").key != here
    world.root.rename(tmp_path / "moved")
    assert world.driver(root=tmp_path / "moved").key == here
    assert world.driver("sit.steps=7", root=tmp_path / "moved").key != here


def test_a_root_from_before_keeps_the_keys_of_its_runs(world: World) -> None:
    """Its trainings go on in MLflow where they were."""
    world.run(until="prepare")
    (world.root / ".work" / "tracking-id").unlink()
    fingerprint = world.driver().fingerprint("register")
    assert [world.driver().key for _ in range(2)] == [f"quickstart-{fingerprint[:12]}"] * 2


def test_a_preset_of_any_name_has_a_key_that_mlflow_can_look_for(world: World) -> None:
    assert Runner(world.config(), world.driver().display, 'anna\'s "best" `run`.yaml').key.startswith(
        "anna's -best- -run--"
    )


def test_two_threads_never_import_rays_modules(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """They import each other in circles: after an installation, one thread's import failed beside the other's."""
    order = []

    def warm_up(stages: list[str]) -> None:
        time.sleep(0.2)
        order.append("imported")

    world.on_connect = lambda: order.append("connected")
    monkeypatch.setattr(runner, "_warm_up", warm_up)
    monkeypatch.setattr(cluster, "start_coordinator", lambda: order.append("coordinator"))
    world.run(until="train-tokenizer")
    assert order == ["connected", "imported", "coordinator"]
