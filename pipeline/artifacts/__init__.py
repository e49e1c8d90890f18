"""What a stage leaves behind, and how it comes to be: manifest, files, commit, and the lease on the work.

An artifact is a folder `STAGE/FINGERPRINT` whose manifest is written last, if absent: it exists when the manifest does.
"""

from pipeline.artifacts.files import broken_files, hash_file, local_copies, read_checked
from pipeline.artifacts.lease import Lease, await_free, check_idle, check_lease
from pipeline.artifacts.manifest import (
    SHORT,
    FileRecord,
    Manifest,
    all_manifests,
    artifact_path,
    git_sha,
    now,
    read_manifest,
    remove_artifact,
    work_path,
)
from pipeline.artifacts.writer import ArtifactWriter, Outcome, commit
