"""A root with an outbox, and an MLflow that its events go to."""

from pathlib import Path
from typing import Any

from mlflow import MlflowClient

from pipeline.config.loading import load_config
from pipeline.config.schema import Config
from pipeline.storage.uri import open_storage
from pipeline.tracking.courier import deliver
from pipeline.tracking.mlflow import MlflowWriter
from pipeline.tracking.outbox import Outbox

KEY = "quickstart-0123456789ab"


class World:
    """A root and an MLflow database beside it; `now` is the time that events carry, in milliseconds."""

    def __init__(self, tmp_path: Path, uri: str | None = None, root: str | None = None) -> None:
        self.uri = uri or f"sqlite:///{tmp_path}/mlflow.db"
        self.config: Config = load_config("quickstart", [f"tracking.uri={self.uri}"], root or str(tmp_path / "runs"))
        self.storage = open_storage(self.config.root)
        self.client = MlflowClient(tracking_uri=self.uri, registry_uri=self.uri)
        self.now = 1_700_000_000_000

    def tick(self) -> int:
        self.now += 1000
        return self.now

    def outbox(self, key: str = KEY) -> Outbox:
        return Outbox(self.storage, key)

    def deliver(self) -> int:
        """As a driver that has just started would."""
        return deliver(self.storage, MlflowWriter(self.uri, self.config))

    def runs(self) -> list[Any]:
        """All runs, the oldest first."""
        experiment = self.client.get_experiment_by_name(self.config.tracking.experiment)
        if experiment is None:
            return []
        return list(self.client.search_runs([experiment.experiment_id], order_by=["attributes.start_time ASC"]))

    def history(self, run: Any, name: str) -> list[tuple[int, float, int]]:
        """Step, value and time of a metric, in the order of the steps."""
        metrics = self.client.get_metric_history(run.info.run_id, name)
        return sorted((metric.step, metric.value, metric.timestamp) for metric in metrics)
