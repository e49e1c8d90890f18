"""Writes events to MLflow runs, which are found by key; steps and parameters that a run already has are skipped."""

import json
import logging
import os
import re
from pathlib import Path
from typing import Any

from pipeline.config import Config, check_tracking_uri
from pipeline.errors import ConfigError
from pipeline.storage import Storage, open_storage
from pipeline.tracking.errors import RefusedError, TrackingError, file_errors, mlflow_errors
from pipeline.tracking.registry import KEY_TAG
from pipeline.tracking.upload import RunFiles

_MAX_METRICS = 1000  # MLflow's limit per batch


def tracking_uri(config: Config) -> str:
    """The URI of MLflow: from the config, else MLFLOW_TRACKING_URI, else SQLite at the root (./runs for a remote root).

    ConfigError for a MLFLOW_TRACKING_URI that is no address, or has a user or password, since messages show it, and for
    a root whose path such an address cannot hold.
    """
    uri = config.tracking.uri or os.environ.get("MLFLOW_TRACKING_URI")
    if uri:
        try:
            check_tracking_uri("MLFLOW_TRACKING_URI", uri)
        except ValueError as error:
            what, _, hint = str(error).partition("; ")
            raise ConfigError(what, f"{hint[0].upper()}{hint[1:]}.") from None
    return uri or _database_uri(_database_folder(config) / "mlflow.db")


def _database_uri(path: Path) -> str:
    """The address of a SQLite database; ConfigError if it would be another file's."""
    if re.search(r"\?|%[0-9a-fA-F]{2}", str(path)):
        raise ConfigError(
            f"MLflow cannot have its database at {path}: in its addresses, ? ends the path, and % with two digits is "
            "another character",
            "Rename the folder, take another root, or set tracking.uri.",
        )
    return f"sqlite:///{path}"


def _database_folder(config: Config) -> Path:
    return open_storage(config.root).local_path() or Path("runs").absolute()


class MlflowWriter:
    """Writes events to MLflow; caches the run of each key and the last step of each run."""

    def __init__(self, uri: str, config: Config) -> None:
        self.uri, self.experiment = uri, config.tracking.experiment
        self._artifacts = (_database_folder(config) / "mlflow-artifacts").as_uri() if uri.startswith("sqlite") else None
        self._client: Any = None
        self._experiment_id = ""
        self._runs: dict[str, str] = {}
        self._last_steps: dict[str, int] = {}

    @property
    def client(self) -> Any:
        """MLflow's client; creates the experiment if it is missing. Imports mlflow, which takes seconds."""
        if self._client is None:
            self._client = mlflow_client(self.uri)
            self._experiment_id = self._experiment(self._client)
        return self._client

    def _experiment(self, client: Any) -> str:
        """The experiment's id; it is created if it is missing. TrackingError if it was deleted."""
        found = client.get_experiment_by_name(self.experiment)
        if found is None:
            return str(client.create_experiment(self.experiment, self._artifacts))
        if found.lifecycle_stage != "active":
            raise TrackingError(
                f"MLflow's experiment '{self.experiment}' was deleted",
                f"Restore it (`mlflow experiments restore --experiment-id {found.experiment_id}`), or set "
                "tracking.experiment to another.",
            )
        return str(found.experiment_id)

    def begin(self) -> None:
        """Clear the caches, since other processes may have written. TrackingError if MLflow is unavailable."""
        self._runs, self._last_steps = {}, {}
        with mlflow_errors(self.uri):
            self._experiment_id = self._experiment(self.client)

    def send(self, key: str, events: list[dict[str, Any]], storage: Storage) -> None:
        """Write events to the run of `key`. TrackingError if MLflow is unavailable, RefusedError if it rejects them."""
        metrics = [event for event in events if event["kind"] == "metrics"]
        with mlflow_errors(self.uri):
            for event in events:
                if event["kind"] != "metrics":
                    getattr(self, f"_{event['kind']}")(key, event, storage)
            if metrics:
                self._metrics(key, metrics)

    def run_of(self, key: str) -> str:
        """The id of the newest run with this key. RefusedError if there is none."""
        if key not in self._runs:
            run = self._find(key)
            if run is None:
                raise RefusedError(
                    f"MLflow at {self.uri} has no run '{key}'",
                    "If it was deleted there, restore it and run `python -m pipeline tracking retry`, or "
                    "`tracking drop`.",
                )
            self._runs[key] = run.info.run_id
        return self._runs[key]

    def _find(self, key: str) -> Any:
        client = self.client
        found = client.search_runs(
            [self._experiment_id],
            f"tags.`{KEY_TAG}` = {_quoted(key)}",
            order_by=["attributes.start_time DESC"],
            max_results=1,
        )
        return found[0] if found else None

    def _open(self, key: str, event: dict[str, Any], _: Storage) -> None:
        """Reopen the run of this key; create one if there is none, or for a stage that runs again after it finished."""
        run = self._find(key)
        if run is None or (run.info.status == "FINISHED" and event["parent"]):
            tags = {KEY_TAG: key, **event["tags"]}
            if event["parent"]:
                tags["mlflow.parentRunId"] = self.run_of(event["parent"])
            self.client.create_run(self._experiment_id, start_time=event["time"], tags=tags, run_name=event["name"])
            run = self._deduplicated(key, event["time"])
        elif run.info.status != "RUNNING":
            self.client.update_run(run.info.run_id, status="RUNNING")
        self._runs[key] = run.info.run_id
        self._last_steps.pop(key, None)

    def _deduplicated(self, key: str, start: int) -> Any:
        """The run just created; deletes duplicates, which MLflow's client creates if it retries after a lost answer."""
        same = f"tags.`{KEY_TAG}` = {_quoted(key)} AND attributes.start_time = {start}"
        run, *duplicates = self.client.search_runs([self._experiment_id], same, order_by=["attributes.run_id ASC"])
        for duplicate in duplicates:
            self.client.delete_run(duplicate.info.run_id)
        return run

    def _close(self, key: str, event: dict[str, Any], _: Storage) -> None:
        self.client.set_terminated(self.run_of(key), event["status"], event["time"])

    def _params(self, key: str, event: dict[str, Any], _: Storage) -> None:
        from mlflow.entities import Param

        known = self.client.get_run(self.run_of(key)).data.params
        params = [Param(name, value[:6000]) for name, value in event["values"].items() if name not in known]
        for start in range(0, len(params), 100):
            self.client.log_batch(self.run_of(key), params=params[start : start + 100])

    def _tags(self, key: str, event: dict[str, Any], _: Storage) -> None:
        from mlflow.entities import RunTag

        self.client.log_batch(self.run_of(key), tags=[RunTag(name, value) for name, value in event["values"].items()])

    def _dataset(self, key: str, event: dict[str, Any], _: Storage) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        dataset = Dataset(event["name"], event["digest"], "uri", json.dumps({"uri": event["source"]}))
        tags = [InputTag("mlflow.data.context", event["context"])]
        self.client.log_inputs(self.run_of(key), [DatasetInput(dataset, tags)])

    def _file(self, key: str, event: dict[str, Any], storage: Storage) -> None:
        import tempfile

        with tempfile.TemporaryDirectory() as folder:
            target = Path(folder, event["path"].rpartition("/")[2])
            try:
                storage.download(event["path"], target)
            except FileNotFoundError:
                return  # its artifact has been deleted since
            files = RunFiles(self.client, self.run_of(key))
            with file_errors(self.uri, target, event["path"], files.place):
                files.upload(target, event["folder"])

    def _metrics(self, key: str, events: list[dict[str, Any]]) -> None:
        """Log metrics of steps that the run does not have yet: a resumed trainer repeats some steps."""
        from mlflow.entities import Metric

        run_id = self.run_of(key)
        if key not in self._last_steps:
            self._last_steps[key] = self._last_step(run_id)
        last, batch = self._last_steps[key], list[Metric]()
        for event in events:
            step, values = event["step"], event["values"]
            if step != 0 and step <= last:
                values = self._missing(run_id, step, values) if event.get("retried") else {}
            last = max(last, step)
            line = [Metric(name, value, event["time"], step) for name, value in values.items()]
            if len(batch) + len(line) > _MAX_METRICS:  # never split a step: after a kill its rest would be skipped
                self.client.log_batch(run_id, metrics=batch)
                batch = []
            batch += line
        if batch:
            self.client.log_batch(run_id, metrics=batch)
        self._last_steps[key] = last

    def _missing(self, run_id: str, step: int, values: dict[str, float]) -> dict[str, float]:
        """Those that the run lacks at this step. Later steps may have overtaken what MLflow had refused."""
        history = self.client.get_metric_history
        return {name: value for name, value in values.items() if step not in {m.step for m in history(run_id, name)}}

    def _last_step(self, run_id: str) -> int:
        newest = self.client.get_run(run_id).to_proto().data.metrics  # per metric, that of the last step
        return max((metric.step for metric in newest), default=-1)


def _quoted(value: str) -> str:
    """A string of MLflow's filters, which know no escapes. No key has a double quote (`Runner.key`)."""
    return f'"{value}"' if "'" in value else f"'{value}'"


def mlflow_client(uri: str) -> Any:
    """MLflow's client, with timeouts short enough to fail soon if its server is unavailable."""
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    from mlflow import MlflowClient

    if uri.startswith("sqlite:///"):
        Path(uri.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
    return MlflowClient(tracking_uri=uri, registry_uri=uri)
