"""A real MLflow on PostgreSQL and Ceph behind an ingress: files by signed URLs and through it, and refused events."""

import hashlib
import io
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import boto3
import pytest
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.s3_artifact_repo import _cached_get_s3_client
from rich.console import Console

from models.sit import SiT
from models.tokenizers.vit import Tokenizer
from pipeline.console import Display
from pipeline.errors import PipelineError
from pipeline.tracking import upload
from pipeline.tracking.courier import undelivered
from pipeline.tracking.errors import RefusedError, TrackingError, file_errors
from pipeline.tracking.mlflow import mlflow_client
from pipeline.tracking.refused import refusals
from pipeline.tracking.upload import RunFiles
from pipeline.workflow.runner import Runner
from tests.support.fault_proxy import FaultProxy, Seen, fault_proxy
from tests.support.mlflow_server import MlflowServer, running_mlflow
from tests.support.outboxes import KEY, World
from tests.support.registration import Registration

pytestmark = pytest.mark.slow

Networks = tuple[Tokenizer, SiT]
SIZE = 12_000_000
FIGURE = "analyze/0123/figures/pca.png"


@pytest.fixture(scope="module")
def bucket(ceph_owner: dict[str, str]) -> Iterator[FaultProxy]:
    """Between MLflow's bucket and whoever speaks to it, signed URLs included."""
    with fault_proxy(ceph_owner["AWS_ENDPOINT_URL"]) as proxy:
        yield proxy


@pytest.fixture(scope="module")
def server(
    tmp_path_factory: pytest.TempPathFactory,
    database: Callable[[], str],
    ceph_owner: dict[str, str],
    bucket: FaultProxy,
) -> Iterator[MlflowServer]:
    keys = {**ceph_owner, "AWS_ENDPOINT_URL": bucket.url, "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required"}
    with running_mlflow(tmp_path_factory.mktemp("server"), database(), "s3://tests/mlflow", **keys) as server:
        yield server


@pytest.fixture
def front(server: MlflowServer) -> Iterator[FaultProxy]:
    """An ingress in front of MLflow."""
    with fault_proxy(server.uri) as proxy:
        yield proxy


def digest(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


class Uploads:
    """Uploads of one file of 12 MB, in parts of 5."""

    def __init__(self, folder: Path, uri: str) -> None:
        self.uri, self.said, self.sent = uri, list[str](), list[int]()
        self.file = folder / "weights.safetensors"
        self.file.write_bytes(random.Random(0).randbytes(SIZE))
        self.client = mlflow_client(uri)
        experiment = self.client.create_experiment(str(folder))
        self.run_id = self.client.create_run(experiment).info.run_id

    def upload(self) -> None:
        files = RunFiles(self.client, self.run_id, self.said.append)
        with file_errors(self.uri, self.file, self.file.name, files.place):
            files.upload(self.file, "model/artifacts", self.sent.append)

    def arrived(self, folder: Path) -> bool:
        """Whether MLflow has the file, byte by byte."""
        path = Path(self.client.download_artifacts(self.run_id, f"model/artifacts/{self.file.name}", str(folder)))
        return digest(path) == digest(self.file)


@pytest.fixture
def uploads(tmp_path: Path, front: FaultProxy, monkeypatch: pytest.MonkeyPatch) -> Uploads:
    monkeypatch.setattr(upload, "PART_BYTES", 5 * 1024**2)
    for name in ("MLFLOW_HTTP_REQUEST_TIMEOUT", "MLFLOW_HTTP_REQUEST_MAX_RETRIES"):
        monkeypatch.delenv(name, raising=False)
    return Uploads(tmp_path, front.url)


def by_client(seen: Seen) -> bool:
    """A part that a signed URL brings; MLflow's server has another agent."""
    return seen.method == "PUT" and "python-requests" in seen.headers.get("user-agent", "")


def a_file(seen: Seen) -> bool:
    return seen.method == "PUT" and "/mlflow-artifacts/" in seen.path


def test_a_large_file_does_not_pass_through_the_server(uploads: Uploads, front: FaultProxy, tmp_path: Path) -> None:
    front.spoil_next("500", a_file)
    uploads.upload()
    assert uploads.arrived(tmp_path)
    assert front.counts["500"] == 0
    assert uploads.sent[-1] == SIZE
    assert uploads.said == []


@pytest.mark.parametrize("fault", ["500", "reset", "lost"])
def test_a_part_that_fails_in_passing_is_sent_again(
    uploads: Uploads, bucket: FaultProxy, tmp_path: Path, fault: str
) -> None:
    bucket.spoil_next(fault, by_client, times=2)
    uploads.upload()
    assert uploads.arrived(tmp_path)
    assert uploads.said == []


@pytest.mark.parametrize("fault", ["403 AccessDenied", "reset"])
def test_where_signed_urls_do_not_work_it_goes_through_the_server(
    uploads: Uploads, bucket: FaultProxy, front: FaultProxy, tmp_path: Path, fault: str
) -> None:
    bucket.spoil_next(fault, by_client, times=100)
    uploads.upload()
    bucket.forget()
    assert uploads.arrived(tmp_path)
    (line,) = uploads.said
    assert line.startswith(f"MLflow's server signs uploads to {bucket.url}, which does not take them from here (")
    assert "Signature" not in line


def test_a_completion_whose_answer_is_lost_counts(uploads: Uploads, front: FaultProxy, tmp_path: Path) -> None:
    """MLflow's client asks again, for an upload that is no more."""
    front.spoil_next("lost", lambda seen: "/mpu/complete" in seen.path)
    uploads.upload()
    assert front.counts["lost"] == 1
    assert uploads.arrived(tmp_path)


def test_a_download_from_where_the_bucket_is_out_of_reach(
    uploads: Uploads, bucket: FaultProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As docs/operations.md says it: MLflow's client needs to be told."""
    uploads.upload()
    bucket.spoil_next("403 AccessDenied", lambda seen: "python-requests" in seen.headers.get("user-agent", ""), 100)
    with pytest.raises(MlflowException, match="Failed to download artifacts"):
        uploads.arrived(tmp_path)
    monkeypatch.setenv("MLFLOW_ENABLE_PROXY_MULTIPART_DOWNLOAD", "false")
    assert uploads.arrived(tmp_path)
    bucket.forget()


class TestThroughTheServer:
    @pytest.fixture(autouse=True)
    def proxied(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("MLFLOW_ENABLE_PROXY_MULTIPART_UPLOAD", "false")

    def test_it_may_take_longer_than_other_requests(
        self, uploads: Uploads, front: FaultProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
        front.spoil_next("late 3", a_file)
        uploads.upload()
        assert uploads.arrived(tmp_path)
        assert uploads.sent[-1] == SIZE

    def test_what_is_stuck_is_not_away_and_not_sent_twice(
        self, uploads: Uploads, front: FaultProxy, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(upload, "_ANSWER_SECONDS", 1.0)
        monkeypatch.setattr(upload, "_BYTES_PER_SECOND", 1e9)
        front.spoil_next("late 4", a_file, times=5)
        with pytest.raises(TrackingError, match=r"took weights.safetensors \(12.0 MB\), but did not say") as caught:
            uploads.upload()
        assert not isinstance(caught.value, RefusedError)
        assert front.counts["late 4"] == 1

    @pytest.mark.parametrize(
        ("fault", "kind", "words"),
        [
            ("413 TooLarge", RefusedError, "takes no file of the size of weights.safetensors (12.0 MB): status 413"),
            ("504 GatewayTimeout", TrackingError, "did not wait until weights.safetensors (12.0 MB) was stored"),
            ("500 InternalError", TrackingError, "failed to store weights.safetensors (12.0 MB): status 500"),
            ("403 AccessDenied", RefusedError, "did not take weights.safetensors (HTTPError: 403"),
        ],
    )
    def test_the_words_say_what_it_is(
        self, uploads: Uploads, front: FaultProxy, fault: str, kind: type[TrackingError], words: str
    ) -> None:
        front.spoil_next(fault, a_file)
        with pytest.raises(TrackingError) as caught:
            uploads.upload()
        assert type(caught.value) is kind
        assert words in str(caught.value)


class Watched:
    """The largest size of a folder, in bytes, while this is open."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.peak, self._ended = folder, 0, threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> "Watched":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(0.05):
            size = 0
            for path in self.folder.rglob("*"):
                with suppress(FileNotFoundError):
                    size += path.stat().st_size
            self.peak = max(self.peak, size)


@pytest.mark.study
@pytest.mark.timeout(1800)
def test_three_gigabytes(
    tmp_path: Path,
    database: Callable[[], str],
    ceph_owner: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By signed URLs nothing of a model lies on the server's disk."""
    for name in ("MLFLOW_HTTP_REQUEST_TIMEOUT", "MLFLOW_HTTP_REQUEST_MAX_RETRIES"):
        monkeypatch.delenv(name, raising=False)
    scratch, back = tmp_path / "tmp", tmp_path / "back"
    scratch.mkdir()
    back.mkdir()
    store, block = "s3://tests/three-gigabytes", random.Random(0).randbytes(1_000_000)
    with running_mlflow(tmp_path, database(), store, **ceph_owner, TMPDIR=str(scratch)) as server:
        uploads = Uploads(tmp_path, server.uri)
        with uploads.file.open("wb") as file:
            for number in range(3000):
                file.write(number.to_bytes(8, "big") + block[8:])
        begin = time.monotonic()
        with Watched(scratch) as watched:
            uploads.upload()
        print(f"3 GB in {time.monotonic() - begin:.0f} s, {watched.peak / 1e9:.2f} GB on the server's disk")
        assert uploads.said == []
        assert watched.peak < 1e7
        assert uploads.arrived(back)


def test_register_says_which_file_a_proxy_refuses(tmp_path: Path, networks: Networks, front: FaultProxy) -> None:
    registration = Registration(tmp_path, networks, uri=front.url)
    front.spoil_next("413 TooLarge", lambda seen: a_file(seen) and seen.path.endswith("train-sit.safetensors"))
    with pytest.raises(PipelineError, match=r"register needs MLflow, and a proxy .*train-sit.*client_max_body_size"):
        registration.register(0.95)
    assert registration.register(0.95).details["promoted"]
    (picture,) = registration.predict({"label": [3], "seed": [0]}, steps=2)
    assert picture.shape == (16, 16, 3)


# --- events ---


@pytest.fixture
def served(tmp_path: Path, front: FaultProxy, monkeypatch: pytest.MonkeyPatch) -> World:
    for name in ("MLFLOW_HTTP_REQUEST_TIMEOUT", "MLFLOW_HTTP_REQUEST_MAX_RETRIES", "AWS_ACCESS_KEY_ID"):
        monkeypatch.delenv(name, raising=False)
    world = World(tmp_path, front.url)
    named = world.config.tracking.model_copy(update={"experiment": f"anna's {tmp_path.name}"})
    world.config = world.config.model_copy(update={"tracking": named})
    return world


def draw(world: World, key: str = KEY) -> None:
    world.storage.write(FIGURE, b"p" * 69_000)
    world.outbox(key).open("analyze", {})
    world.outbox(key).file(FIGURE, "figures")
    world.outbox(key).metrics({"sit/loss": 1.0}, 1)
    world.outbox(key).close("FINISHED")


def reasons(world: World) -> list[str]:
    return [reason for run in refusals(world.storage).values() for reason in run]


@pytest.mark.parametrize("fault", ["413 TooLarge", "403 AccessDenied"])
def test_a_figure_that_is_refused_holds_up_nothing(served: World, front: FaultProxy, fault: str) -> None:
    front.spoil_next(fault, a_file, times=5)
    draw(served)
    served.deliver()
    (run,) = served.runs()
    assert run.info.status == "FINISHED"
    assert len(served.history(run, "sit/loss")) == 1
    assert undelivered(served.storage) == []
    (reason,) = reasons(served)
    assert fault[:3] in reason


def test_an_experiment_whose_files_lie_where_this_machine_has_no_keys(
    served: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)  # it remembers the keys of whatever ran before in this process
    _cached_get_s3_client.cache_clear()
    served.client.create_experiment(served.config.tracking.experiment, "s3://tests/direct")
    draw(served)
    served.deliver()
    (run,) = served.runs()
    assert run.info.status == "FINISHED"
    (reason,) = reasons(served)
    assert reason.startswith("MLflow's place for files, s3://tests/direct/")
    assert "NoCredentialsError" in reason


def test_a_run_that_was_deleted_and_purged(served: World, server: MlflowServer) -> None:
    draw(served, "purged")
    served.deliver()
    (run,) = served.runs()
    served.client.delete_run(run.info.run_id)
    server.purge(run.info.run_id)
    served.outbox("purged").metrics({"sit/loss": 1.0}, 2)
    draw(served)
    served.deliver()
    (other,) = served.runs()
    assert other.info.run_name == "analyze"
    assert undelivered(served.storage) == []
    (reason,) = reasons(served)
    assert "has no run 'purged'" in reason


def test_the_same_work_at_two_roots_keeps_its_values_apart(
    tmp_path: Path, server: MlflowServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two people, two folders, one MLflow."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    worlds = {name: World(tmp_path / name, server.uri) for name in ("anna", "ben")}
    for world, loss in zip(worlds.values(), (1.0, 2.0), strict=True):
        data = world.config.data.model_copy(update={"revision": "known"})
        config = world.config.model_copy(update={"data": data})
        key = Runner(config, Display(Console(file=io.StringIO())), "quickstart").key
        world.outbox(key).open("quickstart", {})
        for step in range(1, 4):
            world.outbox(key).metrics({"sit/loss": loss}, step)
        world.outbox(key).close("FINISHED")
    for world in worlds.values():
        world.deliver()
    told = [[value for _, value, _ in worlds["anna"].history(run, "sit/loss")] for run in worlds["anna"].runs()]
    assert sorted(values for values in told if values) == [[1.0] * 3, [2.0] * 3]
