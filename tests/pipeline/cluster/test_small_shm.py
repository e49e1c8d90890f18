"""A /dev/shm of 64 MB, as a plain container has: a local Ray keeps its objects elsewhere."""

import os
import subprocess
import sys
import textwrap

import pytest

from tests.support import PROJECT

pytestmark = [pytest.mark.slow, pytest.mark.ray]

_PROGRAM = """
    import os
    from pipeline import cluster
    from pipeline.config import ClusterConfig

    cluster.set_environment()
    cluster.connect(ClusterConfig())
    import numpy as np
    import ray

    size = os.statvfs("/dev/shm").f_blocks * os.statvfs("/dev/shm").f_frsize
    there = ray.put(np.ones(200 * 2**20, np.uint8))  # three times as much
    total = sum(ray.get([ray.remote(lambda array: int(array.sum())).remote(there) for _ in range(2)]))
    print(size, total)
    cluster.disconnect()
"""


def test_objects_that_do_not_fit_there_are_kept():
    command = [sys.executable, "-c", textwrap.dedent(_PROGRAM)]
    inside = [
        "unshare",
        "--mount",
        "sh",
        "-c",
        'mount -t tmpfs -o size=64m tmpfs /dev/shm && exec "$@"',
        "sh",
        *command,
    ]
    if os.geteuid() != 0:
        pytest.skip("only root may mount")
    done = subprocess.run(inside, cwd=PROJECT, text=True, capture_output=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f"{64 * 2**20} {2 * 200 * 2**20}"
