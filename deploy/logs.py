"""Keeping what Ray has logged on a machine that goes away: a copy at the root, below `.logs/CLUSTER/POD`.

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
    """Copy this machine's logs of its newest Ray session to the root; the folder's URI. ConnectError without a session.

    A file that grows meanwhile is kept as far as it was.
    """
    session = Path(os.environ.get("RAY_TMPDIR") or "/tmp", "ray", "session_latest", "logs")  # noqa: S108  # Ray's own
    if not session.is_dir():
        raise ConnectError(f"no Ray has logged anything at {session}", "This is for the pods of a Ray cluster.")
    folder = f"{FOLDER}/{os.environ.get('RAY_CLUSTER_NAME', 'ray')}/{platform.node()}"
    for path in sorted(session.rglob("*")):
        if path.is_file() and not path.is_symlink() and path.stat().st_size:
            with suppress(FileNotFoundError):  # rotated away meanwhile
                storage.upload(path, f"{folder}/{path.relative_to(session).as_posix()}")
    return storage.uri(folder)
