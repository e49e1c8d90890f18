"""Ray: joining a cluster or starting a local one, a stage's tasks on it, its pools, and gauges for Prometheus.

Ray is imported when it is used, not with this package. Its private names are all in `ray_private.py`.
"""

from pipeline.cluster.gauges import publish
from pipeline.cluster.joining import connect, disconnect, diverted_output, is_local, set_environment
from pipeline.cluster.pools import (
    await_pool,
    device_of,
    free_placement_groups,
    pool_resources,
    threads_per_worker,
)
from pipeline.cluster.ray_private import Head, head_address, is_alive, torch_trainer
from pipeline.cluster.tasks import run_tasks, surfaced
