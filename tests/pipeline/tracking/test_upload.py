"""Uploads through an artifact server of a few lines, which does what those of other stores and proxies do."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import requests
from mlflow.exceptions import MlflowException

from pipeline.tracking import upload
from pipeline.tracking.errors import RefusedError, file_errors
from pipeline.tracking.upload import RunFiles

API = "/api/2.0/mlflow-artifacts"
CONTENT = bytes(range(256)) * 40  # 10,240 bytes


class Handler(BaseHTTPRequestHandler):
    here: "Server"
    protocol_version = "HTTP/1.1"

    def do_PUT(self) -> None:
        body = self._body()
        if not self._is_odd():
            if self.path.startswith("/bucket"):
                self.here.parts[self.path] = body
            else:
                self.here.files[self.path] = body
            self._answer(200, {"ETag": "x"} if self.here.etag else {})

    def do_GET(self) -> None:
        files = [{"path": path, "is_dir": False, "file_size": len(CONTENT)} for path in self.here.listed]
        self._answer(200, {}, json.dumps({"files": files}).encode())

    def do_POST(self) -> None:
        body = json.loads(self._body() or b"{}")
        self.here.asked.append(self.path.removeprefix(API).split("/")[2])
        if self._is_odd():
            return
        if "/mpu/create" in self.path:
            urls = [f"{self.here.url}/bucket/{n}?Signature=SECRET" for n in range(1, body["num_parts"] + 1)]
            parts = [{"url": url, "part_number": n, "headers": {}} for n, url in enumerate(urls, 1)]
            self._answer(200, {}, json.dumps({"upload_id": "1", "credentials": parts}).encode())
        else:
            if "/mpu/complete" in self.path:
                found = [self.here.parts[part["url"].removeprefix(self.here.url)] for part in body["parts"]]
                self.here.files[self.path.replace("mpu/complete", "artifacts") + f"/{body['path']}"] = b"".join(found)
            self._answer(200, {}, b"{}")

    def _is_odd(self) -> bool:
        for word, status in self.here.odd.items():
            if word in self.path and "/moved/" not in self.path:
                moved = {"Location": "/moved" + self.path} if 300 <= status < 400 else {}
                self._answer(status, moved, b'{"message": "odd"}')
                return True
        self.path = self.path.removeprefix("/moved")
        return False

    def _body(self) -> bytes:
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return body
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _answer(self, status: int, headers: dict[str, str], body: bytes = b"") -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None: ...


class Server:
    """What arrived, by path, and what the server answers otherwise than MLflow with S3: status by words in a path."""

    def __init__(self) -> None:
        self.files = dict[str, bytes]()
        self.parts = dict[str, bytes]()
        self.asked = list[str]()
        self.odd = dict[str, int]()
        self.etag = True
        self.listed = list[str]()
        self.httpd = ThreadingHTTPServer(("127.0.0.1", 0), type("Of", (Handler,), {"here": self}))
        self.url = f"http://127.0.0.1:{self.httpd.server_port}"
        self.said = list[str]()
        threading.Thread(target=self.httpd.serve_forever, daemon=True).start()

    def run_files(self, place: str = "") -> RunFiles:
        info = SimpleNamespace(artifact_uri=place or f"{self.url}{API}/artifacts/1/run/artifacts")
        client = SimpleNamespace(tracking_uri=self.url, get_run=lambda _: SimpleNamespace(info=info))
        return RunFiles(client, "run", self.said.append)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setattr(upload, "PART_BYTES", 1024)
    monkeypatch.setattr(upload, "_ANSWER_SECONDS", 3.0)
    server = Server()
    yield server
    server.httpd.shutdown()
    server.httpd.server_close()


def send(server: Server, folder: Path, content: bytes = CONTENT, name: str = "weights") -> bytes | None:
    """What the server has of a file of this content."""
    path = folder / name
    path.write_bytes(content)
    server.run_files().upload(path, "model/data")
    return server.files.get(f"{API}/artifacts/1/run/artifacts/model/data/{name}")


@pytest.mark.parametrize("size", [0, 1, 1023, 1024, 1025, 2048, 10_240])
def test_files_of_all_sizes(server: Server, tmp_path: Path, size: int) -> None:
    assert send(server, tmp_path, CONTENT[:size]) == CONTENT[:size]
    assert server.asked == (["create", "complete"] if size > 1024 else [])


@pytest.mark.parametrize("size", [1000, 10_240])
def test_a_redirect_takes_the_whole_file_along(server: Server, tmp_path: Path, size: int) -> None:
    """As of an ingress that leads from http to https."""
    server.odd = {f"{API}/artifacts/": 308, "/mpu/create": 501}
    assert send(server, tmp_path, CONTENT[:size]) == CONTENT[:size]


def test_a_completion_that_fails_is_none_though_a_file_of_this_size_was_there(server: Server, tmp_path: Path) -> None:
    """Of an attempt with weights of before."""
    server.odd, server.listed = {"/mpu/complete": 500}, ["weights"]
    with pytest.raises(MlflowException, match="500"):
        send(server, tmp_path)


def test_a_store_whose_parts_have_no_tags(server: Server, tmp_path: Path) -> None:
    """As Azure's, which knows them by their addresses."""
    server.etag = False
    assert send(server, tmp_path) == CONTENT
    assert server.asked == ["create", "complete"]


@pytest.mark.parametrize("status", [400, 403, 404, 500, 501])
def test_a_server_that_cannot_sign(server: Server, tmp_path: Path, status: int) -> None:
    """As one whose identity at its store may not, or whose proxy knows no such requests."""
    server.odd = {"/mpu/create": status}
    assert send(server, tmp_path) == CONTENT


@pytest.mark.parametrize("status", [404, 500])
def test_parts_that_cannot_be_removed(server: Server, tmp_path: Path, status: int) -> None:
    server.odd = {"/bucket": 403, "/mpu/abort": status}
    assert send(server, tmp_path) == CONTENT
    assert "SECRET" not in server.said[0]


def test_an_interrupt_leaves_no_parts(server: Server, tmp_path: Path) -> None:
    path = tmp_path / "weights"
    path.write_bytes(CONTENT)

    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        server.run_files().upload(path, "model", interrupt)
    assert server.asked == ["create", "abort"]


def test_a_part_has_no_other_login_and_the_buckets_authority(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """S3 refuses a signed URL with another login besides, and a private one has its authority in boto's variable."""
    (tmp_path / "netrc").write_text("default login anna password SECRET\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("AWS_CA_BUNDLE", "/authority.pem")
    sent, verified = list[requests.PreparedRequest](), list[Any]()
    plain = requests.Session.send

    def send_seen(self: requests.Session, request: requests.PreparedRequest, **rest: Any) -> requests.Response:
        if "/bucket" in str(request.url):
            sent.append(request)
            verified.append(rest["verify"])
        return plain(self, request, **rest)

    monkeypatch.setattr(requests.Session, "send", send_seen)
    assert send(server, tmp_path) == CONTENT
    assert len(sent) == 10
    assert not [request for request in sent if "Authorization" in request.headers]
    assert set(verified) == {"/authority.pem"}


@pytest.mark.parametrize("shared", [True, False])
def test_a_folder_on_the_servers_machine(server: Server, tmp_path: Path, shared: bool) -> None:
    """A server started with a folder for the files names it to its clients, wherever they are."""
    place, path = tmp_path / "artifacts", tmp_path / "weights"
    path.write_bytes(CONTENT)
    server.listed = ["model/weights"] if shared else []
    files = server.run_files(place.as_uri())
    if shared:
        files.upload(path, "model")
        assert (place / "model" / "weights").read_bytes() == CONTENT
        return
    with (
        pytest.raises(RefusedError, match=rf"{place.as_uri()}, did not take .*on the server's machine"),
        file_errors(server.url, path, "weights", files.place),
    ):
        files.upload(path, "model")
    assert not (place / "model" / "weights").exists()
