"""Keeping what Ray has logged on a machine that goes away: a copy at the root, `.logs/CLUSTER/POD/SESSION/FILE`.

The chart's preStop hooks call it, so a short-lived cluster ends after its logs are there. Old ones are the bucket's
lifecycle rule's to remove.
"""

import os
import platform
from contextlib import suppress
from pathlib import Path

from deploy.errors import ConnectError
from pipeline.storage import Storage

FOLDER = ".logs"


def keep_logs(storage: Storage) -> str:
    """Copy this machine's logs of all its Ray sessions to the root; the folder's URI. ConnectError without a session.

    A container that was restarted has several sessions, and the reason is in the one before. A file that grows
    meanwhile is kept as far as it was.
    """
    ray = Path(os.environ.get("RAY_TMPDIR") or "/tmp", "ray")  # noqa: S108  # Ray's own
    sessions = sorted(logs.parent for logs in ray.glob("session_*/logs") if not logs.parent.is_symlink())
    if not sessions:
        raise ConnectError(f"no Ray has logged anything below {ray}", "This is for the pods of a Ray cluster.")
    folder = f"{FOLDER}/{os.environ.get('RAY_CLUSTER_NAME', 'ray')}/{platform.node()}"
    for session in sessions:
        logs = session / "logs"
        for path in sorted(logs.rglob("*")):
            if path.is_file() and not path.is_symlink() and path.stat().st_size:
                with suppress(FileNotFoundError):  # rotated away meanwhile
                    storage.upload(path, f"{folder}/{session.name}/{path.relative_to(logs).as_posix()}")
    return storage.uri(folder)
