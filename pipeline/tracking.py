"""MLflow by way of an outbox: what happened is written to the root first and delivered from there.

Whoever makes a number (the driver, the first rank of a trainer) posts events as small files; one courier in the driver
replays them to MLflow in order, with the steps and times they carry, and removes what has arrived. So training never
waits for MLflow, and an outage loses nothing. Delivering twice is harmless: runs are found by a key, metrics by step.
"""

import json
import logging
import os
import threading
import time
from pathlib import Path
from typing import Any

from pipeline.config import Config
from pipeline.errors import PipelineError
from pipeline.storage import LocalStorage, Storage, open_storage

OUTBOX = ".work/tracking"
POLL_SECONDS = 1.0
_KEY = "dvae.key"  # the tag by which a run is found again
_log = logging.getLogger(__name__)
_delivering = (
    threading.Lock()
)  # the courier and `register` deliver from one process: one at a time, or runs are made twice


def tracking_uri(config: Config) -> str:
    """Where MLflow is: the config, else MLFLOW_TRACKING_URI, else SQLite at the root (or ./runs for a remote root)."""
    given = config.tracking.uri or os.environ.get("MLFLOW_TRACKING_URI")
    return given or f"sqlite:///{_database_folder(config) / 'mlflow.db'}"


def _database_folder(config: Config) -> Path:
    storage = open_storage(config.root)
    return storage.folder if isinstance(storage, LocalStorage) else Path("runs").absolute()


class Outbox:
    """Posts events of one run: a stage's (`PIPELINE/STAGE`) or the pipeline's (`PIPELINE`)."""

    def __init__(self, storage: Storage, key: str) -> None:
        self.storage, self.key = storage, key
        self._posted = 0

    def post(self, *events: dict[str, Any]) -> None:
        """Write the events down, in one file that sorts behind all earlier ones."""
        self._posted += 1
        name = f"{time.time_ns():020d}-{os.getpid()}-{self._posted:06d}.jsonl"
        lines = "".join(json.dumps(event) + "\n" for event in events)
        self.storage.write(f"{OUTBOX}/{self.key}/{name}", lines.encode())

    def open(self, name: str, tags: dict[str, str], parent: str | None = None) -> None:
        self.post({"kind": "open", "name": name, "tags": tags, "parent": parent, "time": _milliseconds()})

    def close(self, status: str) -> None:
        """FINISHED, FAILED or KILLED."""
        self.post({"kind": "close", "status": status, "time": _milliseconds()})

    def params(self, values: dict[str, Any]) -> None:
        self.post({"kind": "params", "values": {name: str(value) for name, value in values.items()}})

    def tags(self, values: dict[str, str]) -> None:
        self.post({"kind": "tags", "values": values})

    def metrics(self, values: dict[str, float], step: int = 0) -> None:
        self.post(metric_event(values, step))

    def dataset(self, name: str, digest: str, source: str, context: str) -> None:
        self.post({"kind": "dataset", "name": name, "digest": digest, "source": source, "context": context})

    def file(self, path: str, folder: str) -> None:
        """A file that already lies at the root (in an artifact), to be shown in the run."""
        self.post({"kind": "file", "path": path, "folder": folder})


def metric_event(values: dict[str, float], step: int) -> dict[str, Any]:
    return {"kind": "metrics", "values": values, "step": step, "time": _milliseconds()}


def _milliseconds() -> int:
    return int(time.time() * 1000)


class Courier:
    """Delivers outboxes to MLflow, in a thread of the driver. MLflow being away only makes it wait."""

    def __init__(self, storage: Storage, config: Config) -> None:
        self.storage = storage
        self.uri = tracking_uri(config)
        self.failure: str | None = None  # what MLflow last said, while it is away
        self._post = Post(self.uri, config)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._deliver_all, name="courier", daemon=True)
        self._thread.start()

    def _deliver_all(self) -> None:
        wait = POLL_SECONDS
        while True:
            last = self._stop.is_set()
            try:
                deliver(self.storage, self._post)
                self.failure, wait = None, POLL_SECONDS
            except (
                Exception
            ) as error:  # whatever MLflow's client raises when its server is away; kept, said, tried again
                self.failure, wait = f"{type(error).__name__}: {error}", min(30.0, 2 * wait)
                _log.debug("MLflow did not take an event", exc_info=True)
            if last:
                return
            self._stop.wait(wait)

    def close(self, timeout: float) -> str | None:
        """Deliver the rest, for at most `timeout` seconds. What is left stays in the outbox; says why."""
        self._stop.set()
        self._thread.join(timeout)
        if self._thread.is_alive():
            return self.failure or f"MLflow at {self.uri} did not take everything within {timeout:.0f} s"
        return self.failure


def undelivered(storage: Storage) -> list[str]:
    """The keys of the runs whose events still wait."""
    names = {entry.path.removeprefix(OUTBOX + "/").rpartition("/")[0] for entry in storage.list(OUTBOX)}
    return sorted(names)


def deliver(storage: Storage, post: "Post", only: str | None = None) -> int:
    """Replay the waiting events, oldest first, removing what has arrived. Returns how many files went.

    Raises what MLflow's client raises when its server is away; what was not delivered stays.
    """
    with _delivering:
        return _deliver(storage, post, only)


def _deliver(storage: Storage, post: "Post", only: str | None) -> int:
    waiting = [entry.path for entry in storage.list(OUTBOX) if entry.path.endswith(".jsonl")]
    waiting.sort(key=lambda path: path.rpartition("/")[2])
    delivered = 0
    for path in waiting:
        key = path.removeprefix(OUTBOX + "/").rpartition("/")[0]
        if only is not None and key != only and not key.startswith(only + "/"):
            continue
        try:
            events = [json.loads(line) for line in storage.read(path).splitlines()]
        except FileNotFoundError:
            continue  # another driver at this root has delivered it
        post.send(key, events, storage)
        storage.delete(path)
        delivered += 1
    return delivered


class Post:
    """The way into MLflow: which run a key has, what that run already knows."""

    def __init__(self, uri: str, config: Config) -> None:
        self.uri, self.experiment = uri, config.tracking.experiment
        self._artifacts = (_database_folder(config) / "mlflow-artifacts").as_uri() if uri.startswith("sqlite") else None
        self._made: Any = None
        self._experiment_id = ""
        self._runs: dict[str, str] = {}
        self._last_steps: dict[str, int] = {}

    @property
    def client(self) -> Any:
        """MLflow's client, with our experiment in place. Imports mlflow, which takes seconds."""
        if self._made is None:
            client = mlflow_client(self.uri)
            found = client.get_experiment_by_name(self.experiment)
            self._experiment_id = (
                found.experiment_id if found else client.create_experiment(self.experiment, self._artifacts)
            )
            self._made = client
        return self._made

    def send(self, key: str, events: list[dict[str, Any]], storage: Storage) -> None:
        metrics = [event for event in events if event["kind"] == "metrics"]
        for event in events:
            if event["kind"] != "metrics":
                getattr(self, f"_{event['kind']}")(key, event, storage)
        if metrics:
            self._metrics(key, metrics)

    def run_of(self, key: str) -> str:
        """The id of the newest run with this key. PipelineError when there is none."""
        if key not in self._runs:
            run = self._find(key)
            if run is None:
                raise PipelineError(f"MLflow at {self.uri} has no run '{key}'", "Its events stay in the outbox.")
            self._runs[key] = run.info.run_id
        return self._runs[key]

    def _find(self, key: str) -> Any:
        client = self.client
        found = client.search_runs(
            [self._experiment_id], f"tags.`{_KEY}` = '{key}'", order_by=["attributes.start_time DESC"], max_results=1
        )
        return found[0] if found else None

    def _open(self, key: str, event: dict[str, Any], _: Storage) -> None:
        """Go on with the run of this key while it is unfinished, else begin a new one."""
        run = self._find(key)
        if run is None or run.info.status == "FINISHED":
            tags = {_KEY: key, **event["tags"]}
            if event["parent"]:
                tags["mlflow.parentRunId"] = self.run_of(event["parent"])
            run = self.client.create_run(
                self._experiment_id, start_time=event["time"], tags=tags, run_name=event["name"]
            )
        elif run.info.status != "RUNNING":
            self.client.update_run(run.info.run_id, status="RUNNING")
        self._runs[key] = run.info.run_id
        self._last_steps.pop(key, None)

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
            storage.download(event["path"], target)
            self.client.log_artifact(self.run_of(key), str(target), event["folder"])

    def _metrics(self, key: str, events: list[dict[str, Any]]) -> None:
        """Metrics whose step the run does not have yet: a resumed trainer repeats some."""
        from mlflow.entities import Metric

        run_id = self.run_of(key)
        if key not in self._last_steps:
            self._last_steps[key] = self._last_step(run_id, events[0])
        last = self._last_steps[key]
        fresh = [event for event in events if event["step"] > last or event["step"] == 0]
        metrics = [
            Metric(name, value, event["time"], event["step"])
            for event in fresh
            for name, value in event["values"].items()
        ]
        for start in range(0, len(metrics), 1000):
            self.client.log_batch(run_id, metrics=metrics[start : start + 1000])
        self._last_steps[key] = max([last, *(event["step"] for event in fresh)])

    def _last_step(self, run_id: str, event: dict[str, Any]) -> int:
        name = next(iter(event["values"]))
        return max((metric.step for metric in self.client.get_metric_history(run_id, name)), default=-1)


def mlflow_client(uri: str) -> Any:
    """MLflow's client, made to fail soon rather than to hang when its server is away."""
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    from mlflow import MlflowClient

    if uri.startswith("sqlite:///"):
        Path(uri.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
    return MlflowClient(tracking_uri=uri, registry_uri=uri)
