"""Uploads Ray's logs from a pod that is being deleted to `.logs/CLUSTER/POD/SESSION/FILE` below the root.

Called by the chart's preStop hooks, so the logs of temporary clusters are kept. Nothing here deletes old logs: a
lifecycle rule of the bucket does.
"""

import os
import platform
from contextlib import suppress
from pathlib import Path

from deploy.errors import ConnectError
from pipeline.storage import Storage

FOLDER = ".logs"


def keep_logs(storage: Storage) -> str:
    """Upload the logs of all Ray sessions of this machine; returns the folder's URI. ConnectError without a session.

    A restarted container has several sessions: the cause of the restart is logged in an earlier one. A file that grows
    during the upload may be cut at its earlier length.
    """
    ray = Path(os.environ.get("RAY_TMPDIR") or "/tmp", "ray")  # noqa: S108  # Ray's default
    sessions = sorted(logs.parent for logs in ray.glob("session_*/logs") if not logs.parent.is_symlink())
    if not sessions:
        raise ConnectError(f"no Ray logs found below {ray}", "Run this in a pod of a Ray cluster.")
    folder = f"{FOLDER}/{os.environ.get('RAY_CLUSTER_NAME', 'ray')}/{platform.node()}"
    for session in sessions:
        logs = session / "logs"
        for path in sorted(logs.rglob("*")):
            if path.is_file() and not path.is_symlink() and path.stat().st_size:
                with suppress(FileNotFoundError):  # deleted by log rotation
                    storage.upload(path, f"{folder}/{session.name}/{path.relative_to(logs).as_posix()}")
    return storage.uri(folder)
