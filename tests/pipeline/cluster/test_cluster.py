"""A local Ray that does not come up, and waiting for a node for a stage: there, on its way, or never to come."""

import subprocess
import sys
import textwrap

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.ray]

# In processes of their own: Ray reads its environment when it is imported.
_LOCAL = """
    from pipeline import cluster
    from pipeline.config import ClusterConfig
    from pipeline.errors import PipelineError

    cluster.set_environment()
    cluster.connect(ClusterConfig())
    said = []
    cluster.await_pool(ClusterConfig(device="cpu"), "encode", said.append)
    cluster.await_pool(ClusterConfig(device="cuda"), "prepare", said.append)  # it needs none
    for given in ({"device": "cuda"}, {"pools": {"encode": {"pool-none": 0.001}}}):
        try:
            cluster.await_pool(ClusterConfig(**given), "encode", said.append)
        except PipelineError as error:
            print(error)
    print(said)
"""

_AUTOSCALED = """
    from pipeline import cluster
    from pipeline.config import ClusterConfig

    cluster.set_environment()
    cluster.connect(ClusterConfig())
    import ray
    from ray._raylet import GcsClient
    from ray.core.generated.autoscaler_pb2 import AutoscalingState

    report = AutoscalingState(autoscaler_state_version=1)  # as an autoscaler tells it every few seconds
    GcsClient(ray.get_runtime_context().gcs_address).report_autoscaling_state(report.SerializeToString())
    pools = ClusterConfig(device="cpu", pools={"encode": {"pool-batch": 0.001}})
    cluster.await_pool(pools, "encode", print)
"""

_STARVED = """
    from pipeline import cluster
    from pipeline.config import ClusterConfig
    from pipeline.errors import PipelineError

    cluster.set_environment()
    from ray._private import services

    def never(*_):
        raise RuntimeError("this node has not registered")

    services.get_node = never
    try:
        cluster.connect(ClusterConfig())
    except PipelineError as error:
        print(error)
"""


def said(program: str) -> str:
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], text=True, capture_output=True, timeout=200)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_local_ray_gets_no_nodes():
    told = said(_LOCAL)
    assert "encode requires a node with CPU 1, GPU 1; the cluster has none, and no autoscaler" in told
    assert "encode requires a node with CPU 1, pool-none 0.001; the cluster has none" in told
    assert told.endswith("[]\n")


def test_a_node_that_does_not_come_up_in_time():
    told = said(_STARVED)
    assert "Ray did not start: The current node timed out during startup." in told
    assert "Retry if the machine is overloaded" in told


def test_an_autoscaler_is_waited_for():
    """And it is said."""
    assert "requested one from the autoscaler" in said(_AUTOSCALED)
