"""Submitting to a real Ray head that wants a token, artifacts on S3: what runs, what attaches, what is refused."""

import http.server
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import requests
import yaml

import deploy.__main__
import deploy.retrying
import deploy.submit
from deploy.errors import ConnectError, ProtocolError
from deploy.jobs import Dashboard, Job
from deploy.submit import Work, run_work, stage_work
from deploy.submit import submit as submitted
from tests.support import PROJECT
from tests.support.ceph import make_bucket
from tests.support.ray_head import Head, running_head
from tests.support.refusals import refusal
from tests.support.tls import certificate
from tests.support.trainers import SETS
from tests.support.tunnels import http_proxy, port_forward

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory, s3_endpoint: str) -> Iterator[Head]:
    """Its pods have a site file of their own, which says where their mirror is and which pool a stage takes."""
    folder = tmp_path_factory.mktemp("head")
    of_the_cluster = {"mirror": str(folder / "mirror"), "pools": {"prepare": {"pool-cpu": 0.001}}}
    (folder / "site.yaml").write_text(yaml.safe_dump({"root": "s3://elsewhere/x", "cluster": of_the_cluster}))
    keys = {"AWS_ENDPOINT_URL": s3_endpoint, "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}
    make_bucket(keys, "tests")
    pods = {"DVAE_SITE": str(folder / "site.yaml"), "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db"}
    with running_head(folder, {"AWS_DEFAULT_REGION": "us-east-1", **keys, **pods}) as up:
        yield up


ODD = "q3-${HOME} $HOME $(id) `id` ~ %HOME% ${NOBODY} \\u0024 'é\u2028"


@pytest.fixture(scope="module")
def other_site(head: Head, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The name of a job that shows the config which it was sent, and then works under another site file."""
    folder = tmp_path_factory.mktemp("other-site")
    (folder / "odd.yaml").write_text(json.dumps({"extends": "quickstart", "tracking": {"experiment": ODD}}))
    (folder / "site.yaml").write_text("seed: 7\n")
    override = f"tracking.experiment={json.dumps(ODD)}"  # through the shell as well, as a part of the command
    work = stage_work("prepare", str(folder / "odd.yaml"), [override], "s3://tests/odd")
    variables = {**work.variables, "DVAE_SITE": str(folder / "site.yaml")}
    command = f"python -m pipeline config show sent:odd; {work.entrypoint}"
    assert Dashboard(head.address, head.token).submit("other-site", command, variables, work.metadata)
    return "other-site"


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


SUITE = {
    "title": "How many are held out?",
    "until": "prepare",
    "rows": [
        {"name": "fifth", "preset": "quickstart", "set": {"data.validation_share": 0.2}},
        {"name": "wrong", "preset": "quickstart", "set": {"data.classes": 5}},
        {"name": "third", "preset": "quickstart", "set": {"data.validation_share": 0.3}},
    ],
    "columns": [{"name": "images", "metric": "data/train_rows", "digits": 0}],
    "pictures": [],
}


@pytest.mark.slow
def test_a_suite_is_a_job_for_each_run(head, s3_root, tmp_path):
    """Two at once. Interrupted, it leaves its jobs alone, and the same command attaches to them. One fails, and is told
    by its own error and the command that repeats it."""

    def mine() -> list[Job]:
        return [job for job in Dashboard(head.address, head.token).jobs() if job.metadata.get("dvae.root") == s3_root]

    suite, page = tmp_path / "share.yaml", tmp_path / "page"
    suite.write_text(yaml.safe_dump(SUITE))
    words = ("suite", str(suite), "--at-once", "2", "--to", str(page))
    first = submit(head, s3_root, *words)
    deadline = time.monotonic() + 120
    while not mine():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    first.send_signal(signal.SIGINT)
    assert ended(first)[0] == 130

    code, out, error = ended(submit(head, s3_root, *words))
    assert code == 1, out + error
    assert "1 of 3 runs failed" in error
    assert "label 5 is out of range, data.classes is 5" in error
    assert "`python -m deploy submit run quickstart --until prepare " in error
    assert [job.status for job in mine()].count("SUCCEEDED") == 2, "none is done twice"
    assert re.search(r"\| third \| 1,?2\d\d \|", (page / "table.md").read_text())

    made = mine()
    code, out, error = ended(submit(head, s3_root, *words, "--rows", "fifth", "--rows", "third"))
    assert code == 0, out + error
    assert "2 of 2 runs are recorded in s3://" in out
    assert len(mine()) == len(made)


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


@pytest.mark.slow
def test_a_jobs_own_failure_is_its_exit_code(head, s3_root):
    code, out, error = ended(submit(head, s3_root, "stage", "sample", "quickstart", "--attempts", "3"))
    assert code == 1
    assert "sample needs train-tokenizer" in out
    assert "submitted" in error
    assert len(jobs(head, "sample-")) == 1, "not tried again: it would end alike"


class Following(threading.Thread):
    """A submission in this process; `said` and `printed` grow."""

    def __init__(self, dashboard: Dashboard, work: Work) -> None:
        super().__init__(daemon=True)
        self.dashboard, self.work = dashboard, work
        self.said, self.printed, self.code = list[str](), list[str](), -1
        self.start()

    def run(self) -> None:
        self.code = submitted(self.dashboard, self.work, 3, self.said.append, self.printed.append)

    @property
    def lines(self) -> list[str]:
        return [line for line in "".join(self.printed).splitlines() if line.startswith("line ")]


class AtOnce(Dashboard):
    """Two clients who both see that nobody runs the work, before either submits it."""

    both = threading.Barrier(2)

    def jobs(self) -> list[Job]:
        found = super().jobs()
        if not found or not any(job.id.startswith("race-") for job in found):
            self.both.wait(60)
        return found


class DefaultBackend(http.server.BaseHTTPRequestHandler):
    """What an ingress answers while the service behind it has no pod."""

    def do_GET(self) -> None:
        self.send_response(404)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(b"<html><head><title>default backend</title></head></html>")

    def log_message(self, *_: object) -> None:
        pass


def wait_until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.usefixtures("other_site")  # which works meanwhile
def test_two_at_once_and_a_dashboard_that_goes_and_comes(head, monkeypatch):
    """One job for both, and its exit code; each line of its log once, though the way there breaks off in between."""
    for polls in (deploy.submit, deploy.retrying):
        monkeypatch.setattr(polls, "POLL_SECONDS", 0.2)
    work = Work("race-0123456789ab", "for n in $(seq 13); do echo line $n; sleep 0.3; done; exit 7", {}, {})
    with port_forward(head.address) as way:
        by_way = f"http://127.0.0.1:{way.port}"
        both = [Following(AtOnce(address, head.token), work) for address in (head.address, by_way)]
        wait_until(lambda: all(one.lines for one in both))
        way.close()
        wait_until(lambda: any(line.startswith("no answer from") for line in both[1].said))
        with http.server.ThreadingHTTPServer(("127.0.0.1", way.port), DefaultBackend) as other:
            threading.Thread(target=other.serve_forever, args=(0.05,), daemon=True).start()
            wait_until(lambda: any("is not a Ray dashboard: it has no" in line for line in both[1].said))
            other.shutdown()
        way.open()
        for one in both:
            one.join(60)
    assert [one.code for one in both] == [7, 7]
    assert [one.lines for one in both] == [[f"line {n}" for n in range(1, 14)]] * 2
    assert jobs(head, "race-") == ["race-0123456789ab-1"], "not tried again: it would end alike"
    assert sorted(one.said[0].split()[0] for one in both) == ["attached", "submitted"]
    assert len(both[0].said) == 1, "the other one has noticed nothing"


def test_the_config_arrives_as_it_was_sent_and_both_ends_compare_the_fingerprint(head, other_site):
    """The pods' site file has the last word on what belongs to a place; what changes a result is found out."""
    dashboard = Dashboard(head.address, head.token)
    while (job := dashboard.job(other_site)) and job.running:
        time.sleep(0.2)
    assert job
    assert job.exit_code == 2
    log = dashboard.log(other_site)
    assert "the site file here changes seed" in log
    shown = log[log.index("root: s3") : log.index("error: ")]
    assert yaml.safe_load(shown)["tracking"]["experiment"] == ODD


def test_by_tls_and_a_proxy(head, other_site, tmp_path, monkeypatch):
    """Requests and the log's websocket go the same way, by the same variables."""
    pem = certificate(tmp_path)
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    with port_forward(head.address, pem) as server, http_proxy("me:pass word") as proxy:
        there = Dashboard(f"https://127.0.0.1:{server.port}", head.token)
        with pytest.raises(ProtocolError, match=r"TLS failed .*certificate.* set REQUESTS_CA_BUNDLE"):
            there.version()
        monkeypatch.setenv("CURL_CA_BUNDLE", str(tmp_path / "none"))
        with pytest.raises(ProtocolError, match=r"none.* Correct REQUESTS_CA_BUNDLE"):
            there.version()
        monkeypatch.setenv("CURL_CA_BUNDLE", str(pem))
        at = f"127.0.0.1:{proxy.tunnel.port}"
        monkeypatch.setenv("HTTPS_PROXY", f"http://{at}")
        with pytest.raises(ConnectError, match=r"the proxy on the way to .* does not lead there \(.*407"):
            there.version()
        monkeypatch.setenv("HTTPS_PROXY", f"http://me:pass%20word@{at}")
        assert there.version()
        assert proxy.asked == [f"127.0.0.1:{server.port}"]
        assert f"entrypoint for job {other_site}" in next(there.follow(other_site))
        assert proxy.asked == [f"127.0.0.1:{server.port}"] * 2
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        assert f"entrypoint for job {other_site}" in next(there.follow(other_site))
        assert len(proxy.asked) == 2
        monkeypatch.delenv("CURL_CA_BUNDLE")
        with pytest.raises(ProtocolError, match=r"does not accept websockets \(.*certificate"):
            next(there.follow(other_site))


@pytest.mark.slow
def test_a_local_run_does_not_join_it(head, tmp_path):
    """Ray would, by the note that every head leaves on its machine, and then refuse for the token."""
    command = [sys.executable, "-m", "pipeline", "stage", "prepare", "quickstart", "--root", str(tmp_path / "runs")]
    noted = {**os.environ, "RAY_TMPDIR": head.scratch}
    done = subprocess.run(command, cwd=PROJECT, env=noted, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr


def test_refusals_are_told_apart(head, s3_root, s3_endpoint, tmp_path):
    words = ["submit", "stage", "prepare", "quickstart", "--root"]
    nobody = {"RAY_AUTH_TOKEN": "", "RAY_AUTH_TOKEN_PATH": str(tmp_path / "none")}
    cases = [
        ("http://127.0.0.1:9", {}, 69, "no dashboard answers at http://127.0.0.1:9"),
        ("localhost:8265", {}, 2, "is not a dashboard address. Give --address http://localhost:8265."),
        (f"{head.address}/#/jobs", {}, 2, f"that of a page in it. Give --address {head.address}."),
        (head.address.replace("http", "https"), {}, 76, "TLS failed"),
        (f"{head.address}/ray", {}, 76, f"Give --address {head.address}, if no proxy serves the dashboard below /ray."),
        (s3_endpoint, {}, 76, "is not a Ray dashboard"),
        (head.address, nobody, 77, "requires a token, and none was found"),
        (head.address, {"RAY_AUTH_TOKEN": "0" * 64}, 77, "refused the token"),
    ]
    for address, environment, expected, what in cases:
        given = [*words, s3_root, "--address", address]
        code, error = refusal(deploy.__main__.main, given, {**head.environment, **environment})
        assert (code, what in error) == (expected, True), (address, error)
    code, _, error = ended(submit(head, "./runs", *words[1:4]))  # a process, from its beginning to its end
    assert code == 2
    assert "a folder on this machine" in error
    assert error.count("\n") == 1, error


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
