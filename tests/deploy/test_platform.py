"""The stages of a run, one job each, on a Ray head that wants a token, with Ceph's S3 and MLflow on PostgreSQL."""

import re
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest
import requests
from mlflow import MlflowClient

from deploy.jobs import Dashboard
from pipeline.tracking.registry import champion
from tests.deploy.test_submit import driver_of, ended, jobs
from tests.support import PROJECT
from tests.support.stages import PLAIN
from tests.support.trainers import SETS

pytestmark = [pytest.mark.slow, pytest.mark.ray]
TINY = [*SETS, "tokenizer.steps=60", "sample.count=20", "sample.steps=4",
        "register.gate.minimum=0"]  # fmt: skip


@pytest.fixture(scope="module")
def names() -> tuple[str, str]:
    """A root and a model of this module's own."""
    return f"s3://dvae/{uuid.uuid4().hex}", f"platform-{uuid.uuid4().hex[:6]}"


def submit(platform, names, *words: str) -> "subprocess.Popen[str]":
    root, model = names
    command = [sys.executable, "-m", "deploy", "submit", *words, "--root", root, "--address", platform.head.address]
    command += [word for one in (*TINY, f"register.name={model}") for word in ("--set", one)]
    return subprocess.Popen(command, cwd=PROJECT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def test_stages_and_a_run_with_a_submitter_that_dies(platform, names):
    """Two stages by themselves, and the others as a run. (Each by itself: the tests of a whole Kubernetes.)"""
    assert ended(submit(platform, names, "stage", "prepare", "quickstart"))[0] == 0
    dies = submit(platform, names, "stage", "train-tokenizer", "quickstart")
    assert dies.stderr
    assert "submitted" in dies.stderr.readline()
    (name,) = jobs(platform.head, "train-tokenizer-")
    driver = driver_of(platform.head, name)
    dies.kill()
    dies.wait()
    assert driver.is_running(), "the job outlives whoever submitted it"
    code, out, error = ended(submit(platform, names, "stage", "train-tokenizer", "quickstart"))
    assert code == 0, (out, error)
    assert "✓ train-tokenizer" in out or "cached" in out
    assert len(jobs(platform.head, "train-tokenizer-")) == 1, "attached, not submitted again"
    code, out, error = ended(submit(platform, names, "run", "quickstart"))
    assert code == 0, (out, error)
    assert [f"✓ {stage}" in out for stage in PLAIN] == [False] * 2 + [True] * 9
    assert champion(platform.tracking, names[1]) == "1"


def test_mlflow_has_one_run_with_a_run_a_stage(platform, names):
    client = MlflowClient(platform.tracking)
    (version,) = client.search_model_versions(f"name='{names[1]}'")
    assert sorted(client.get_registered_model(names[1]).aliases) == ["candidate", "champion"]
    register = client.get_run(version.run_id)
    parent = client.get_run(register.data.tags["mlflow.parentRunId"])
    assert parent.info.status == "FINISHED"
    (experiment,) = [parent.info.experiment_id]
    children = client.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'")
    assert sorted(run.data.tags["dvae.stage"] for run in children) == sorted(PLAIN), "nested under one"
    assert {run.info.status for run in children} == {"FINISHED"}
    by_stage = {run.data.tags["dvae.stage"]: run.info.run_id for run in children}
    steps = [metric.step for metric in client.get_metric_history(by_stage["train-tokenizer"], "tokenizer/loss")]
    assert steps == sorted(set(steps)), "each once"
    assert steps[-1] == 60
    for stage, folder in (("sample", "figures"), ("analyze", "figures"), ("evaluate-tokenizer", "figures")):
        assert client.list_artifacts(by_stage[stage], folder), stage
    assert client.list_artifacts(version.run_id, "model")


def test_by_rays_own_command(platform, names):
    command = [str(Path(sys.executable).with_name("ray")), "job", "submit", "--address", platform.head.address, "--",
               "python", "-m", "pipeline", "stage", "prepare", "quickstart", "--root", names[0]]  # fmt: skip
    done = subprocess.run(command, text=True, capture_output=True, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "= prepare" in done.stdout, "cached: it is the same artifact"


def test_nobody_submits_without_the_token(platform, names, monkeypatch):
    for token in ("", "0" * 64):
        monkeypatch.setenv("RAY_AUTH_TOKEN", token)
        monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", "/nowhere")
        before = len(Dashboard(platform.head.address, platform.head.token).jobs())
        code, _, error = ended(submit(platform, names, "stage", "prepare", "quickstart"))
        assert (code, error.count("\n")) == (77, 1), error
        assert len(Dashboard(platform.head.address, platform.head.token).jobs()) == before


def test_a_gauge_set_once_is_there_as_long_as_its_process(platform, tmp_path):
    """Ray's exporter forgets what was not set for a while: a stage that logs every minute must not flicker."""
    script = tmp_path / "train.py"
    script.write_text(
        "import time, ray\nfrom pipeline.cluster import publish\n"
        "ray.init()\npublish('train-sit', {'loss': 0.5})\ntime.sleep(70)\n"
    )
    dashboard = Dashboard(platform.head.address, platform.head.token)
    assert dashboard.submit("gauge", f"python {script}", {}, {})
    seen: list[bool] = []
    while (job := dashboard.job("gauge")) and job.running:
        text = requests.get(platform.head.metrics, timeout=10).text
        seen.append(bool(re.search(r'^ray_dvae_loss\{.*stage="train-sit".*\} 0.5$', text, re.MULTILINE)))
        time.sleep(2)
    assert job
    assert job.status == "SUCCEEDED", dashboard.log("gauge")
    first = seen.index(True)
    assert len(seen) - first > 20, "more than 40 s"
    assert all(seen[first:-1])


def test_ctrl_c_at_once(platform, names):
    """Before anything was submitted: nothing is left behind."""
    # Ignored here, as in a shell's background, it would be ignored there as well.
    before, submitted = signal.signal(signal.SIGINT, signal.default_int_handler), jobs(platform.head, "run-")
    process = submit(platform, names, "run", "quickstart")
    while "pydantic" not in Path(f"/proc/{process.pid}/maps").read_text():  # the interpreter itself is up
        time.sleep(0.01)
    signal.signal(signal.SIGINT, before)
    process.send_signal(signal.SIGINT)
    code, _, error = ended(process)
    assert code in (130, -signal.SIGINT), error
    assert "keeps running at" not in error
    assert jobs(platform.head, "run-") == submitted
