"""Runs stages: cached artifacts are used, missing ones are produced under a lease and committed.

It runs in one driver process. Ray, torch and MLflow are loaded, in parallel, only if a stage has to run.
"""

import importlib
import math
import os
import re
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path

from rich.markup import escape

from pipeline import cluster, metrics, tracking
from pipeline.artifacts import (
    SHORT,
    ArtifactWriter,
    Lease,
    Manifest,
    Outcome,
    await_free,
    commit,
    git_sha,
    now,
    read_manifest,
    remove_artifact,
    work_path,
)
from pipeline.config import SENT, Config, preset_label
from pipeline.console import Display, duration
from pipeline.errors import ContractError, LeaseError, StorageError
from pipeline.storage import Storage, open_storage
from pipeline.weights import check_file, fetch_weights, weights_used
from pipeline.workflow.context import StageContext
from pipeline.workflow.fingerprints import (
    counted_config,
    imported_stages,
    is_counted,
    stage_fingerprints,
    uncounted_config,
)
from pipeline.workflow.graph import ALL_STAGES, NAMES, Stage, check_exists, find_stage, stages_until
from pipeline.workflow.imported import import_faults
from pipeline.workflow.imported_sit import sit_faults
from pipeline.workflow.longer import beginnings
from pipeline.workflow.preflight import check_images, check_start, warnings
from pipeline.workflow.resolve import check_inputs
from pipeline.workflow.starts import start_faults
from pipeline.workflow.status import Node, artifacts_of, survey
from pipeline.workflow.tolerances import check_tolerances
from pipeline.workflow.work_folder import begin_work

_DELIVERY_SECONDS = 60.0  # wait for MLflow at the end of a run
_TRAINERS = ("tokenizer/", "sit/")  # metrics that the trainers log themselves, by step
_ON_TRAIN_OR_DATA = {"train-tokenizer", "encode", "train-sit"}


class Runner:
    """The stages of one config at one root."""

    def __init__(self, config: Config, display: Display, name: str, debug: bool = False, patient: bool = False) -> None:
        """`patient`: wait for a stage that another driver is at, and use what it makes."""
        self.config, self.display, self.debug, self.patient = config, display, debug, patient
        self.storage = open_storage(config.root)
        self.name = name.removeprefix(SENT)  # of the preset, for messages
        self.prints = stage_fingerprints(config)

    @cached_property
    def key(self) -> str:
        """The pipeline run's key in MLflow, without what its filters cannot hold.

        It names the root, as others may do the same work elsewhere, and track it in the same MLflow.
        """
        name = re.sub('["`]', "-", preset_label(self.name))
        root = tracking.root_id(self.storage, begun=not set(self.storage.folders()).isdisjoint(NAMES))
        return "-".join(part for part in (name, self.fingerprint("register")[:SHORT], root) if part)

    def fingerprint(self, stage: str) -> str:
        fingerprint = self.prints[stage]
        assert fingerprint is not None
        return fingerprint

    def run(self, until: str | None) -> None:
        """Run every stage up to `until` that is not cached, in order."""
        check_exists(self.config, until)
        names = [stage.name for stage in stages_until(until) if stage.exists(self.config)]
        nodes = {node.stage.name: node for node in self._nodes()}
        check_tolerances([nodes[name].manifest for name in names], self.config)
        missing = [name for name in names if nodes[name].status != "cached"]
        if not missing:
            for name in names:
                self._say_cached(name, nodes[name].manifest)
            return
        self._check(missing, nodes["prepare"].manifest)
        with self._services(missing, {name: self.fingerprint(name) for name in names if name not in missing}):
            for name in names:
                node = nodes[name]
                if node.status == "cached":
                    self._say_cached(name, node.manifest)
                else:
                    manifest = self.produce(name)
                    if name == "prepare":
                        check_images(self.config, missing, manifest)
                    # The new artifact may differ from an earlier one: then its consumers are outdated.
                    nodes = {node.stage.name: node for node in survey(self.config, ALL_STAGES)}

    def run_stage(self, name: str) -> None:
        """Run one stage; ContractError if an input is missing."""
        nodes = {node.stage.name: node for node in self._nodes()}
        check_exists(self.config, name)
        stage = find_stage(name)
        inputs = stage.inputs_with(self.config)
        for needed in inputs:
            if nodes[needed].manifest is None:
                raise ContractError(
                    f"{name} needs {needed} ({self.fingerprint(needed)[:SHORT]}), which is missing",
                    f"Run `python -m pipeline stage {needed} {self.name}` first (with the same --set and --root).",
                )
        check_tolerances([nodes[needed].manifest for needed in (*inputs, name)], self.config)
        if nodes[name].status == "cached":
            self._say_cached(name, nodes[name].manifest)
            return
        self._check([name], nodes["prepare"].manifest)
        with self._services([name], {needed: self.fingerprint(needed) for needed in inputs}):
            self.produce(name)

    def rerun(self, name: str, broken: list[str]) -> Manifest:
        """Run a stage again for its `broken` files, and replace its artifact.

        The artifact is deleted only when the stage is ready to run. If the stage can use its whole files, they stay.
        """
        with self._services([name], {}):
            return self.produce(name, broken)

    def _nodes(self) -> list[Node]:
        check_inputs(self.config, self.name)
        _ = self.config.data.class_count  # raises ConfigError before anything is started
        nodes = survey(self.config, ALL_STAGES)
        made = artifacts_of(nodes)
        for fault in import_faults(self.config, made.get("train-tokenizer")):
            raise fault
        for fault in sit_faults(self.config, made.get("train-sit")):
            raise fault
        return nodes

    def _check(self, stages: list[str], prepare: Manifest | None) -> None:
        """Refuse before anything starts what these stages would refuse later, and say what is hardly meant."""
        check_start(self.config, stages)
        for fault in start_faults(self.config, stages):
            raise fault
        if prepare is not None:
            check_images(self.config, stages, prepare)
        restarts = [reason for _, reason in beginnings(self.config, stages).values() if reason is not None]
        for line in (*restarts, *warnings(self.config, stages)):
            self.display.say(f"[yellow]![/] {line}")

    def _say_cached(self, name: str, manifest: Manifest | None) -> None:
        assert manifest is not None
        self.display.end(name, "[green]=[/]", f"cached     {_facts(manifest)}")

    @contextmanager
    def _services(self, stages: list[str], cached: dict[str, str]) -> Iterator[None]:
        """Start Ray and the delivery to MLflow, open the pipeline's MLflow run, and close all at the end.

        `cached`: fingerprints of the stages that are taken from the cache, for the run's tags.
        """
        _check_root(self.storage)
        self._await_free(stages[0])
        _check_weights(self.config, stages)
        cluster.set_environment()
        imports = threading.Thread(target=_warm_up, args=(stages,), name="warm-up", daemon=True)
        imports.start()
        outbox = tracking.Outbox(self.storage, self.key)
        outbox.open(
            f"{self.name} {self.fingerprint('register')[:SHORT]}",
            self._tags("pipeline", self.fingerprint("register"), {}),
        )
        outbox.tags({f"dvae.cached.{stage}": fingerprint for stage, fingerprint in cached.items()})
        outbox.params({"preset": self.name, "root": self.config.root})
        courier = tracking.Courier(self.storage, self.config, self.display.say)
        status = "FAILED"
        with cluster.diverted_output(self.debug):
            try:
                cluster.connect(self.config.cluster, self.debug)
                imports.join()  # Ray's modules import each other in circles, in which two threads can fail
                if _ON_TRAIN_OR_DATA & set(stages):
                    cluster.start_coordinator()
                yield
                status = "FINISHED"
            except KeyboardInterrupt:
                status = "KILLED"
                raise
            finally:
                with suppress(StorageError):  # on a full disk, report the first error
                    outbox.close(status)
                cluster.disconnect()
                self._deliver_rest(courier, status)

    def _deliver_rest(self, courier: tracking.Courier, status: str) -> None:
        """Deliver the last events to MLflow, within a time limit."""
        if failure := courier.close(_DELIVERY_SECONDS if status == "FINISHED" else 5.0):
            self.display.say(
                f"[yellow]![/] events for MLflow are undelivered ({failure}). They are kept: the next run delivers "
                f"them, or run `python -m pipeline tracking sync {self.key}`."
            )

    def _tags(self, stage: str, fingerprint: str, inputs: dict[str, Manifest]) -> dict[str, str]:
        tags = {"dvae.stage": stage, "dvae.fingerprint": fingerprint, "dvae.git_sha": git_sha() or "unknown"}
        tags.update({tracking.input_tag(name): manifest.fingerprint for name, manifest in inputs.items()})
        return tags

    def produce(self, name: str, broken: list[str] | None = None) -> Manifest:
        """Run one stage and commit its artifact; with `broken` files, a committed one is taken back first."""
        stage, fingerprint = find_stage(name), self.fingerprint(name)
        if name in imported_stages(self.config):  # found when the run began; never train in its place
            raise ContractError(
                f"{name}/{fingerprint[:SHORT]}, which is used as it is, is not at {self.storage.root} any more",
                "Import it again, or give the root that has it.",
            )
        self.display.begin(name)
        lease = self._acquired(name)
        finished = False
        try:
            if broken is not None:
                self._take_back(stage, fingerprint, broken)
            manifest = self._committed(stage, fingerprint)
            if manifest is None:
                manifest = self._attempt(stage, fingerprint, lease)
                self.display.end(name, "[green]✓[/]", f"{duration(manifest.seconds):<10} {_facts(manifest)}")
            else:
                self._say_cached(name, manifest)
            finished = True
            return manifest
        finally:
            lease.release(finished)

    def _await_free(self, name: str) -> None:
        await_free(self.storage, name, self.fingerprint(name), self.display.say, self.patient)

    def _acquired(self, name: str) -> Lease:
        """The stage's lease. LeaseError if a living driver holds it, unless this one is patient."""
        while True:
            self._await_free(name)
            try:
                return Lease(self.storage, name, self.fingerprint(name))
            except LeaseError:  # another came between
                if not self.patient:
                    raise

    def _take_back(self, stage: Stage, fingerprint: str, broken: list[str]) -> None:
        """Delete the artifact, except for whole files that the stage can use; its manifest is deleted first."""
        manifest = read_manifest(self.storage, stage.name, fingerprint)
        if manifest is None or stage.salvage is None:
            remove_artifact(self.storage, stage.name, fingerprint)
            return
        stage.salvage(self.storage, manifest, broken, work_path(stage.name, fingerprint))
        for name in ("manifest.json", *broken):
            self.storage.delete(f"{manifest.name}/{name}")

    def _committed(self, stage: Stage, fingerprint: str) -> Manifest | None:
        """The current artifact, if another driver has committed it in the meantime; an outdated one is deleted."""
        (node,) = [node for node in survey(self.config, ALL_STAGES) if node.stage == stage]
        if node.manifest is None and read_manifest(self.storage, stage.name, fingerprint) is not None:
            remove_artifact(self.storage, stage.name, fingerprint)
        return node.manifest

    def _attempt(self, stage: Stage, fingerprint: str, lease: Lease) -> Manifest:
        cluster.await_pool(self.config.cluster, stage.name, self.display.say)
        inputs = self._inputs(stage)
        begin_work(self.storage, stage.name, work_path(stage.name, fingerprint), inputs, self.display.say)
        outbox = self._opened_outbox(stage, fingerprint, inputs)
        with _tracked(stage.name, outbox), _scratch(stage.name) as scratch:
            context = StageContext(
                config=self.config,
                stage=stage.name,
                fingerprint=fingerprint,
                storage=self.storage,
                inputs=inputs,
                writer=ArtifactWriter(self.storage, stage.name, fingerprint),
                work=work_path(stage.name, fingerprint),
                scratch=scratch,
                lease=lease,
                outbox=outbox,
                progress=self.display.progress,
                say=lambda text: self.display.say(f"  {escape(text)}"),
            )
            outcome: Outcome = stage.body(context)
            manifest = _manifest(context, outcome, lease.seconds())
            commit(self.storage, manifest, lease)
            measured = {name: value for name, value in manifest.metrics.items() if not name.startswith(_TRAINERS)}
            outbox.metrics({**measured, "seconds": manifest.seconds})
            return manifest

    def _inputs(self, stage: Stage) -> dict[str, Manifest]:
        inputs: dict[str, Manifest] = {}
        for needed in stage.inputs_with(self.config):
            manifest = read_manifest(self.storage, needed, self.fingerprint(needed))
            if manifest is None:
                raise ContractError(f"{stage.name} needs {needed}, which is missing", "Run again.")
            inputs[needed] = manifest
        return inputs

    def _opened_outbox(self, stage: Stage, fingerprint: str, inputs: dict[str, Manifest]) -> tracking.Outbox:
        """Open the stage's MLflow run, a child of the pipeline's, with its config and inputs."""
        outbox = tracking.Outbox(self.storage, f"{self.key}/{stage.name}")
        outbox.open(stage.name, self._tags(stage.name, fingerprint, inputs), parent=self.key)
        outbox.params(counted_config(stage, self.config) | uncounted_config(stage, self.config))
        for needed, manifest in inputs.items():
            outbox.dataset(needed, manifest.content[:36], self.storage.uri(manifest.name), stage.name)
        return outbox


@contextmanager
def _tracked(stage: str, outbox: tracking.Outbox) -> Iterator[None]:
    """Set the stage's gauge, and close its MLflow run with the stage's status."""
    status = "FAILED"
    cluster.publish(stage, {"stage_running": 1})
    try:
        yield
        status = "FINISHED"
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    finally:
        cluster.publish(stage, {"stage_running": 0})
        with suppress(StorageError):  # on a full disk, report the first error
            outbox.close(status)


@contextmanager
def _scratch(stage: str) -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix=f"dvae-{stage}-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _manifest(context: StageContext, outcome: Outcome, seconds: float) -> Manifest:
    stage = find_stage(context.stage)
    return Manifest(
        stage=context.stage,
        fingerprint=context.fingerprint,
        inputs={name: manifest.fingerprint for name, manifest in context.inputs.items()},
        input_contents={name: manifest.content for name, manifest in context.inputs.items()},
        config=counted_config(stage, context.config),
        uncounted=uncounted_config(stage, context.config),
        files=outcome.files,
        rows=outcome.rows,
        metrics={name: value for name, value in outcome.metrics.items() if math.isfinite(value)},  # JSON has no NaN
        details=outcome.details,
        seconds=round(seconds, 3),
        git_sha=git_sha(),
        image_digest=os.environ.get("DVAE_IMAGE_DIGEST"),
        created=now(),
    )


def _facts(manifest: Manifest) -> str:
    told = metrics.on_line(manifest.metrics, manifest.intervals)
    return "  ".join([f"[dim]{manifest.fingerprint[:SHORT]}[/]", *told])


def _check_root(storage: Storage) -> None:
    """StorageError if the root is not writable, before anything is started."""
    storage.write(".work/.writable", str(time.time()).encode())


def _check_weights(config: Config, stages: list[str]) -> None:
    """Download the pretrained weights that these stages use; verify their hashes, and that they are of the network."""
    for use in weights_used(config):
        if any(is_counted(find_stage(stage), f"{use.section}.{use.field}") for stage in stages):
            check_file(use, config, fetch_weights(use.file))


def _warm_up(stages: list[str]) -> None:
    """Import the modules of the coming stages while Ray starts: imports are half of the startup time."""
    modules = ["ray.train.torch"] if {"train-tokenizer", "train-sit"} & set(stages) else []
    modules += ["ray.data"] if "encode" in stages else []
    for module in modules:
        importlib.import_module(module)


def repair(runner: Runner, manifest: Manifest, broken: list[str], say: Callable[[str], None]) -> None:
    """Produce an artifact's broken files again with its own config, and report whether the result is identical."""
    result = runner.rerun(manifest.stage, broken)
    if result.content == manifest.content:
        say("restored: every file matches its recorded hash")
        return
    changed = [path for path, record in result.files.items() if manifest.files.get(path) != record]
    say(
        f"replaced: {len(changed)} files differ from the recorded ones ({', '.join(changed[:3])}), as is possible on "
        "other hardware; artifacts produced from the old files are outdated"
    )
