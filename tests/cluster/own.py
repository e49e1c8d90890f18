"""A cluster of this machine's own, from nothing to pods: node, images, DNS, policies."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.cluster import addons, images, programs
from tests.cluster.network import ADDRESS
from tests.cluster.node import Node


@dataclass(frozen=True)
class Cluster:
    """A Kubernetes to try things on."""

    environment: dict[str, str]  # KUBECONFIG, and kubectl and helm on the PATH
    host: str  # this machine's address, as pods have it
    image: str
    next_image: str | None  # another one to upgrade to, where there is one
    node: Node | None  # None: it is not ours, and its programs are not ours to stop

    def kubectl(self, *words: str, given: str | None = None) -> str:
        """What it says. AssertionError, with what it complains of, when it fails."""
        done = subprocess.run(["kubectl", *words], input=given, env=self.environment, capture_output=True, text=True)
        assert done.returncode == 0, f"kubectl {' '.join(words)}: {done.stdout[-2000:]}{done.stderr[-2000:]}"
        return done.stdout


@contextmanager
def running_cluster(folder: Path) -> Iterator[Cluster]:
    """It ends with the block, and nothing stays but logs in `folder` and images for the next time."""
    built = programs.build()
    node = Node(built, folder)
    node.begin()
    try:
        node.start()
        names = images.make(built, folder / "images")
        images.load(node, names)
        node.join()
        path = f"{built}{os.pathsep}{os.environ['PATH']}"
        environment = {**os.environ, "PATH": path, "KUBECONFIG": str(node.kubeconfig)}
        cluster = Cluster(environment, ADDRESS, images.APP, images.NEXT, node)
        addons.start_dns(cluster.kubectl)
        addons.enforce_policies(cluster.kubectl)
        yield cluster
    finally:
        node.stop()
