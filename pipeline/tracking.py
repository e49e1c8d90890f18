"""MLflow by way of an outbox: what happened is written to the root first and delivered from there.

Whoever makes a number (the driver, the first rank of a trainer) posts events as small files; one courier in the driver
replays them to MLflow in order, with the steps and times they carry, and removes what has arrived. So training never
waits for MLflow, and an outage loses nothing. Whoever delivers does so alone, under a lease; one that dies before it
could remove what it sent does no harm: runs are found by a key, metrics by step.
"""

import json
import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.markup import escape

from pipeline.artifacts import Lease
from pipeline.config import Config
from pipeline.errors import ConfigError, LeaseError, PipelineError
from pipeline.storage import LocalStorage, Storage, open_storage
from pipeline.tracking_errors import RefusedError, TrackingError, mlflow_said

OUTBOX = ".work/tracking"
POLL_SECONDS = 1.0
_TURN_SECONDS = 90.0  # to wait for another process that delivers at this root; longer than a dead one's lease
_CHECK_SECONDS = 10.0  # between two looks whether the lease is still ours
_MOST = 1000  # metrics that MLflow takes at once
_TOGETHER = 500  # events that go at once: an hour's worth is replayed in seconds
_KEY = "dvae.key"  # the tag by which a run is found again
_log = logging.getLogger(__name__)
_delivering = threading.Lock()  # the courier and `register` deliver from one process


def tracking_uri(config: Config) -> str:
    """Where MLflow is: the config, else MLFLOW_TRACKING_URI, else SQLite at the root (or ./runs for a remote root).

    ConfigError for a MLFLOW_TRACKING_URI with a user or password, which every message would show.
    """
    given = config.tracking.uri or os.environ.get("MLFLOW_TRACKING_URI")
    if given and "@" in given.partition("://")[2].partition("/")[0]:
        raise ConfigError(
            "MLFLOW_TRACKING_URI holds a user or password",
            "Take it out, and set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD.",
        )
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
    """Delivers outboxes to MLflow, in a thread of the driver. MLflow being away only makes it wait.

    `say` hears once of each new kind of trouble.
    """

    def __init__(self, storage: Storage, config: Config, say: Callable[[str], None] | None = None) -> None:
        self.storage = storage
        self.uri = tracking_uri(config)
        self.failure: str | None = None  # why not everything has arrived
        self._say, self._said = say, ""
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
            except LeaseError as error:  # another delivers, these events too; not the end of it
                self.failure, last = str(error), False
            except Exception as error:  # a bug of ours or of MLflow's client must not end it: kept, said, tried again
                self._note(error)
                wait = min(30.0, 2 * wait)
            if last:
                return
            self._stop.wait(wait)

    def _note(self, error: Exception) -> None:
        self.failure = str(error) if isinstance(error, PipelineError) else f"{type(error).__name__}: {error}"
        _log.debug("MLflow did not take an event", exc_info=True)
        what = error.what if isinstance(error, PipelineError) else self.failure
        if self._say is not None and what != self._said:
            self._say(f"[yellow]![/] {escape(self.failure)} The run goes on, and what is not delivered waits.")
        self._said = what

    def close(self, timeout: float) -> str | None:
        """Deliver the rest, for at most `timeout` seconds. What is left stays in the outbox; says why."""
        self._stop.set()
        self._thread.join(timeout)
        if self._thread.is_alive():
            return self.failure or f"MLflow at {self.uri} did not take everything within {timeout:.0f} s"
        return self.failure


def undelivered(storage: Storage) -> list[str]:
    """The keys of the runs whose events still wait."""
    return sorted({_key_of(path) for path in _waiting(storage, None)})


def _key_of(path: str) -> str:
    return path.removeprefix(OUTBOX + "/").rpartition("/")[0]


def _waiting(storage: Storage, only: str | None) -> list[str]:
    """The files of events, the oldest first; those of one run and its children, or all."""
    found = [entry.path for entry in storage.list(OUTBOX) if entry.path.endswith(".jsonl")]
    if only is not None:
        found = [path for path in found if _key_of(path) == only or _key_of(path).startswith(f"{only}/")]
    return sorted(found, key=lambda path: path.rpartition("/")[2])


def deliver(storage: Storage, post: "Post", only: str | None = None) -> int:
    """Replay the waiting events, oldest first, removing what has arrived. Returns how many files went.

    What was not delivered stays. TrackingError when MLflow is away or lets nobody in; RefusedError, at the end, when it
    does not take the events of some run; LeaseError when another process delivers and does not come to an end.
    """
    with _delivering:
        if not _waiting(storage, only):
            return 0
        with _turn(storage) as still_mine:
            post.begin()
            return _deliver(storage, post, _waiting(storage, only), still_mine)


def _deliver(storage: Storage, post: "Post", waiting: Iterable[str], still_mine: Callable[[], None]) -> int:
    delivered, refused = 0, dict[str, RefusedError]()
    for key, paths, events in _parcels(storage, waiting):
        if key in refused:
            continue
        still_mine()
        try:
            post.send(key, events, storage)
        except RefusedError as error:
            place = storage.uri(f"{OUTBOX}/{key}")
            refused[key] = RefusedError(f"{key}: {error.what}", f"Its events stay; to give them up, delete {place}.")
            continue
        for path in paths:
            storage.delete(path)
        delivered += len(paths)
    for first in refused.values():
        raise first
    return delivered


def _parcels(storage: Storage, waiting: Iterable[str]) -> Iterator[tuple[str, list[str], list[dict[str, Any]]]]:
    """Key, files and events of what goes at once: a file, or neighbours of one run with nothing but metrics."""
    key, paths, events = "", list[str](), list[dict[str, Any]]()
    for path in waiting:
        try:
            more = [json.loads(line) for line in storage.read(path).splitlines()]
        except FileNotFoundError:
            continue  # its last deliverer was slow to die, and has removed it after all
        joins = key == _key_of(path) and len(events) + len(more) <= _TOGETHER and _are_metrics([*events, *more])
        if paths and not joins:
            yield key, paths, events
            paths, events = [], []
        key, paths, events = _key_of(path), [*paths, path], [*events, *more]
    if paths:
        yield key, paths, events


def _are_metrics(events: Iterable[dict[str, Any]]) -> bool:
    return all(event["kind"] == "metrics" for event in events)


@contextmanager
def _turn(storage: Storage) -> Iterator[Callable[[], None]]:
    """The right to deliver at this root, which one process has at a time. Yields a check that it is still ours."""
    end = time.monotonic() + _TURN_SECONDS
    while True:
        try:
            lease = Lease(storage, "delivery", "to-mlflow")
            break
        except LeaseError:
            if time.monotonic() > end:
                raise
        time.sleep(POLL_SECONDS)
    checked = time.monotonic()

    def still_mine() -> None:
        nonlocal checked
        if time.monotonic() - checked > _CHECK_SECONDS:
            lease.check()
            checked = time.monotonic()

    try:
        yield still_mine
    finally:
        lease.release(finished=True)


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
            if found is not None and found.lifecycle_stage != "active":
                raise TrackingError(
                    f"MLflow's experiment '{self.experiment}' is deleted",
                    f"Restore it (`mlflow experiments restore --experiment-id {found.experiment_id}`), or set "
                    "tracking.experiment to another.",
                )
            self._experiment_id = (
                found.experiment_id if found else client.create_experiment(self.experiment, self._artifacts)
            )
            self._made = client
        return self._made

    def begin(self) -> None:
        """Forget what others may have changed since the last delivery. TrackingError when MLflow is not to be had."""
        self._runs, self._last_steps = {}, {}
        with mlflow_said(self.uri):
            _ = self.client

    def send(self, key: str, events: list[dict[str, Any]], storage: Storage) -> None:
        """TrackingError when MLflow is away, RefusedError when it does not take these events."""
        metrics = [event for event in events if event["kind"] == "metrics"]
        with mlflow_said(self.uri):
            for event in events:
                if event["kind"] != "metrics":
                    getattr(self, f"_{event['kind']}")(key, event, storage)
            if metrics:
                self._metrics(key, metrics)

    def run_of(self, key: str) -> str:
        """The id of the newest run with this key. RefusedError when there is none."""
        if key not in self._runs:
            run = self._find(key)
            if run is None:
                raise RefusedError(f"MLflow at {self.uri} has no run '{key}'", "Somebody may have deleted it there.")
            self._runs[key] = run.info.run_id
        return self._runs[key]

    def _find(self, key: str) -> Any:
        client = self.client
        found = client.search_runs(
            [self._experiment_id], f"tags.`{_KEY}` = '{key}'", order_by=["attributes.start_time DESC"], max_results=1
        )
        return found[0] if found else None

    def _open(self, key: str, event: dict[str, Any], _: Storage) -> None:
        """Go on with the run of this key; a stage that is made anew, after it was finished, begins a new one."""
        run = self._find(key)
        if run is None or (run.info.status == "FINISHED" and event["parent"]):
            tags = {_KEY: key, **event["tags"]}
            if event["parent"]:
                tags["mlflow.parentRunId"] = self.run_of(event["parent"])
            self.client.create_run(self._experiment_id, start_time=event["time"], tags=tags, run_name=event["name"])
            run = self._only_one(key, event["time"])
        elif run.info.status != "RUNNING":
            self.client.update_run(run.info.run_id, status="RUNNING")
        self._runs[key] = run.info.run_id
        self._last_steps.pop(key, None)

    def _only_one(self, key: str, begun: int) -> Any:
        """The run just made; MLflow's client asks again when an answer is lost, and so may have made two."""
        same = f"tags.`{_KEY}` = '{key}' AND attributes.start_time = {begun}"
        run, *twins = self.client.search_runs([self._experiment_id], same, order_by=["attributes.run_id ASC"])
        for twin in twins:
            self.client.delete_run(twin.info.run_id)
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
                return  # its artifact has been removed since
            self.client.log_artifact(self.run_of(key), str(target), event["folder"])

    def _metrics(self, key: str, events: list[dict[str, Any]]) -> None:
        """Metrics whose step the run does not have yet: a resumed trainer repeats some."""
        from mlflow.entities import Metric

        run_id = self.run_of(key)
        if key not in self._last_steps:
            self._last_steps[key] = self._last_step(run_id)
        last, batch = self._last_steps[key], list[Metric]()
        for event in events:
            step = event["step"]
            if step != 0 and step <= last:
                continue
            last = max(last, step)
            line = [Metric(name, value, event["time"], step) for name, value in event["values"].items()]
            if len(batch) + len(line) > _MOST:  # a step goes whole, or it would be taken for known after a kill
                self.client.log_batch(run_id, metrics=batch)
                batch = []
            batch += line
        if batch:
            self.client.log_batch(run_id, metrics=batch)
        self._last_steps[key] = last

    def _last_step(self, run_id: str) -> int:
        newest = self.client.get_run(run_id).to_proto().data.metrics  # of each metric the one of the last step
        return max((metric.step for metric in newest), default=-1)


def mlflow_client(uri: str) -> Any:
    """MLflow's client, made to fail soon rather than to hang when its server is away."""
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
