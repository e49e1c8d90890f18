"""`make cluster`: the cluster alone, kept until Ctrl-C, to look around in or to run the same tests against again.

With the word `prepare` only what takes long the first time: its programs and images."""

import signal
import sys
import tempfile
from pathlib import Path

from tests.cluster import images
from tests.cluster.own import running_cluster
from tests.cluster.programs import build, missing


def main() -> None:
    if reason := missing():
        sys.exit(f"error: no cluster can be run here: {reason}.")
    if sys.argv[1:] == ["prepare"]:
        with tempfile.TemporaryDirectory(prefix="dvae-cluster-", dir="/var/tmp") as folder:
            images.make(build(), Path(folder) / "images")
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    with running_cluster(Path(tempfile.mkdtemp(prefix="dvae-cluster-", dir="/var/tmp"))) as cluster:
        for name in ("KUBECONFIG", "PATH"):
            print(f"export {name}={cluster.environment[name]}")
        print(f"export DVAE_CLUSTER_HOST={cluster.host} DVAE_CLUSTER_IMAGE={cluster.image}")
        print(f"export DVAE_CLUSTER_NEXT_IMAGE={cluster.next_image}")
        print("ready; Ctrl-C ends it", flush=True)
        try:
            signal.pause()
        except KeyboardInterrupt:
            print("ending it")


if __name__ == "__main__":
    main()
