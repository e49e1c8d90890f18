"""Gauges for Prometheus: each Ray node exports those of its processes as ray_dvae_NAME{stage}.

They are for dashboards and alerts of a cluster; runs are recorded in MLflow. A local Ray exports nothing.
"""

import threading
import time
from functools import cache
from typing import Any

from pipeline.cluster.joining import is_local
from pipeline.metrics import METRICS

GAUGES = {
    "stage_running": "1 while a driver works on the stage",
    "step": "training step",
    **{metric.key.rpartition("/")[2]: metric.meaning for metric in METRICS if metric.gauge},
}

_REPEAT_SECONDS = 5.0
_values: dict[tuple[str, str], float] = {}  # (gauge, stage)
_started = threading.Lock()


def publish(stage: str, values: dict[str, float]) -> None:
    """Set the gauges among `values`; they keep their values until set again. Names that are not gauges are ignored."""
    if is_local():
        return
    for name in GAUGES.keys() & values.keys():
        _values[name, stage] = values[name]
        _gauge(name).set(values[name], {"stage": stage})
    if _started.acquire(blocking=False):
        threading.Thread(target=_repeat, name="gauges", daemon=True).start()


def _repeat() -> None:
    """Set all gauges again, as Ray's exporter drops a gauge that was not set for about 20 s."""
    while True:
        time.sleep(_REPEAT_SECONDS)
        for (name, stage), value in list(_values.items()):
            _gauge(name).set(value, {"stage": stage})


@cache
def _gauge(name: str) -> Any:
    from ray.util.metrics import Gauge

    return Gauge(f"dvae_{name}", GAUGES[name], tag_keys=("stage",))
