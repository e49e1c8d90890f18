"""A cluster for the tests here: of this machine's own, or the one of KUBECONFIG where DVAE_CLUSTER_HOST says so."""

import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.installation import DASHBOARD, ROOT, Beside, Installation, forwarded, installed, servers_beside
from tests.cluster.own import Cluster, running_cluster
from tests.cluster.programs import missing
from tests.cluster.work import TRAINING, done, submission
from tests.support.ceph import act_as
from tests.support.stages import PLAIN
from tests.support.trained import weights


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.cluster)
            item.add_marker(pytest.mark.timeout(1800))


@pytest.fixture(scope="session")
def folder() -> Path:
    """For logs, which stay there; not pytest's, whose long names do not fit into a socket's."""
    return Path(tempfile.mkdtemp(prefix="dvae-cluster-", dir="/var/tmp"))


@pytest.fixture(scope="session")
def cluster(folder: Path) -> Iterator[Cluster]:
    """With DVAE_CLUSTER_HOST, this machine's address as pods reach it, the cluster of KUBECONFIG, which then has the
    image DVAE_CLUSTER_IMAGE, and DVAE_CLUSTER_NEXT_IMAGE of the same code. Else one is started here."""
    if host := os.environ.get("DVAE_CLUSTER_HOST"):
        yield Cluster(
            dict(os.environ), host, os.environ["DVAE_CLUSTER_IMAGE"], os.environ.get("DVAE_CLUSTER_NEXT_IMAGE"), None
        )
        return
    if reason := missing():
        pytest.skip(f"no cluster can be run here: {reason}")
    # What was started is ended then, too: containers would outlive this process.
    signal.signal(signal.SIGTERM, lambda *_: pytest.exit("ended from outside", returncode=143))
    with running_cluster(folder) as own:
        yield own


@pytest.fixture(scope="session")
def beside(cluster: Cluster, folder: Path) -> Iterator[Beside]:
    with servers_beside(cluster.host, folder) as there:
        yield there


@pytest.fixture(scope="session")
def place(cluster: Cluster, beside: Beside, folder: Path) -> Iterator[Installation]:
    """The chart, installed and ready; this process is somebody outside who reaches it by the document's forwards."""
    with installed(cluster, beside, folder) as there, forwarded(there) as client:
        there.environment.update(client)
        with pytest.MonkeyPatch.context() as patch:
            act_as(patch, {**beside.keys, **client})
            yield there


@pytest.fixture(scope="session")
def quickstart(place: Installation) -> dict[str, str]:
    """What Ray's own command has said of each stage of the quickstart."""
    told = {}
    for stage in PLAIN:
        asked = f"ray job submit --address {DASHBOARD} -- python -m pipeline stage {stage} quickstart"
        told[stage] = place.bash(asked)
    return told


@pytest.fixture(scope="session")
def undisturbed(place: Installation) -> dict[str, str]:
    """The files of a tokenizer that was trained in peace."""
    root = f"{ROOT}-undisturbed"
    for stage in ("prepare", "train-tokenizer"):
        done(place, submission(root, "stage", stage, "quickstart", sets=TRAINING))
    return weights(root)
