"""The status of every stage at a root: cached, resumable, new or unresolved."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from pipeline.artifacts import Manifest, artifact_path, read_manifest, work_path
from pipeline.config import Config
from pipeline.errors import PipelineError
from pipeline.storage import Storage, open_storage
from pipeline.tracking import has_version, tracking_uri
from pipeline.workflow.fingerprints import imported_stages, stage_fingerprints
from pipeline.workflow.graph import STAGES, Stage
from pipeline.workflow.work_folder import changed_inputs

Status = Literal["cached", "resumable", "new", "unresolved"]


@dataclass(frozen=True)
class Node:
    """A stage's state at one root. `manifest` is set if it is cached."""

    stage: Stage
    fingerprint: str | None
    status: Status
    uri: str | None
    manifest: Manifest | None


def artifacts_of(nodes: list[Node]) -> dict[str, Manifest]:
    """The current artifacts, by stage."""
    return {node.stage.name: node.manifest for node in nodes if node.manifest is not None}


def survey(config: Config, stages: Sequence[Stage] = STAGES) -> list[Node]:
    """Every stage of a run, or of these, that exists with this config, with its status at the config's root.

    A stage comes after its inputs.
    An artifact is current if the contents of its inputs have not changed since; one that is imported is used as it is,
    whatever it was made from. For `register`, MLflow's registry must
    also have the version; if the registry does not answer, the manifest counts. What is to be imported and is not
    there is unresolved.
    """
    storage, registered = open_storage(config.root), _registry_query(config)
    nodes: dict[str, Node] = {}
    fingerprints = stage_fingerprints(config)
    for stage in stages:
        if not stage.exists(config):
            continue
        imported = stage.name in imported_stages(config)
        node = _node(storage, stage, fingerprints[stage.name], {} if imported else nodes, registered)
        nodes[stage.name] = replace(node, status="unresolved") if imported and node.manifest is None else node
    return list(nodes.values())


def _registry_query(config: Config) -> Callable[[str], bool]:
    """A function that tells whether the registry has a version of a fingerprint."""
    uri = tracking_uri(config)

    def registered(fingerprint: str) -> bool:
        try:
            return has_version(uri, config.register.name, fingerprint)
        except PipelineError:
            return True  # unknown: an artifact must not be deleted because of an outage

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
    status: Status = "cached" if manifest else _work_status(storage, stage, fingerprint, earlier)
    return Node(stage, fingerprint, status, storage.uri(artifact_path(stage.name, fingerprint)), manifest)


def _is_current(manifest: Manifest, earlier: dict[str, Node]) -> bool:
    """Whether the contents of its inputs, as far as they are among the earlier nodes, are unchanged."""
    for name, content in manifest.input_contents.items():
        current = earlier[name].manifest if name in earlier else None
        if current is not None and current.content != content:
            return False
    return True


def _work_status(storage: Storage, stage: Stage, fingerprint: str, earlier: dict[str, Node]) -> Status:
    """resumable if an earlier attempt left partial results that were made from the current inputs, else new."""
    work = work_path(stage.name, fingerprint)
    if not set(storage.folders(work)) - {"attempts"}:
        return "new"
    contents = {name: node.manifest.content for name in stage.inputs if (node := earlier.get(name)) and node.manifest}
    return "new" if changed_inputs(storage, work, contents) else "resumable"
