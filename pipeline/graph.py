"""Which stage feeds which, and what makes a stage's result: the catalogue, the fingerprints, the plan.

Light on purpose: a login shell plans without torch, ray or mlflow. A stage's body is imported when it runs.
"""

import hashlib
import importlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from pipeline.artifacts import Manifest, artifact_path, read_manifest, work_path
from pipeline.config import Config, flattened
from pipeline.errors import ConfigError
from pipeline.storage import Storage

Status = Literal["cached", "resumable", "new", "unresolved"]


@dataclass(frozen=True)
class Stage:
    """One pure step from (some config fields, the input artifacts) to one artifact."""

    name: str
    version: int  # raised when the code makes another result from the same config and inputs
    inputs: tuple[str, ...]
    fields: tuple[str, ...]  # sections or single fields that its result depends on
    without: tuple[str, ...] = ()  # fields of these sections that it does not depend on

    @property
    def body(self) -> Callable[..., Any]:
        """`run(context) -> Outcome` of `pipeline.stages.NAME`."""
        module = importlib.import_module(f"pipeline.stages.{self.name.replace('-', '_')}")
        body: Callable[..., Any] = module.run
        return body


_READING = ("data.image_size", "data.center_crop")  # how a stored image becomes the models' input
_ORDER = ("data.shuffle", "data.window_rows", "seed")

STAGES: tuple[Stage, ...] = (
    Stage(
        "prepare",
        1,
        (),
        ("data", "seed"),
        without=(*_READING, "data.horizontal_flip", "data.shuffle", "data.window_rows"),
    ),
    Stage(
        "train-tokenizer",
        1,
        ("prepare",),
        (*_READING, *_ORDER, "data.horizontal_flip", "tokenizer"),
        without=("tokenizer.checkpoint_every",),
    ),
    Stage(
        "evaluate-tokenizer",
        1,
        ("prepare", "train-tokenizer"),
        (*_READING, "evaluate"),
        without=("evaluate.class_accuracy",),
    ),
    Stage("analyze", 1, ("prepare", "train-tokenizer"), _READING),
    Stage("encode", 1, ("prepare", "train-tokenizer"), (*_READING, "encode")),
    Stage(
        "train-sit",
        1,
        ("train-tokenizer", "encode"),
        (*_ORDER, "data.classes", "sit"),
        without=("sit.checkpoint_every",),
    ),
    Stage("sample", 1, ("train-tokenizer", "encode", "train-sit"), ("sample",)),
    Stage("evaluate-samples", 1, ("prepare", "sample"), (*_READING, "evaluate"), without=("evaluate.images",)),
    Stage(
        "register",
        1,
        ("train-tokenizer", "encode", "train-sit", "evaluate-tokenizer", "evaluate-samples"),
        ("register",),
    ),
)
NAMES = tuple(stage.name for stage in STAGES)


def find_stage(name: str) -> Stage:
    for stage in STAGES:
        if stage.name == name:
            return stage
    raise ConfigError(f"there is no stage '{name}'", f"Use one of {', '.join(NAMES)}.")


def stages_until(name: str | None) -> tuple[Stage, ...]:
    """The stages of `run`, up to and with `name`."""
    if name is None:
        return STAGES
    return STAGES[: NAMES.index(find_stage(name).name) + 1]


def counted_config(stage: Stage, config: Config) -> dict[str, Any]:
    """The fields that the stage's result depends on, by dotted name."""
    counted = {
        name: value
        for name, value in flattened(config).items()
        if name in stage.fields or name.partition(".")[0] in stage.fields
    }
    return {name: value for name, value in sorted(counted.items()) if name not in stage.without}


def fingerprints(config: Config) -> dict[str, str | None]:
    """Each stage's fingerprint: sha256 over its name, version, counted config and inputs' fingerprints, in hex.

    None for every stage as long as `data.revision` is not known: what the source holds decides all of them.
    """
    known: dict[str, str | None] = {}
    for stage in STAGES:
        if config.data.revision is None:
            known[stage.name] = None
            continue
        content = {
            "stage": stage.name,
            "version": stage.version,
            "config": counted_config(stage, config),
            "inputs": {name: known[name] for name in stage.inputs},
        }
        known[stage.name] = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    return known


@dataclass(frozen=True)
class Node:
    """A stage as it stands at one root."""

    stage: Stage
    fingerprint: str | None
    status: Status
    uri: str | None
    manifest: Manifest | None


def survey(config: Config, storage: Storage, registered: Callable[[str], bool]) -> list[Node]:
    """Every stage with its status: what is committed and current, what can go on, what has to be made.

    An artifact is current while the inputs it was made from are the ones that stand there now. `registered` answers
    for `register`, whose result lies in MLflow's registry: has it a version of this fingerprint?
    """
    prints = fingerprints(config)
    nodes: dict[str, Node] = {}
    for stage in STAGES:
        fingerprint = prints[stage.name]
        if fingerprint is None:
            nodes[stage.name] = Node(stage, None, "unresolved", None, None)
            continue
        uri = storage.uri(artifact_path(stage.name, fingerprint))
        manifest = read_manifest(storage, stage.name, fingerprint)
        if manifest is not None and not _is_current(manifest, nodes):
            manifest = None
        if manifest is not None and stage.name == "register" and not registered(fingerprint):
            manifest = None
        status: Status = "cached" if manifest else _work_status(storage, stage.name, fingerprint)
        nodes[stage.name] = Node(stage, fingerprint, status, uri, manifest)
    return list(nodes.values())


def _is_current(manifest: Manifest, nodes: dict[str, Node]) -> bool:
    """Was it made from what its inputs are now?"""
    for name, content in manifest.input_contents.items():
        made = nodes[name].manifest
        if made is not None and made.content != content:
            return False
    return True


def _work_status(storage: Storage, stage: str, fingerprint: str) -> Status:
    """resumable when an earlier attempt left something to go on from."""
    return "resumable" if set(storage.folders(work_path(stage, fingerprint))) - {"attempts"} else "new"
