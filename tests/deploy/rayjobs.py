"""The chart's RayJob template, and what is asked of it."""

from typing import Any

from rendering import Object, named, render, values_of

from deploy import rayjob
from deploy.rayjob import Wish
from pipeline.config import ClusterConfig


def chart(case: str = "trial", **values: Any) -> list[Object]:
    return render({**values_of(case), **values})


def template(case: str = "trial", **values: Any) -> Object:
    config_map = named(chart(case, **values), "ConfigMap", "-rayjob")
    return rayjob.parse_template(config_map["data"]["rayjob.yaml"], case)


def wish(*stages: str, attempts: int = 1, queue: str | None = None, **cluster: Any) -> Wish:
    return Wish(attempts, queue, stages, ClusterConfig(**cluster))
