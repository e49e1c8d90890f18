"""`deploy rayjob` where nothing can be created, or is already: one line each, by its own exit code."""

import base64
import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml

import deploy.__main__
from deploy import rayjob
from deploy.kube import Kube
from deploy.submit import stage_work
from tests.support.api_server import ApiServer, binaries
from tests.support.chart import Object, named
from tests.support.rayjobs import chart, job_options, template
from tests.support.refusals import refusal
from tests.support.secret_file import write_secret
from tests.support.tls import certificate


def refused(kubeconfig: Path, *more: str) -> tuple[int, str]:
    words = ["rayjob", "stage", "prepare", "quickstart", "--root", "/r", *more]
    return refusal(deploy.__main__.main, words, {"KUBECONFIG": str(kubeconfig)})


def altered(given: ApiServer, path: Path, **cluster: str) -> Path:
    content = yaml.safe_load(given.kubeconfig().read_text())
    content["clusters"][0]["cluster"].update(cluster)
    write_secret(path, yaml.safe_dump(content))
    return path


def chart_file(folder: Path) -> Path:
    (folder / "template.yaml").write_text(yaml.safe_dump(named(chart(), "ConfigMap", "-rayjob")))
    return folder / "template.yaml"


def test_refusals_are_told_apart(api_server, tmp_path):
    code, error = refused(tmp_path / "nowhere")
    assert (code, "no usable kubeconfig" in error) == (2, True)
    code, error = refused(api_server.kubeconfig(), "--context", "other")
    assert (code, "other" in error) == (2, True)
    code, error = refused(altered(api_server, tmp_path / "port", server="https://127.0.0.1:abc"))
    assert (code, "is not a server address" in error) == (2, True), error
    away = altered(api_server, tmp_path / "away", server="https://127.0.0.1:9")
    code, error = refused(away)
    assert (code, "no Kubernetes API server answers at https://127.0.0.1:9" in error) == (69, True)
    for authority in (certificate(tmp_path).read_bytes(), b"no certificate"):
        strange = {"certificate-authority-data": base64.b64encode(authority).decode()}
        code, error = refused(altered(api_server, tmp_path / "strange", **strange))
        assert (code, f"{api_server.url}: TLS failed (" in error) == (76, True), error
    right = yaml.safe_load(api_server.kubeconfig().read_text())
    token = right["users"][0]["user"]["token"]
    for text, expected, said in (
        (f"{token}\n", 2, "has no releases"),
        (f"{token}\ngeheim", 77, "contains invalid characters"),
    ):
        right["users"][0]["user"]["token"] = text
        (tmp_path / "line-end").write_text(yaml.safe_dump(right))
        code, error = refused(tmp_path / "line-end", "--namespace", api_server.namespace())
        assert (code, said in error) == (expected, True), error
        assert "geheim" not in error
        assert token not in error
    wrong = yaml.safe_load(api_server.kubeconfig().read_text())
    wrong["users"][0]["user"]["token"] = "0" * 32
    (tmp_path / "wrong").write_text(yaml.safe_dump(wrong))
    code, error = refused(tmp_path / "wrong")
    assert (code, "rejected the credentials" in error) == (77, True)
    wrong["users"][0]["user"] = {"exec": {
        "apiVersion": "client.authentication.k8s.io/v1", "command": "sh", "interactiveMode": "Never",
        "args": ["-c", "echo token has expired >&2; echo see the manual >&2; exit 1"],
    }}  # fmt: skip
    (tmp_path / "plugin").write_text(yaml.safe_dump(wrong))
    code, error = refused(tmp_path / "plugin")
    assert (code, "login failed (exec: process returned 1. token has expired" in error) == (77, True), error
    code, error = refused(api_server.kubeconfig(), "--template", str(chart_file(tmp_path)), "--queue", "")
    assert (code, "--queue: '' is not a valid Kubernetes name" in error) == (2, True), error
    code, error = refused(api_server.kubeconfig(), "--namespace", api_server.namespace())
    assert (code, "has no releases of the chart" in error) == (2, True)
    (tmp_path / "other.yaml").write_text("kind: Pod\n")
    code, error = refused(api_server.kubeconfig(), "--template", str(tmp_path / "other.yaml"))
    assert (code, "is not the chart's RayJob" in error) == (2, True)


def test_no_kuberay(tmp_path):
    programs = binaries()
    if programs is None:
        pytest.skip("no etcd and kube-apiserver: `.ci/kubernetes-binaries build/kubernetes` builds them (needs Go)")
    server = ApiServer(programs, tmp_path)
    server._start_etcd()
    server.start()
    try:
        code, error = refused(server.kubeconfig(), "--template", str(chart_file(tmp_path)))
        assert (code, "has no RayJobs. Install KubeRay 1.6" in error) == (76, True), error
    finally:
        for process in (server._server, server._etcd):
            os.killpg(process.pid, signal.SIGKILL)  # type: ignore[union-attr]


class AtOnce(Kube):
    """Two clients who both see that nobody runs the work, before either creates its RayJob."""

    both = threading.Barrier(2)

    def rayjobs(self, selector: str) -> list[Object]:
        found = super().rayjobs(selector)
        if not found:
            self.both.wait(60)
        return found


def test_two_at_once_share_one_rayjob(api_server, monkeypatch, tmp_path):
    monkeypatch.setenv("KUBECONFIG", str(api_server.kubeconfig()))
    monkeypatch.setattr(rayjob, "POLL_SECONDS", 0.1)
    work, name = stage_work("prepare", "quickstart", None, str(tmp_path)), api_server.namespace()
    with ThreadPoolExecutor(2) as threads:
        both = [
            threads.submit(rayjob._attach_or_create, AtOnce(name, None), template(), work, job_options("prepare"))
            for _ in range(2)
        ]
    assert {one.result()[0] for one in both} == {f"{work.name}-1"}
    assert sorted(one.result()[1].split()[0] for one in both) == ["attached", "created"]
    assert len(Kube(name, None).rayjobs("")) == 1
