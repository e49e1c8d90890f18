"""Numbers for Prometheus: each Ray node exports what the processes on it set, as ray_dvae_NAME{stage}.

They are for dashboards and alerts of a cluster; the record of a run is MLflow's. A local Ray exports nothing.
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

_AGAIN_SECONDS = 5.0
_values: dict[tuple[str, str], float] = {}  # (gauge, stage)
_started = threading.Lock()


def publish(stage: str, values: dict[str, float]) -> None:
    """Set the gauges of these names, to stand until they are set anew; other names are left out."""
    if is_local():
        return
    for name in GAUGES.keys() & values.keys():
        _values[name, stage] = values[name]
        _gauge(name).set(values[name], {"stage": stage})
    if _started.acquire(blocking=False):
        threading.Thread(target=_repeat, name="gauges", daemon=True).start()


def _repeat() -> None:
    """Ray's exporter forgets a gauge that was not set for some 20 s: between two lines of a log, or in a long stage."""
    while True:
        time.sleep(_AGAIN_SECONDS)
        for (name, stage), value in list(_values.items()):
            _gauge(name).set(value, {"stage": stage})


@cache
def _gauge(name: str) -> Any:
    from ray.util.metrics import Gauge

    return Gauge(f"dvae_{name}", GAUGES[name], tag_keys=("stage",))
