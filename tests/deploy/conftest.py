"""What the tests of `deploy` share: a Kubernetes API server, one for all of them."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from api_server import ApiServer, binaries, running_api_server


@pytest.fixture(scope="session")
def api_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    """With KubeRay's CRDs. Tests keep apart by namespaces of their own; who stops it starts it again."""
    programs = binaries()
    if programs is None:
        pytest.skip("no etcd and kube-apiserver: `.ci/kubernetes-binaries build/kubernetes` builds them (needs Go)")
    if "DVAE_TEST_CRDS" not in os.environ:
        pytest.skip("DVAE_TEST_CRDS is not set: it names the folder with KubeRay's CRDs")
    with running_api_server(programs, Path(os.environ["DVAE_TEST_CRDS"]), tmp_path_factory.mktemp("kubernetes")) as up:
        yield up
