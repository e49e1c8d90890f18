"""register against a real MLflow: the decisions of the gate, and one version for each fingerprint.

On SQLite in a temporary folder; the slow test starts a server.
"""

import errno
import itertools
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from threading import Barrier, BrokenBarrierError
from types import SimpleNamespace

import pytest
from botocore.exceptions import NoCredentialsError
from mlflow import MlflowClient

from pipeline.errors import PipelineError
from pipeline.stages import register
from pipeline.storage.uri import open_storage
from pipeline.tracking.outbox import OUTBOX
from pipeline.tracking.registry import FINGERPRINT_TAG, aliased_tags, has_version
from tests.support.groups import free_port
from tests.support.mlflow_server import running_mlflow
from tests.support.registration import METRIC, OF_REFERENCE, Registration, digest


def test_first_champion_then_better_then_worse(registration):
    first = registration.register(0.91)
    assert first.details["promoted"], first.details["decision"]
    assert "first champion" in first.details["decision"]
    assert registration.aliases() == {"candidate": "1", "champion": "1"}

    worse = registration.register(0.905)
    assert not worse.details["promoted"]
    assert "not better than 0.91 of champion version 1" in worse.details["decision"]
    assert registration.aliases() == {"candidate": "2", "champion": "1"}

    better = registration.register(0.97)
    assert better.details["promoted"]
    assert registration.aliases() == {"candidate": "3", "champion": "3"}

    closer = registration.register(0.975, margin=0.01)
    assert "by less than the margin 0.01" in closer.details["decision"]
    assert registration.aliases() == {"candidate": "4", "champion": "3"}


def test_a_champion_that_was_measured_against_other_images(registration):
    """The decision and the card say so."""
    registration.register(0.91)
    registration.reference = "359 images of the validation split"
    better = registration.register(0.95, metric=OF_REFERENCE)
    assert better.details["promoted"]
    assert "of champion version 1 (measured against another reference, " in better.details["decision"]
    folder = registration.folder / "runs" / "register" / registration.fingerprint(0.95)[:12]
    assert "compared with 359 images of the validation split." in (folder / "README.md").read_text()
    registration.register(0.97)
    again = registration.register(0.98, metric=OF_REFERENCE)
    assert "another reference" not in again.details["decision"]


def test_below_the_minimum_there_is_no_champion(registration):
    refused = registration.register(0.5)
    assert not refused.details["promoted"]
    assert "does not reach the minimum 0.9" in refused.details["decision"]
    assert registration.aliases() == {"candidate": "1"}
    assert registration.register(0.92).details["promoted"]


def test_repeating_makes_no_second_version(registration):
    first, again = registration.register(0.95), registration.register(0.95)
    assert (first.details["version"], again.details["version"]) == ("1", "1")
    assert again.details["promoted"]
    assert again.files == first.files
    assert len(registration.client.search_model_versions("name='denoising-vae'")) == 1


def test_an_old_version_repeated_does_not_dethrone_a_better_champion(registration):
    registration.register(0.92)
    registration.register(0.97)
    assert not registration.register(0.92).details["promoted"]
    assert registration.aliases()["champion"] == "2"


@pytest.mark.parametrize("cut", ["create_model_version", "set_model_version_tag", "set_registered_model_alias"])
def test_killed_before_or_behind_the_version(registration, monkeypatch, cut):
    """An attempt that is cut at any of these calls, then the same again: one version, and the champion."""

    class Killed(BaseException):
        pass

    def kill(*_, **__):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, cut, kill)
        with pytest.raises(Killed):
            registration.register(0.95)
    assert registration.register(0.95).details["promoted"]
    assert len(registration.client.search_model_versions("name='denoising-vae'")) == 1
    assert registration.aliases() == {"candidate": "1", "champion": "1"}


def test_of_two_at_the_same_moment_the_better_is_champion(registration, tmp_path, networks, monkeypatch):
    """Each was compared with the champion before both, and the one that came last had the alias."""
    both, create, alias = Barrier(2), MlflowClient.create_model_version, MlflowClient.set_registered_model_alias

    def create_together(*arguments, **named):
        version = create(*arguments, **named)
        with suppress(BrokenBarrierError):
            both.wait(30)
        return version

    def the_worse_last(self, name, which, version):
        if which == "champion" and self.get_model_version(name, version).tags[f"dvae.metric.{METRIC}"] == "0.95":
            time.sleep(2)
        alias(self, name, which, version)

    registration.register(0.91)
    another = Registration(tmp_path / "another", networks, uri=registration.tracking)
    monkeypatch.setattr(MlflowClient, "create_model_version", create_together)
    monkeypatch.setattr(MlflowClient, "set_registered_model_alias", the_worse_last)
    with ThreadPoolExecutor() as pool:
        worse, better = pool.submit(another.register, 0.95), pool.submit(registration.register, 0.97)
        outcomes = worse.result(), better.result()
    assert registration.aliases()["champion"] == outcomes[1].details["version"]
    assert outcomes[1].details["promoted"]


def test_a_register_that_was_ended_before_its_gate_holds_up_the_next_for_a_while_only(registration, monkeypatch):
    """By a clock that only its waiting moves: how long a register takes here does not matter."""
    now = itertools.count()
    monkeypatch.setattr(register, "time", SimpleNamespace(monotonic=lambda: next(now), sleep=lambda _: next(now)))
    registration.register(0.91)
    registration.client.delete_model_version_tag("denoising-vae", "1", "dvae.decision")
    assert registration.register(0.95).details["promoted"]
    said = list[str]()
    register._await_earlier(registration.client, "denoising-vae", "2", said.append)
    assert said == [
        "waiting for the decision on version 1 of denoising-vae, which was created just before",
        "version 1 of denoising-vae has no decision after 60 s: its register was ended",
    ]


def test_a_version_deleted_from_the_registry_is_made_again(registration):
    registration.register(0.95)
    registration.client.delete_model_version("denoising-vae", "1")
    assert registration.register(0.95).details["version"] == "2"
    assert registration.aliases()["champion"] == "2"


def test_a_version_whose_files_are_lost_is_made_again(registration):
    registration.register(0.95)
    version = registration.client.get_model_version("denoising-vae", "1")
    artifacts = open_storage(registration.client.get_run(version.run_id).info.artifact_uri).local_path()
    assert artifacts is not None
    shutil.rmtree(artifacts)
    assert registration.register(0.95).details["version"] == "2"
    assert registration.aliases()["champion"] == "2"


def test_a_version_whose_run_was_purged_is_made_again(registration):
    registration.register(0.95)
    run_id = registration.client.get_model_version("denoising-vae", "1").run_id
    registration.client.delete_run(run_id)
    registration.client._tracking_client.store._hard_delete_run(run_id)  # as `mlflow gc`
    assert registration.register(0.95).details["version"] == "2"
    assert registration.aliases()["champion"] == "2"


def test_a_version_whose_files_lie_where_this_machine_has_no_keys(registration, monkeypatch):
    def look(*_):
        raise NoCredentialsError

    registration.register(0.95)
    monkeypatch.setattr(MlflowClient, "list_artifacts", look)
    with pytest.raises(PipelineError, match=r"register needs MLflow, and .*version 1.*NoCredentialsError") as caught:
        registration.register(0.95)
    assert "\n" not in str(caught.value)


def test_the_version_carries_lineage_and_metrics_and_lies_in_its_run(registration):
    outcome = registration.register(0.95)
    version = registration.client.get_model_version("denoising-vae", "1")
    assert version.tags[FINGERPRINT_TAG] == registration.fingerprint(0.95)
    assert version.tags["dvae.input.train-sit"] == digest("train-sit")
    assert version.tags["dvae.input.prepare"] == digest("prepare")
    assert float(version.tags["dvae.metric.reconstruction/psnr"]) == 30.5
    assert version.tags["dvae.decision"] == outcome.details["decision"]
    run = registration.client.get_run(version.run_id)
    assert version.source.startswith(run.info.artifact_uri)
    files = {entry.path for entry in registration.client.list_artifacts(version.run_id, "model/artifacts")}
    assert files == {
        f"model/artifacts/{name}"
        for name in ("train-tokenizer.safetensors", "train-sit.safetensors", "model.json", "README.md")
    }
    card = (registration.storage.local_path(f"register/{registration.fingerprint(0.95)[:12]}/README.md")).read_text()
    for word in (
        "Apache-2.0",
        digest("encode"),
        "reconstruction/psnr | 30.5",
        "models:/denoising-vae@champion",
        "digits",
    ):
        assert word in card


def test_a_gate_on_a_metric_nobody_measured(registration):
    with pytest.raises(PipelineError, match=r"reconstruction/lpips is not measured without evaluate\.lpips"):
        registration.register(0.95, metric="reconstruction/lpips")


def test_mlflow_away_is_one_line_and_the_events_stay(tmp_path, networks, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "2")
    registration = Registration(tmp_path, networks, uri=f"http://127.0.0.1:{free_port()}")
    with pytest.raises(PipelineError, match="register needs MLflow") as caught:
        registration.register(0.95)
    assert "\n" not in str(caught.value)
    assert list(registration.storage.list(OUTBOX))


def test_a_full_disk_is_not_told_as_mlflows_fault(registration, monkeypatch):
    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device", "/scratch/weights")

    monkeypatch.setattr(register, "_pack", full)
    with pytest.raises(OSError, match="No space left"):
        registration.register(0.95)


@pytest.fixture
def server(tmp_path):
    """It serves the artifacts too."""
    with running_mlflow(tmp_path) as server:
        yield server


@pytest.mark.slow
def test_against_a_real_server(tmp_path, networks, server):
    registration = Registration(tmp_path, networks, uri=server.uri)
    name, fingerprint = "denoising-vae", registration.fingerprint(0.95)
    assert not has_version(server.uri, name, fingerprint)
    assert registration.register(0.95).details["promoted"]
    assert has_version(server.uri, name, fingerprint)
    assert not has_version(server.uri, "another", fingerprint)
    assert registration.register(0.95).details["version"] == "1"
    assert registration.register(0.97).details["promoted"]
    assert registration.aliases() == {"candidate": "2", "champion": "2"}
    assert aliased_tags(server.uri, name, "champion") == registration.client.get_model_version(name, "2").tags
    assert aliased_tags(server.uri, name, "nobody") is aliased_tags(server.uri, "another", "champion") is None
    assert registration.client.get_model_version(name, "1").source.startswith("mlflow-artifacts:")
    (picture,) = registration.predict({"label": [3], "seed": [0]}, steps=2)
    assert picture.shape == (16, 16, 3)
