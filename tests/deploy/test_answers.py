"""What stands before a dashboard or in its place answers in ways of its own: each is told in a line, with the mend."""

import contextlib
import http.server
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from deploy.errors import ConnectError, DeniedError, ProtocolError, StrangerError
from deploy.jobs import Dashboard
from deploy.retrying import Retrying
from deploy.submit import Work, submit
from pipeline.errors import ConfigError, PipelineError

HTML, JSON, TEXT = "text/html; charset=utf-8", "application/json", "text/plain"
LOGIN = b"<!doctype html>\n<html><head><title>Sign in &amp; go on</title></head><body>token=geheim</body></html>"
NGINX = b"<html>\r\n<head><title>%s</title></head>\r\n<body><center>nginx</center></body></html>"


class Answering(http.server.BaseHTTPRequestHandler):
    """Answers everything in one way, and counts."""

    status, kind, body, location = 200, JSON, b"[]", ""
    seen: list[str]

    def do_GET(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.seen.append(self.path)
        self.send_response(self.status)
        self.send_header("Content-Type", self.kind)
        self.send_header("Content-Length", str(len(self.body)))
        if self.location:
            self.send_header("Location", self.location)
        self.end_headers()
        self.wfile.write(self.body)

    do_POST = do_GET

    def log_message(self, *_: Any) -> None:
        pass


@contextlib.contextmanager
def answering(handler: type[Answering]) -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture
def server() -> Iterator[str]:
    Answering.seen = []
    with answering(Answering) as address:
        yield address


CASES: list[tuple[int, str, bytes, str, type[PipelineError], str]] = [
    (301, HTML, b"", "https://ray.example/api/version", StrangerError,
     "{0} redirects to https://ray.example/api/version (301). Give --address https://ray.example, if you trust that "
     "host."),
    (302, HTML, b"", "https://login.example/oauth2/start?rd=%2Fapi&state=geheim#geheim", StrangerError,
     "{0} redirects to https://login.example/oauth2/start (302). If that is a login: no job can be submitted through "
     "one. Use an address that leads to the dashboard itself, such as that of a port-forward."),
    (307, HTML, b"", "/login", StrangerError, "{0} redirects to {0}/login (307). If that is a login: "),
    (303, HTML, b"", "//me:geheim@sso.example:444/x", StrangerError,
     "{0} redirects to http://sso.example:444/x (303). "),
    (302, HTML, b"", "http://[::1/login?state=geheim", StrangerError,
     "{0} redirects to no address (Invalid IPv6 URL). "),
    (200, HTML, LOGIN, "", StrangerError,
     "{0} answers with a web page: 'Sign in & go on', as a login does. Use an address that leads to the dashboard "),
    (200, TEXT, b"ok", "", StrangerError, "the server at {0} is not a Ray dashboard. Check that this is "),
    (200, JSON, b'{"version": 3}', "", StrangerError, "the server at {0} is not a Ray dashboard. "),
    (401, HTML, NGINX % b"401 Authorization Required", "", DeniedError,
     "{0} answers 401: '401 Authorization Required', which a dashboard would say otherwise: it is a proxy or an "
     "ingress before it that refuses. Go around it (HTTP_PROXY, HTTPS_PROXY, NO_PROXY). "),
    (403, TEXT, b"RBAC: access denied", "", DeniedError, "{0} answers 403: 'RBAC: access denied', which a dashboard "),
    (401, TEXT, b"Unauthorized: Missing authentication token", "", DeniedError, "{0} refused the token (401). "),
    (403, TEXT, b"Forbidden: Invalid authentication token", "", DeniedError, "{0} refused the token (403). "),
    (407, HTML, NGINX % b"407", "", DeniedError,
     "the proxy on the way to {0} asks for a login (407: '407'). Write HTTP_PROXY or HTTPS_PROXY as http://USER:"),
    (502, HTML, NGINX % b"502 Bad Gateway", "", ConnectError,
     "{0} answers 502: '502 Bad Gateway': the head is unavailable. Wait, or check the head's pod."),
    (503, TEXT, b"no healthy upstream", "", ConnectError,
     "{0} answers 503: 'no healthy upstream': the head is unavailable. "),
    (504, TEXT, b"", "", ConnectError, "{0} answers 504: the head is unavailable. "),
    (404, HTML, NGINX % b"404 Not Found", "", StrangerError,
     "the server at {0} is not a Ray dashboard: it has no /api/version (404: '404 Not Found'). Check that this is the "
     "dashboard of Ray 2.55 or newer."),
    (400, HTML, NGINX % b"400 The plain HTTP request was sent to HTTPS port", "", ProtocolError,
     "{0} speaks https. Give --address {1}."),
    (400, TEXT, b"Client sent an HTTP request to an HTTPS server.\n", "", ProtocolError, "{0} speaks https. "),
    (418, HTML, NGINX % b"I'm a teapot", "", ProtocolError, "GET {0}/api/version answered 418: 'I'm a teapot'. "),
]  # fmt: skip


@pytest.mark.parametrize(("status", "kind", "body", "location", "error", "line"), CASES)
def test_what_is_no_dashboards_answer(server, monkeypatch, status, kind, body, location, error, line):
    for name, value in (("status", status), ("kind", kind), ("body", body), ("location", location)):
        monkeypatch.setattr(Answering, name, value)
    with pytest.raises(PipelineError) as caught:
        Dashboard(server, "t").version()
    assert str(caught.value).startswith(line.format(server, server.replace("http:", "https:"))), str(caught.value)
    assert type(caught.value) is error
    assert "\n" not in str(caught.value)
    assert "geheim" not in str(caught.value)


def test_a_config_that_a_proxy_finds_too_large(server, monkeypatch):
    monkeypatch.setattr(Answering, "status", 413)
    monkeypatch.setattr(Answering, "kind", HTML)
    monkeypatch.setattr(Answering, "body", NGINX % b"413 Request Entity Too Large")
    with pytest.raises(ProtocolError) as caught:
        Dashboard(server, "t").submit("a-1", "true", {"X": "x" * 70_000}, {})
    line = str(caught.value)
    assert line.startswith(f"{server} does not take requests of 70,1")
    assert "bytes (413: '413 Request Entity Too Large'). Raise the limit of the proxy or ingress before the" in line


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("http://h:8265/#/jobs", "http://h:8265"),
        ("https://h/ray/#/jobs/raysubmit_1?x=y", "https://h/ray"),
        ("http://h:8265/#/", "http://h:8265"),
        ("http://h:8265?x=1", "http://h:8265"),
        ("http://h:8265/api/jobs/", "http://h:8265"),
        ("https://h/ray/api/version", "https://h/ray"),
        ("h:8265", "http://h:8265"),
        ("127.0.0.1:8265", "http://127.0.0.1:8265"),
        ("ray://h:10001", "http://h:8265"),
    ],
)
def test_the_address_that_was_meant(given, meant):
    with pytest.raises(ConfigError) as caught:
        Dashboard(given, None)
    assert str(caught.value).endswith(f"Give --address {meant}.")
    assert Dashboard(meant, None).address == meant


@pytest.mark.parametrize("given", ["http://h:8265/", "http://h:8265//", "http://h:8265"])
def test_a_slash_at_the_end_is_nothing(given):
    assert Dashboard(given, None).address == "http://h:8265"


class Elsewhere(Answering):
    """Redirects the log's websocket to another host."""

    status, location = 302, ""


def test_no_token_follows_a_redirect(server):
    """A websocket client would take it along, to whatever host."""
    Elsewhere.location, Elsewhere.seen = f"{server.replace('http', 'ws')}/stolen", []
    with (
        answering(Elsewhere) as address,
        pytest.raises(ProtocolError, match=r"does not accept websockets \(it redirects"),
    ):
        list(Dashboard(address, "t").follow("a-1"))
    assert Answering.seen == []


class Gone(Answering):
    """A dashboard that has the job, and then an ingress without a service behind it, or the dashboard's own 404."""

    last: tuple[int, str, bytes]
    looks = 0

    def do_GET(self) -> None:
        type(self).kind, type(self).status = JSON, 200
        if self.path == "/api/version":
            type(self).body = b'{"ray_version": "2.60.0"}'
        elif self.path == "/api/jobs/":
            type(self).body = b'[{"submission_id": "a-1", "status": "RUNNING"}]'
        else:
            type(self).status, type(self).kind, type(self).body = self.last
        super().do_GET()


def test_a_404_of_an_ingress_does_not_mean_that_the_job_is_gone(monkeypatch):
    """The job would be submitted a second time while it runs."""
    monkeypatch.setattr("deploy.retrying._RETRY_SECONDS", 0.1)
    monkeypatch.setattr("deploy.retrying.POLL_SECONDS", 0.05)
    Gone.last, Gone.seen = (404, HTML, NGINX % b"404 Not Found"), []
    said = list[str]()
    with answering(Gone) as address, pytest.raises(StrangerError) as caught:
        submit(Dashboard(address, None), Work("a", "true", {}, {}), 2, said.append, said.append)
    assert str(caught.value).endswith(" a-1 keeps running meanwhile: the same command attaches to it again.")
    assert [line.split()[0] for line in said] == ["attached", "the"]
    assert said[1].endswith("'404 Not Found'): retrying for up to 0 s")
    Gone.last = (404, TEXT, b"Job a-1 does not exist")
    with answering(Gone) as address:
        assert Dashboard(address, None).job("a-1") is None


def test_a_dashboard_that_stays_away_is_told_with_what_to_do(server, monkeypatch):
    monkeypatch.setattr("deploy.retrying._RETRY_SECONDS", 0.1)
    monkeypatch.setattr("deploy.retrying.POLL_SECONDS", 0.05)
    monkeypatch.setattr(Answering, "status", 503)
    said, begin = list[str](), time.monotonic()
    with pytest.raises(ConnectError, match="the head is unavailable"):
        Retrying(server, said.append)(Dashboard(server, None).jobs)
    assert said == [f"no answer from {server}: retrying for up to 0 s"]
    assert time.monotonic() - begin < 30
