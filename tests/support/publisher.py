"""A publisher's server for tests: files by path, with ranges, which can cut, refuse or send something else."""

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Publisher:
    """What it has, how it behaves, and what it was asked."""

    url: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    ranges: bool = True
    cuts: list[int] = field(default_factory=list)
    """After so many bytes each of the next answers ends."""
    statuses: list[int] = field(default_factory=list)
    """With which each of the next requests is refused."""
    asked: list[str] = field(default_factory=list)
    """The Range of every request, or an empty string."""


@contextmanager
def publishing() -> Iterator[Publisher]:
    publisher = Publisher()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            wanted = self.headers.get("Range", "")
            publisher.asked.append(wanted)
            if publisher.statuses:
                self.send_error(publisher.statuses.pop(0))
                return
            if self.path not in publisher.files:
                self.send_error(404)
                return
            data, start = publisher.files[self.path], 0
            if publisher.ranges and (found := re.fullmatch(r"bytes=(\d+)-", wanted)):
                start = int(found[1])
                if start >= len(data):
                    self.send_error(416)
                    return
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(data) - start))
            self.end_headers()
            length = publisher.cuts.pop(0) if publisher.cuts else len(data)
            self.wfile.write(data[start : start + length])

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    publisher.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield publisher
    server.shutdown()
    server.server_close()
