"""Which stages are cached at a root, which can go on, which have to be made."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from pipeline.artifacts import Manifest, artifact_path, read_manifest, work_path
from pipeline.config import Config
from pipeline.errors import PipelineError
from pipeline.storage import Storage, open_storage
from pipeline.tracking import has_version, tracking_uri
from pipeline.workflow.fingerprints import stage_fingerprints
from pipeline.workflow.graph import STAGES, Stage

Status = Literal["cached", "resumable", "new", "unresolved"]


@dataclass(frozen=True)
class Node:
    """A stage as it stands at one root."""

    stage: Stage
    fingerprint: str | None
    status: Status
    uri: str | None
    manifest: Manifest | None


def artifacts_of(nodes: list[Node]) -> dict[str, Manifest]:
    """The artifacts that are there and current, by stage."""
    return {node.stage.name: node.manifest for node in nodes if node.manifest is not None}


def survey(config: Config) -> list[Node]:
    """Every stage with its status at the config's root: committed and current, to be gone on with, to be made.

    An artifact is current while the inputs it was made from are the ones that stand there now. The result of `register`
    lies in MLflow's registry, which is asked too; where it does not answer, the manifest counts.
    """
    storage, registered = open_storage(config.root), _asking_registry(config)
    nodes: dict[str, Node] = {}
    for stage, fingerprint in zip(STAGES, stage_fingerprints(config).values(), strict=True):
        nodes[stage.name] = _node(storage, stage, fingerprint, nodes, registered)
    return list(nodes.values())


def _asking_registry(config: Config) -> Callable[[str], bool]:
    """Has the registry a version of a fingerprint?"""
    uri = tracking_uri(config)

    def registered(fingerprint: str) -> bool:
        try:
            return has_version(uri, config.register.name, fingerprint)
        except PipelineError:
            return True  # not known to be gone: nothing may be removed or made anew for that

    return registered


def _node(
    storage: Storage, stage: Stage, fingerprint: str | None, earlier: dict[str, Node], registered: Callable[[str], bool]
) -> Node:
    if fingerprint is None:
        return Node(stage, None, "unresolved", None, None)
    manifest = read_manifest(storage, stage.name, fingerprint)
    if manifest is not None and not _is_current(manifest, earlier):
        manifest = None
    if manifest is not None and stage.name == "register" and not registered(fingerprint):
        manifest = None
    status: Status = "cached" if manifest else _work_status(storage, stage.name, fingerprint)
    return Node(stage, fingerprint, status, storage.uri(artifact_path(stage.name, fingerprint)), manifest)


def _is_current(manifest: Manifest, earlier: dict[str, Node]) -> bool:
    """Was it made from what its inputs are now?"""
    for name, content in manifest.input_contents.items():
        made = earlier[name].manifest
        if made is not None and made.content != content:
            return False
    return True


def _work_status(storage: Storage, stage: str, fingerprint: str) -> Status:
    """resumable when an earlier attempt left something to go on from."""
    return "resumable" if set(storage.folders(work_path(stage, fingerprint))) - {"attempts"} else "new"
