"""Artifacts, the outputs of stages: manifest, files, commit, and the lease on a stage.

An artifact is a folder `STAGE/FINGERPRINT`. Its manifest is written last, with a conditional write, and commits it.
"""

from pipeline.artifacts.files import Hashed, broken_files, checked_copy, hash_file, local_copies, read_checked
from pipeline.artifacts.lease import Lease, await_free, check_idle, check_lease
from pipeline.artifacts.manifest import (
    SHORT,
    FileRecord,
    Manifest,
    all_manifests,
    artifact_path,
    git_sha,
    manifests_of,
    now,
    read_manifest,
    remove_artifact,
    work_path,
)
from pipeline.artifacts.writer import ArtifactWriter, Outcome, commit
