"""The quickstart, a job a stage, by Ray's own command from outside; artifacts on S3, figures in MLflow."""

import json

import pytest
from mlflow import MlflowClient

from pipeline.tracking.registry import champion
from tests.cluster.installation import RELEASE, Installation
from tests.support.stages import PLAIN

pytestmark = pytest.mark.slow


def test_every_stage_ends_well(quickstart: dict[str, str]):
    for stage in PLAIN:
        assert f"✓ {stage}" in quickstart[stage]


def test_artifacts_lie_at_the_root(place: Installation, quickstart: dict[str, str]):
    listed = place.bash('python -m pipeline artifact ls --root "$ROOT"')
    for stage in PLAIN:
        assert f"{stage}/" in listed
    checked = place.bash('python -m pipeline artifact verify --root "$ROOT"').splitlines()
    assert len(checked) >= len(PLAIN)
    assert all(line.endswith("  ok") for line in checked), checked


def test_the_report_reads_it_back(place: Installation, quickstart: dict[str, str]):
    report = json.loads(place.bash('python -m pipeline report quickstart --json --root "$ROOT"'))
    told = json.dumps(report)
    assert "samples/class_accuracy" in told
    assert "reconstruction/psnr" in told


def test_mlflow_shows_runs_and_the_version(place: Installation, quickstart: dict[str, str]):
    uri = place.environment["MLFLOW_TRACKING_URI"]
    client = MlflowClient(uri)
    version = champion(uri, "denoising-vae")
    assert version is not None, "the gate let it pass"
    registered = client.get_model_version("denoising-vae", version)
    parent = client.get_run(client.get_run(registered.run_id).data.tags["mlflow.parentRunId"])
    children = client.search_runs([parent.info.experiment_id], f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'")
    by_stage = {run.data.tags["dvae.stage"]: run for run in children}
    assert set(by_stage) == set(PLAIN)
    assert by_stage["evaluate-samples"].data.metrics["samples/class_accuracy"] >= 0.9
    assert client.list_artifacts(by_stage["sample"].info.run_id, "figures")
    assert client.list_artifacts(registered.run_id, "model")


def test_the_documents_first_job_finds_it_all_there(place: Installation, quickstart: dict[str, str]):
    for command in ("ray job submit", "python -m deploy submit"):
        told = place.bash(place.document("6. First job", command))
        for stage in PLAIN:
            assert f"= {stage}" in told, told


def test_mlflow_keeps_it_in_postgres(place: Installation, quickstart: dict[str, str]):
    """Its pod has no volume: a new one knows all the old one knew."""
    before = champion(place.environment["MLFLOW_TRACKING_URI"], "denoising-vae")
    place.kubectl("delete", "pod", "--selector", "app.kubernetes.io/component=mlflow")
    place.kubectl("rollout", "status", f"deployment/{RELEASE}-mlflow", "--timeout=180s")
    place.wait_until_reached()
    assert champion(place.environment["MLFLOW_TRACKING_URI"], "denoising-vae") == before
