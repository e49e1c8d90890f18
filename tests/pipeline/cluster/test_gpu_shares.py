"""Tasks that share a GPU: Ray runs as many at a time as the shares say. The GPU is one in Ray's books alone."""

import subprocess
import sys
import textwrap

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.ray]


def test_two_halves_run_side_by_side_and_whole_ones_do_not():
    program = """
        import time
        from pipeline import cluster
        from pipeline.config import ClusterConfig

        cluster.set_environment()
        import ray
        ray.init(address="local", num_cpus=4, num_gpus=1, include_dashboard=False)
        config = ClusterConfig(device="cuda", gpu_shares={"encode": 0.5})

        def work(_):
            begin = time.monotonic()
            time.sleep(1.5)
            return begin, time.monotonic(), ray.get_gpu_ids()

        for stage in ("encode", "sample"):
            cluster.await_pool(config, stage, print)
            spans = [result for _, result in cluster.run_tasks(work, range(4), config, stage, gpu=True)]
            assert all(ids == [0] for _, _, ids in spans), spans
            print(stage, max(sum(other[0] <= one[0] < other[1] for other in spans) for one in spans))
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], text=True, capture_output=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[-3:] == ["encode 2", "sample 1", ""]
