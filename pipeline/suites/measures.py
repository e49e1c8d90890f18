"""Which metrics of images the runs of a suite measure: a column of another one would be blank after hours of work."""

import difflib
from collections.abc import Sequence

from pipeline.config import Config, floor_keys, judging_metrics
from pipeline.errors import ConfigError
from pipeline.metrics import find_metric
from pipeline.suites.schema import Column, Suite
from pipeline.workflow import stages_until

_MEASURED_BY = {"samples": "evaluate-samples", "floor": "floor", "reconstruction": "evaluate-tokenizer"}


def recorded_key(column: Column, scale: str, config: Config) -> str | None:
    """The key under which a run of this config records the column's number; None if it has none at this scale."""
    key, level = column.key(scale), config.sit.level if column.at_level else 0
    return f"{key}_level{level}" if key is not None and level else key


def measured_keys(config: Config, until: str) -> set[str]:
    """The keys below samples/, floor/ and reconstruction/ that a run until this stage measures."""
    own, made = config.evaluate, {stage.name for stage in stages_until(until)}
    judging = judging_metrics(config.network_names, own.class_accuracy, own.lpips is not None, own.classifier)
    keys = {key for key in judging | floor_keys(config.network_names) if _MEASURED_BY[_first(key)] in made}
    return keys | ({"samples/count"} if "sample" in made else set())


def check_columns(suite: Suite, scale: str, configs: Sequence[Config]) -> None:
    """ConfigError for a column whose metric, one of images, no run of these configs measures."""
    known = [measured_keys(config, suite.until) for config in configs]
    for column in suite.columns:
        key = column.key(scale)
        if key is None or _first(key) not in _MEASURED_BY:
            continue
        recorded = [recorded_key(column, scale, config) for config in configs]
        if not any(one in measured for one, measured in zip(recorded, known, strict=True)):
            raise ConfigError(
                f"suite {suite.name}: column {column.name}: no run measures {recorded[0]}",
                _hint(key, suite.until, set[str]().union(*known)),
            )


def _first(key: str) -> str:
    return key.partition("/")[0]


def _hint(key: str, until: str, measured: set[str]) -> str:
    """Names the closest key that is measured, of the same metric in the features of a network if there is one."""
    near = sorted(one for one in measured if _first(one) == _first(key))
    if not near:
        return f"Runs end with {until}: set `until` to {_MEASURED_BY[_first(key)]}, or leave the column out."
    metric = find_metric(key)
    same = [one for one in near if metric is not None and one.startswith(f"{metric.key}/")]
    return f"Did you mean '{difflib.get_close_matches(key, same or near, n=1, cutoff=0.0)[0]}'?"
