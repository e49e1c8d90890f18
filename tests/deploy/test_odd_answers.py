"""Dashboards, tokens and templates that are not as they should be: one line each, never a traceback, never a secret."""

import http.server
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

import deploy.submit
from deploy import rayjob
from deploy.errors import BusyError, ConnectError, DeniedError, ProtocolError
from deploy.jobs import Dashboard, token
from deploy.kube import pods_refused
from deploy.retrying import Retrying
from deploy.submit import check_root, stage_work
from pipeline.errors import ConfigError
from tests.support import PROJECT
from tests.support.chart import named, rendered


class Stub(http.server.BaseHTTPRequestHandler):
    """Answers every question with `status` and `body`, and remembers what came in its headers."""

    status, body, seen = 200, b"[]", dict[str, str]()

    def do_GET(self) -> None:
        type(self).seen = dict(self.headers)
        self.send_response(self.status)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(self.body)

    do_POST = do_GET

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Stub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


@pytest.mark.parametrize("body", [b"no json", b'{"x": 1}', b"[]", b"3"])
def test_json_that_is_no_dashboards(stub, monkeypatch, body):
    monkeypatch.setattr(Stub, "body", body)
    with pytest.raises(ProtocolError, match="is not a Ray dashboard"):
        Dashboard(stub, None).version()


@pytest.mark.parametrize(
    ("status", "kind"), [(500, ConnectError), (429, ConnectError), (503, ConnectError), (401, DeniedError)]
)
def test_statuses_are_told_apart(stub, monkeypatch, status, kind):
    monkeypatch.setattr(Stub, "status", status)
    with pytest.raises(kind):
        Dashboard(stub, "t").jobs()


@pytest.mark.parametrize(
    "told",
    [
        "RuntimeError: No available agent to submit job, please try again later.",
        "aiohttp.client_exceptions.ClientConnectorError: Cannot connect to host 10.244.0.41:52365 ssl:default [Connect "
        "call failed ('10.244.0.41', 52365)]",
        "aiohttp.client_exceptions.ServerDisconnectedError: Server disconnected",
    ],
)
def test_a_head_that_comes_or_goes_takes_no_jobs(stub, monkeypatch, told):
    monkeypatch.setattr(Stub, "status", 500)
    monkeypatch.setattr(Stub, "body", f"Traceback (most recent call last):\n  raise\n{told}\n".encode())
    with pytest.raises(ConnectError, match="does not accept jobs now"):
        Dashboard(stub, "t").submit("a-1", "true", {}, {})


class NoWebsocket(Stub):
    """A dashboard behind a proxy that knows no websocket: each look at the job finds more in its log."""

    looks, refuses = 0, 403

    def do_GET(self) -> None:
        if self.path.endswith("/logs/tail"):
            return self.send_error(self.refuses)
        if self.path.endswith("/logs"):
            self.body = json.dumps({"logs": "".join(f"line {n}\n" for n in range(self.looks))}).encode()
        else:
            type(self).looks += 1
            state = "RUNNING" if self.looks < 4 else "SUCCEEDED"
            self.body = json.dumps({"submission_id": "a-1", "status": state, "driver_exit_code": 0}).encode()
        return super().do_GET()


@pytest.mark.parametrize(
    ("status", "told"),
    [(403, "does not accept websockets (403"), (502, "no websocket shows the log: it is")],
)
def test_a_log_comes_in_parts_where_no_websocket_gets_through(monkeypatch, status, told):
    """A proxy may refuse it, or fail at it as if the dashboard were away, which it is not to other questions."""
    monkeypatch.setattr(deploy.submit, "_PART_SECONDS", 0.1)
    monkeypatch.setattr(deploy.submit, "POLL_SECONDS", 0.1)
    monkeypatch.setattr(deploy.submit, "_SILENT_TRIES", 1)
    monkeypatch.setattr(NoWebsocket, "refuses", status)
    monkeypatch.setattr(NoWebsocket, "looks", 0)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), NoWebsocket)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    said, printed = list[str](), list[str]()
    dashboard = Dashboard(f"http://127.0.0.1:{server.server_port}", None)
    job = deploy.submit._follow(dashboard, "a-1", said.append, printed.append, Retrying(dashboard.address, said.append))
    server.shutdown()
    assert job
    assert job.status == "SUCCEEDED"
    assert printed == [f"line {n}\n" for n in range(4)], "each once, while it grows"
    assert len(said) == 1
    assert told in said[0]


def test_a_netrc_does_not_replace_the_token(stub, monkeypatch, tmp_path):
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login me password secret\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    Dashboard(stub, "the-token").jobs()
    assert Stub.seen["Authorization"] == "Bearer the-token"


@pytest.mark.parametrize("content", [b"a\nb", "tökén".encode(), b"\xff\xfe\x00"])
def test_what_is_no_token_is_not_shown(monkeypatch, tmp_path, content):
    (tmp_path / "token").write_bytes(content)
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
    with pytest.raises(DeniedError, match="is not a token") as caught:
        token()
    assert str(tmp_path / "token") in str(caught.value)


@pytest.mark.parametrize(
    "address",
    ["", "auto", "localhost:8265", "http://[::1", "ftp://h", "http://h:abc", "http://h:99999", "http://u:geheim@h:1"],
)
def test_addresses_that_are_none(address):
    with pytest.raises(ConfigError) as caught:
        Dashboard(address, None)
    assert "geheim" not in str(caught.value)


def test_the_same_work_for_another_root(tmp_path):
    work = stage_work("prepare", "quickstart", None, str(tmp_path / "one"))
    check_root("prepare-1", (tmp_path / "one").as_uri(), work)
    with pytest.raises(BusyError, match="for the root"):
        check_root("prepare-1", (tmp_path / "two").as_uri(), work)


def template() -> dict[str, Any]:
    made: dict[str, Any] = yaml.safe_load(named(rendered("trial"), "ConfigMap", "-rayjob")["data"]["rayjob.yaml"])
    return made


def without(*path: Any) -> str:
    made = template()
    here: Any = made
    for key in path[:-1]:
        here = here[key]
    del here[path[-1]]
    return yaml.safe_dump(made)


HEAD = ("spec", "rayClusterSpec", "headGroupSpec", "template", "spec", "containers", 0)


@pytest.mark.parametrize(
    "text",
    [
        "", "3", "[]", "kind: Pod", "a: [", "kind: ConfigMap\ndata:", "kind: ConfigMap\ndata: {rayjob.yaml: 3}",
        "kind: ConfigMap\ndata: {rayjob.yaml: 'a: ['}", without("metadata"), without("metadata", "annotations"),
        without("metadata", "labels"), without("spec"), without(*HEAD, "env"),
        without("spec", "rayClusterSpec", "workerGroupSpecs"),
        json.dumps({**template(), "metadata": {"labels": {}, "annotations": {rayjob.POOLS: "no json"}}}),
        json.dumps({**template(), "metadata": {"labels": {}, "annotations": {rayjob.POOLS: "{}"}}}),
    ],
)  # fmt: skip
def test_templates_that_are_none(text):
    with pytest.raises(ConfigError, match="is not the chart's RayJob") as caught:
        rayjob.parse_template(text, "file.yaml")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"a: [", b"\xff\xfe", b"- 1", b"{}", b"kind: Config\ncontexts: 3"])
def test_kubeconfigs_that_are_none(tmp_path, content):
    (tmp_path / "config").write_bytes(content)
    command = [sys.executable, "-m", "deploy", "rayjob", "stage", "prepare", "quickstart", "--root", "/r"]
    done = subprocess.run(
        command, cwd=PROJECT, env={**os.environ, "KUBECONFIG": str(tmp_path / "config")}, capture_output=True, text=True
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    assert "no usable kubeconfig" in done.stderr


def test_pods_that_are_refused_are_told_in_kubernetes_words():
    """KubeRay joins its own word for it and the API server's by a line end."""
    message = 'FailedCreateHeadPod\npods "r-head" is forbidden: exceeded quota: small, requested: cpu=2, used: cpu=0'
    condition = {"type": "ReplicaFailure", "status": "True", "reason": "FailedCreateHeadPod", "message": message}
    told = pods_refused("r", {"conditions": [condition]})
    assert told is not None
    assert told[0].startswith('r: its pods cannot be created: pods "r-head" is forbidden: exceeded quota: small')
    assert pods_refused("r", {"conditions": [{**condition, "status": "False"}]}) is None
    assert pods_refused("r", {}) is None


class NewHead(Stub):
    """A head that has taken its state over from one that died, as Ray 2.60 answers."""

    nodes: Any = None

    def do_GET(self) -> None:
        job = {
            "submission_id": "x-1",
            "status": "RUNNING",
            "message": "Job is currently running.",
            "driver_node_id": "a",
        }
        answer: Any = {"data": {"result": {"result": self.nodes}}} if "/nodes" in self.path else job
        type(self).body = json.dumps([job] if self.path == "/api/jobs/" else answer).encode()
        super().do_GET()


@pytest.mark.parametrize(
    ("nodes", "running"),
    [
        ([{"node_id": "a", "state": "ALIVE"}], True),
        ([], True),
        (None, True),
        ([{"node_id": "a", "state": "DEAD"}], False),
    ],
)
def test_a_job_whose_head_is_gone_has_failed_whatever_the_new_head_calls_it(monkeypatch, nodes, running):
    monkeypatch.setattr(NewHead, "nodes", nodes)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), NewHead) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        there = Dashboard(f"http://127.0.0.1:{server.server_port}", None)
        job = there.job("x-1")
        assert job is not None
        assert [job.running] == [running] == [one.running for one in there.jobs()]
        if not running:
            assert (job.status, job.message, job.exit_code) == ("FAILED", "the node of its driver is dead", None)
        server.shutdown()
