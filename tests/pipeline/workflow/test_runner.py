"""The driver: what is cached is used, what is stale or missing is made, by one driver at a time. Stages are fakes."""

import io
import json
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from rich.console import Console

from pipeline import cluster, tracking
from pipeline.artifacts.lease import Lease
from pipeline.artifacts.manifest import Manifest, all_manifests, read_manifest, remove_artifact
from pipeline.artifacts.writer import Outcome
from pipeline.config.loading import load_config
from pipeline.config.schema import Config
from pipeline.console import Display
from pipeline.errors import ConfigError, ContractError, DataError, LeaseError, PipelineError
from pipeline.storage import Storage
from pipeline.storage.uri import open_storage
from pipeline.tracking.outbox import OUTBOX
from pipeline.workflow import runner, status
from pipeline.workflow.context import StageContext
from pipeline.workflow.fingerprints import stage_fingerprints
from pipeline.workflow.graph import NAMES, Stage
from pipeline.workflow.lineage import unneeded
from pipeline.workflow.resolve import resolved
from pipeline.workflow.runner import Runner
from pipeline.workflow.status import survey

AFTER_TOKENIZER = [name for name in NAMES if name not in ("prepare", "train-tokenizer")]


class World:
    """One root, with fakes for the stages, Ray, MLflow and its registry; it remembers what was made."""

    def __init__(self, tmp_path: Path) -> None:
        self.root = tmp_path / "runs"
        self.made: list[str] = []
        self.connected = 0
        self.registered: set[str] = set()
        self.content = {name: f"made by {name}" for name in NAMES}
        self.before: dict[str, Callable[[StageContext], None]] = {}  # what else a stage does, first
        self.on_connect: Callable[[], None] = lambda: None
        self.said = io.StringIO()
        self.prepared: dict[str, Any] = {
            "splits": {"train": [{"path": "t", "rows": 90}], "validation": [{"path": "v", "rows": 10}]},
            "class_counts": {"train": [9] * 10, "validation": [1] * 10},
        }

    def body(self, stage: Stage) -> Callable[[StageContext], Outcome]:
        def run(context: StageContext) -> Outcome:
            assert set(context.inputs) == set(stage.inputs)
            self.before.get(stage.name, lambda _: None)(context)
            self.made.append(stage.name)
            context.writer.add_bytes(self.content[stage.name].encode(), "file")
            if stage.name == "register":
                self.registered.add(context.fingerprint)
            details = self.prepared if stage.name == "prepare" else {}
            return context.writer.outcome(1, {"sit/loss": 1.0, "samples/count": 3.0}, **details)

        return run

    def connect(self, *_: object) -> None:
        self.connected += 1
        self.on_connect()

    def config(self, *sets: str, root: Path | None = None) -> Config:
        return resolved(load_config("quickstart", list(sets), str(root or self.root)), fresh=True)

    def driver(self, *sets: str, root: Path | None = None) -> Runner:
        return Runner(self.config(*sets, root=root), Display(Console(file=self.said, width=400)), "quickstart")

    def run(self, *sets: str, until: str | None = None, root: Path | None = None) -> list[str]:
        """Run; the names of the stages that were made."""
        self.made = []
        self.driver(*sets, root=root).run(until)
        return self.made

    def manifest(self, stage: str, *sets: str) -> Manifest | None:
        fingerprint = stage_fingerprints(self.config(*sets))[stage]
        assert fingerprint is not None
        return read_manifest(open_storage(str(self.root)), stage, fingerprint)

    def statuses(self, *sets: str) -> dict[str, str]:
        return {node.stage.name: node.status for node in survey(self.config(*sets))}

    def events(self, key: str) -> list[dict[str, Any]]:
        """What waits for MLflow, of the runs whose key ends so."""
        files = sorted((self.root / OUTBOX).rglob("*.jsonl"), key=lambda path: path.name)
        lines = [line for path in files if path.parent.name.endswith(key) for line in path.read_text().splitlines()]
        return [json.loads(line) for line in lines]


class NoCourier:
    """Delivers nothing."""

    def __init__(self, *_: object) -> None: ...

    def close(self, timeout: float) -> str | None:
        return None


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    world = World(tmp_path)
    for name in ("DVAE_SITE", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Stage, "body", property(world.body))
    monkeypatch.setattr(cluster, "connect", world.connect)
    monkeypatch.setattr(cluster, "disconnect", lambda: None)
    monkeypatch.setattr(cluster, "await_pool", lambda *_: None)
    monkeypatch.setattr(cluster, "set_environment", lambda: None)
    monkeypatch.setattr(cluster, "diverted_output", lambda debug: nullcontext())
    monkeypatch.setattr(tracking, "Courier", NoCourier)
    monkeypatch.setattr(runner, "_warm_up", lambda stages: None)
    monkeypatch.setattr(status, "has_version", lambda uri, name, fingerprint: fingerprint in world.registered)
    return world


def folder_of_images(folder: Path, count: int = 3, classes: tuple[str, ...] = ("cat", "dog")) -> Path:
    for label in classes:
        (folder / label).mkdir(parents=True)
        for i in range(count):
            Image.new("RGB", (8, 8), (i, 0, 0)).save(folder / label / f"{i}.png")
    return folder


@pytest.mark.parametrize(
    ("sets", "said"),
    [
        (("sample.count=3",), "needs 4 real and generated images; there are 50000 and 3"),
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
    assert world.run(*sets, "register.gate.metric=reconstruction/psnr") == list(NAMES)


def test_settings_that_are_hardly_meant_are_said_in_a_line(world: World) -> None:
    world.run("sit.ema_decay=0.9999", "sit.steps=300", "sample.count=7")
    (average,) = [line for line in world.said.getvalue().splitlines() if "ema_decay" in line]
    assert "! sit.ema_decay 0.9999 over 300 steps: the average still holds 97% of the first" in average
    assert "0.96" in average
    assert "! sample.count 7 is less than the number of classes, 10: 3 classes have no sample" in world.said.getvalue()
    world.said.truncate(0)
    world.run("sit.ema_decay=0.9999", "sit.steps=300", "sample.count=7")
    assert "!" not in world.said.getvalue(), "there is nothing left to do"


def test_what_is_cached_is_used(world: World) -> None:
    assert world.run(until="encode") == list(NAMES[: NAMES.index("encode") + 1])
    assert world.run() == list(NAMES[NAMES.index("encode") + 1 :])
    assert world.connected == 2
    assert world.run() == []
    assert world.connected == 2, "Ray was started for nothing"
    assert set(world.statuses().values()) == {"cached"}
    assert len(all_manifests(open_storage(str(world.root)))) == len(NAMES)
    assert not any((world.root / ".work").glob("*/*/lease.json"))


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
