"""Ray: connecting to a cluster or starting a local one, running tasks, pools of nodes, and Prometheus gauges.

Ray is imported on use, not with this package. All uses of Ray's private API are in `ray_private.py`.
"""

from pipeline.cluster.gauges import publish
from pipeline.cluster.joining import connect, disconnect, diverted_output, is_local, set_environment
from pipeline.cluster.pools import (
    await_pool,
    device_of,
    encoder_pool,
    free_placement_groups,
    gpu_share,
    pool_resources,
    tasks_per_gpu,
    threads_per_worker,
)
from pipeline.cluster.ray_private import Head, head_address, is_alive, start_coordinator, torch_trainer
from pipeline.cluster.tasks import run_tasks, unwrapped_errors
