"""An HTTP proxy that spoils some of what goes through it, as a network and a busy server do, and counts what it did.

It stands in front of one server and hands requests on as they are, so S3's signatures stay good. As HTTP_PROXY it is
the way to that server by whatever name.
"""

import http.client
import random
import socket
import ssl
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

FAULTS: tuple[str, ...] = (
    "500",  # instead of handing the request on
    "503",  # S3's SlowDown, likewise
    "reset",  # the connection, before the server sees the request
    "lost",  # the connection again, but the server has done what was asked
    "truncated",  # half of the answer's body; of an answer without one, nothing
)
_CODES = {"500": "InternalError", "503": "SlowDown"}
_ONLY_HERE = {"connection", "keep-alive", "expect", "transfer-encoding", "proxy-connection"}


@dataclass(frozen=True)
class Seen:
    """A request that came by."""

    method: str
    path: str
    headers: dict[str, str]  # by names in small letters


class FaultProxy:
    """What is asked of it from the test; `url` is where clients go instead of to the server. With TLS by `pem`."""

    def __init__(self, upstream: str, pem: Path | None = None) -> None:
        parsed = urlparse(upstream)
        self.upstream = (str(parsed.hostname), int(parsed.port or 80))
        self.counts = Counter[str]()  # by fault, and "passed"
        self._lock = threading.Lock()
        self._share, self._kinds, self._random = 0.0, FAULTS, random.Random(0)
        self._outage, self._outage_until = "503", 0.0
        self._next: list[tuple[Callable[[Seen], bool], str]] = []
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.proxy = self
        self.port = self._server.server_port
        self.url = f"{'https' if pem else 'http'}://127.0.0.1:{self.port}"
        if pem:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(pem)
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        threading.Thread(target=self._server.serve_forever, args=(0.02,), name="fault-proxy", daemon=True).start()

    def fail(self, share: float, kinds: tuple[str, ...] = FAULTS, seed: int = 0) -> None:
        """From now on spoil this share of the requests, each in one of these ways."""
        with self._lock:
            self._share, self._kinds, self._random = share, kinds, random.Random(seed)

    def outage(self, seconds: float, fault: str = "503") -> None:
        """From now on spoil everything, in this way."""
        with self._lock:
            self._outage, self._outage_until = fault, time.monotonic() + seconds

    def spoil_next(self, fault: str, when: Callable[[Seen], bool] = lambda _: True, times: int = 1) -> None:
        """Spoil the next requests that are so: one of FAULTS, "STATUS CODE" for an S3 error of that code, or
        "late SECONDS" for an answer that comes so much later."""
        with self._lock:
            self._next += [(when, fault)] * times

    def forget(self) -> None:
        """Spoil none of the next requests any more."""
        with self._lock:
            self._next.clear()

    def fault_for(self, seen: Seen) -> str | None:
        with self._lock:
            fault = self._choose(seen)
            self.counts[fault or "passed"] += 1
        return fault

    def _choose(self, seen: Seen) -> str | None:
        for item in self._next:
            if item[0](seen):
                self._next.remove(item)
                return item[1]
        if time.monotonic() < self._outage_until:
            return self._outage
        return self._random.choice(self._kinds) if self._random.random() < self._share else None

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@contextmanager
def fault_proxy(upstream: str, pem: Path | None = None) -> Iterator[FaultProxy]:
    proxy = FaultProxy(upstream, pem)
    try:
        yield proxy
    finally:
        proxy.close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128
    proxy: FaultProxy

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that break off are nothing to print."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server
    timeout = 60

    def do_any(self) -> None:
        body = self._body()
        headers = {name.lower(): value for name, value in self.headers.items()}
        fault = self.server.proxy.fault_for(Seen(self.command, self.path, headers))
        if fault == "reset":
            self._reset()
        elif fault in (None, "lost", "truncated") or fault.startswith("late"):
            self._hand_on(body, fault)
        else:
            status, _, code = str(fault).partition(" ")
            self._refuse(int(status), code or _CODES[status])

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = do_PATCH = do_OPTIONS = do_any

    def _body(self) -> bytes:
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            parts = []
            while size := int(self.rfile.readline().partition(b";")[0], 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _hand_on(self, body: bytes, fault: str | None) -> None:
        upstream = http.client.HTTPConnection(*self.server.proxy.upstream, timeout=60)
        try:
            path = (
                self.path if self.path.startswith("/") else "/" + self.path.split("/", 3)[3]
            )  # as asked of a HTTP_PROXY
            upstream.putrequest(self.command, path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if name.lower() not in {*_ONLY_HERE, "content-length"}:
                    upstream.putheader(name, value)
            if body or self.command in ("PUT", "POST"):
                upstream.putheader("Content-Length", str(len(body)))
            upstream.endheaders(body or None)
            answer = upstream.getresponse()
            content = answer.read()
        except (OSError, http.client.HTTPException):
            self._reset()  # the server is away: so it looks from here too
            return
        finally:
            upstream.close()
        if fault and fault.startswith("late"):
            time.sleep(float(fault.partition(" ")[2]))
        if fault == "lost" or (fault == "truncated" and len(content) < 2):
            self._reset()
            return
        self._begin_answer(answer, len(content))
        if fault == "truncated":
            self.wfile.write(content[: len(content) // 2])
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
        else:
            self.wfile.write(content)

    def _begin_answer(self, answer: http.client.HTTPResponse, size: int) -> None:
        self.send_response_only(answer.status, answer.reason)
        for name, value in answer.getheaders():
            if name.lower() not in {*_ONLY_HERE, "content-length"}:
                self.send_header(name, value)
        head = self.command == "HEAD"  # it names the size of what it does not send
        length = answer.getheader("Content-Length") if head else str(size)
        if length is not None and answer.status not in (204, 304):
            self.send_header("Content-Length", length)
        self.end_headers()

    def _refuse(self, status: int, code: str) -> None:
        text = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>by the fault proxy</Message></Error>".encode()
        self.send_response_only(status)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Date", self.date_time_string())
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(text)

    def _reset(self) -> None:
        """As a RST, not a polite end."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()
        self.close_connection = True

    def log_message(self, *_: object) -> None:
        """What came by is in the counts."""

    def finish(self) -> None:
        if self.connection.fileno() != -1:
            super().finish()
