"""Another Ray over there than here: too old to be submitted to, and what `doctor` says of any difference."""

import http.server
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from deploy import doctor
from deploy.errors import ConnectError
from deploy.findings import Finding, run_checks
from pipeline.config.loading import load_config
from tests.support import PROJECT


class Dashboard(http.server.BaseHTTPRequestHandler):
    """As far as a version goes; it wants a token, but for `open_`."""

    told, open_ = "2.40.0", False

    def do_GET(self) -> None:
        known = self.open_ or "Authorization" in self.headers
        self.send_response(200 if known else 401)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(json.dumps({"ray_version": self.told} if "version" in self.path else []).encode())

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def address(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "x" * 32)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Dashboard)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def ray_of(address: str, root: Path) -> Finding:
    config = load_config("quickstart", None, str(root))
    return {one.what: one for one in run_checks(doctor.checks(ConnectError("-"), None, config, address, False))}["Ray"]


def test_too_old_to_be_submitted_to(address, tmp_path):
    command = [sys.executable, "-m", "deploy", "submit", "stage", "prepare", "quickstart", "--root", str(tmp_path)]
    done = subprocess.run([*command, "--address", address], cwd=PROJECT, env=os.environ, capture_output=True, text=True)
    assert done.returncode == 76
    assert done.stderr.count("\n") == 1
    assert "runs Ray 2.40.0" in done.stderr
    assert "Update Ray to 2.55 or newer" in done.stderr


def test_another_one_than_here(address, tmp_path, monkeypatch):
    monkeypatch.setattr(Dashboard, "told", "2.59.1")
    finding = ray_of(address, tmp_path)
    assert finding.good is False
    assert finding.text == f"{address} runs Ray 2.59.1, but Ray {version('ray')} is installed here"


def test_the_same_one(address, tmp_path, monkeypatch):
    monkeypatch.setattr(Dashboard, "told", version("ray"))
    assert ray_of(address, tmp_path).good is True


def test_one_that_anybody_may_use(address, tmp_path, monkeypatch):
    monkeypatch.setattr(Dashboard, "told", version("ray"))
    monkeypatch.setattr(Dashboard, "open_", True)
    finding = ray_of(address, tmp_path)
    assert finding.good is False
    assert "answers without a token" in finding.text
