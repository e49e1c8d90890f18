"""Submitting to a real Ray head that wants a token, artifacts on S3: what runs, what attaches, what is refused."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import requests
import yaml

from deploy.jobs import Dashboard
from deploy.submit import run_work, stage_work
from tests.support import PROJECT
from tests.support.ray_head import Head, running_head
from tests.support.trainers import SETS

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory, s3_endpoint: str) -> Iterator[Head]:
    """Its pods have a site file of their own, which says where their mirror is and which pool a stage takes."""
    folder = tmp_path_factory.mktemp("head")
    of_the_cluster = {"mirror": str(folder / "mirror"), "pools": {"prepare": {"pool-cpu": 0.001}}}
    (folder / "site.yaml").write_text(yaml.safe_dump({"root": "s3://elsewhere/x", "cluster": of_the_cluster}))
    keys = {"AWS_ENDPOINT_URL": s3_endpoint, "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}
    pods = {"DVAE_SITE": str(folder / "site.yaml"), "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db"}
    with running_head(folder, {"AWS_DEFAULT_REGION": "us-east-1", **keys, **pods}) as up:
        yield up


def submit(
    head: Head, root: str, *words: str, sets: tuple[str, ...] = (), address: str | None = None, **environment: str
) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "deploy", "submit", *words, "--root", root, "--address", address or head.address]
    command += [word for one in (*SETS, *sets) for word in ("--set", one)]
    return subprocess.Popen(
        command, cwd=PROJECT, env={**os.environ, **head.environment, **environment}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL,
    )  # fmt: skip


def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, error = process.communicate(timeout=300)
    return process.returncode, out, error


def jobs(head: Head, name: str) -> list[str]:
    return sorted(job.id for job in Dashboard(head.address, head.token).jobs() if job.id.startswith(name))


def test_names_fit_kubernetes(tmp_path):
    for work in (
        stage_work("evaluate-tokenizer", "quickstart", None, str(tmp_path)),
        run_work("quickstart", None, None, str(tmp_path)),
    ):
        assert len(f"{work.name}-999") <= 47
        assert work.name.replace("-", "").isalnum()


@pytest.mark.slow
def test_a_stage_runs_there_and_again(head, s3_root):
    code, out, error = ended(submit(head, s3_root, "stage", "prepare", "quickstart"))
    assert code == 0, out + error
    assert "✓ prepare" in out
    (name,) = jobs(head, "prepare-")
    assert f"submitted {name}" in error
    code, out, _ = ended(submit(head, s3_root, "stage", "prepare", "quickstart"))
    assert code == 0
    assert "cached" in out
    assert jobs(head, "prepare-") == [name, f"{name[:-1]}2"]
    plan = subprocess.run(
        [sys.executable, "-m", "pipeline", "plan", "quickstart", "--json", "--root", s3_root],
        cwd=PROJECT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert json.loads(plan.stdout)["stages"][0]["status"] == "cached"


@pytest.mark.slow
def test_ray_job_submit_does_it_too(head, s3_root):
    command = [str(Path(sys.executable).with_name("ray")), "job", "submit", "--address", head.address, "--"]
    command += ["python", "-m", "pipeline", "stage", "prepare", "quickstart", "--root", s3_root]
    done = subprocess.run(command, env={**os.environ, **head.environment}, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "✓ prepare" in done.stdout


LONG = ("tokenizer.steps=2000", "tokenizer.checkpoint_every=20")


def driver_of(head: Head, name: str) -> psutil.Process:
    """The process of a job's driver, once it is there."""
    token = {"Authorization": f"Bearer {head.token}"}
    for _ in range(300):
        told = requests.get(f"{head.address}/api/jobs/{name}", headers=token, timeout=10).json()
        if told.get("driver_info"):
            return psutil.Process(int(told["driver_info"]["pid"]))
        time.sleep(0.2)
    raise AssertionError(f"{name} has no driver")


@pytest.mark.slow
def test_detached_attached_killed_and_taken_up(head, s3_root):
    """One training: Ctrl-C leaves it alone, a second submission attaches, its driver's death is made good."""
    ended(submit(head, s3_root, "stage", "prepare", "quickstart"))
    words = ("stage", "train-tokenizer", "quickstart")
    first = submit(head, s3_root, *words, sets=LONG)
    assert first.stderr
    assert "submitted train-tokenizer-" in first.stderr.readline()
    (name,) = jobs(head, "train-tokenizer-")
    driver = driver_of(head, name)
    first.send_signal(signal.SIGINT)
    code, _, error = ended(first)
    assert code == 130
    assert f"detached: {name} keeps running at {head.address}. " in error
    assert f"`ray job stop {name} --address {head.address}` stops it" in error
    assert driver.is_running()

    second = submit(head, s3_root, *words, "--attempts", "2", sets=LONG)
    assert second.stderr
    assert f"attached to {name}" in second.stderr.readline()
    driver.kill()
    while (line := second.stderr.readline()) and "submitted" not in line:
        pass
    assert f"submitted {name[:-1]}2" in line
    assert jobs(head, "train-tokenizer-") == [name, f"{name[:-1]}2"]
    again = driver_of(head, f"{name[:-1]}2")
    assert again.is_running()
    requests.post(
        f"{head.address}/api/jobs/{name[:-1]}2/stop", headers={"Authorization": f"Bearer {head.token}"}, timeout=10
    ).raise_for_status()
    code, _, error = ended(second)
    assert code == 130
    assert "was stopped" in error


def test_a_jobs_own_failure_is_its_exit_code(head, s3_root):
    code, out, error = ended(submit(head, s3_root, "stage", "sample", "quickstart", "--attempts", "3"))
    assert code == 1
    assert "sample needs train-tokenizer" in out
    assert "submitted" in error
    assert len(jobs(head, "sample-")) == 1, "not tried again: it would end alike"


def test_both_ends_compare_the_fingerprint(head, s3_root, tmp_path):
    """The pods' site file has the last word on what belongs to a place; what changes a result is found out."""
    work = stage_work("prepare", "quickstart", None, s3_root)
    variables = {**work.variables, "DVAE_SITE": str(tmp_path / "site.yaml")}
    (tmp_path / "site.yaml").write_text("seed: 7\n")
    dashboard = Dashboard(head.address, head.token)
    assert dashboard.submit("other-site", work.entrypoint, variables, {})
    while (job := dashboard.job("other-site")) and job.running:
        time.sleep(0.5)
    assert job
    assert job.exit_code == 2
    assert "the site file here changes seed" in dashboard.log("other-site")


@pytest.mark.slow
def test_a_local_run_does_not_join_it(head, tmp_path):
    """Ray would, by the note that every head leaves on its machine, and then refuse for the token."""
    command = [sys.executable, "-m", "pipeline", "stage", "prepare", "quickstart", "--root", str(tmp_path / "runs")]
    noted = {**os.environ, "RAY_TMPDIR": head.scratch}
    done = subprocess.run(command, cwd=PROJECT, env=noted, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr


def test_refusals_are_told_apart(head, s3_root, s3_endpoint, tmp_path):
    words = ("stage", "prepare", "quickstart")
    nobody = "http://127.0.0.1:9"
    cases = [
        ({"address": nobody}, 69, "no dashboard answers at http://127.0.0.1:9"),
        ({"address": "localhost:8265"}, 2, "is not a dashboard address"),
        ({"address": head.address.replace("http", "https")}, 76, "TLS failed"),
        ({"address": s3_endpoint}, 76, "Check that this is the dashboard of Ray"),
        ({"RAY_AUTH_TOKEN": "", "RAY_AUTH_TOKEN_PATH": str(tmp_path / "none")}, 77, "and none was found"),
        ({"RAY_AUTH_TOKEN": "0" * 64}, 77, "refused the token"),
    ]
    for given, expected, what in cases:
        code, _, error = ended(submit(head, s3_root, *words, **given))  # type: ignore[arg-type]
        assert (code, what in error) == (expected, True), (given, code, error)
        assert error.count("\n") == 1, error
    code, _, error = ended(submit(head, "./runs", *words))
    assert code == 2
    assert "a folder on this machine" in error


@pytest.mark.slow
def test_drain_comes_last(head, tmp_path):
    """What a pod's preStop hook calls. The head takes no work any more after it, so this test stays at the end."""
    command = [sys.executable, "-m", "deploy", "drain", "--seconds", "300"]
    (tmp_path / "site.yaml").write_text(f"root: {tmp_path}/root\n")
    place = {"DVAE_SITE": str(tmp_path / "site.yaml"), "RAY_CLUSTER_NAME": "dvae"}
    there = {**os.environ, **head.environment, **place, "RAY_TMPDIR": head.scratch}
    stranger = {**there, "RAY_AUTH_TOKEN": "0" * 64}
    refused = subprocess.run(command, cwd=PROJECT, env=stranger, capture_output=True, text=True, timeout=120)
    assert refused.returncode == 77, refused.stderr
    assert "refused this pod's token" in refused.stderr
    done = subprocess.run(command, cwd=PROJECT, env=there, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert re.search(r"draining node \w+ for \d+ s", done.stderr), done.stderr
    (kept,) = (tmp_path / "root" / ".logs" / "dvae").iterdir()
    assert f"logs uploaded to file://{kept}" in done.stderr
    sessions = sorted(kept.iterdir())
    assert len(sessions) == 2, "the head's, and that of the local run above, which is the latest"
    for session in sessions:
        original = Path(head.scratch, "ray", session.name, "logs", "gcs_server.out")
        assert original.read_bytes().startswith((session / "gcs_server.out").read_bytes())
    assert len(list(sessions[0].glob("job-driver-*.log"))) >= 2, "what the jobs have printed"
    nowhere = subprocess.run(
        [*command[:3], "keep-logs"], cwd=PROJECT, env={**there, "RAY_TMPDIR": str(tmp_path)},
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert nowhere.returncode == 69
    assert "no Ray logs found" in nowhere.stderr
