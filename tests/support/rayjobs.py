"""The chart's RayJob template, and what is asked of it."""

from typing import Any

from deploy import rayjob
from deploy.rayjob import JobOptions
from pipeline.config.schema import ClusterConfig
from tests.support.chart import Object, named, render, values_of


def chart(case: str = "trial", **values: Any) -> list[Object]:
    return render({**values_of(case), **values})


def template(case: str = "trial", **values: Any) -> Object:
    config_map = named(chart(case, **values), "ConfigMap", "-rayjob")
    return rayjob.parse_template(config_map["data"]["rayjob.yaml"], case)


def job_options(*stages: str, attempts: int = 1, queue: str | None = None, **cluster: Any) -> JobOptions:
    return JobOptions(attempts, queue, stages, ClusterConfig(**cluster))
