"""What stands between a client and a server: a port-forward that comes and goes, an end of TLS, an HTTP proxy."""

import base64
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

_PIECE = 1 << 16
Reach = Callable[[socket.socket], socket.socket | None]


class Tunnel:
    """Leads a connection to what `reach` opens for it. `close` breaks them all, `open` listens at the port again."""

    def __init__(
        self, reach: Callable[[socket.socket], socket.socket | None], tls: ssl.SSLContext | None = None
    ) -> None:
        self._reach, self._tls = reach, tls
        self._open = list[socket.socket]()
        self.port = 0
        self.open()

    def open(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", self.port))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def close(self) -> None:
        for one in (self._listener, *self._open):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()
        self._open = []

    def _accept(self, listener: socket.socket) -> None:
        with suppress(OSError):  # closed
            while True:
                client, _ = listener.accept()
                threading.Thread(target=self._lead, args=(client,), daemon=True).start()

    def _lead(self, client: socket.socket) -> None:
        with suppress(OSError):
            if self._tls is not None:
                client = self._tls.wrap_socket(client, server_side=True)
            server = self._reach(client)
            if server is None:
                client.close()
                return
            self._open += [client, server]
            threading.Thread(target=_copy, args=(server, client), daemon=True).start()
            _copy(client, server)


def _copy(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while piece := source.recv(_PIECE):
            target.sendall(piece)
    for one in (source, target):
        with suppress(OSError):
            one.shutdown(socket.SHUT_RDWR)


@contextmanager
def port_forward(address: str, certificate: Path | None = None) -> Iterator[Tunnel]:
    """To the server at this http:// address; with a certificate, clients have to speak TLS."""
    parts = urlsplit(address)
    tls = None
    if certificate is not None:
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(certificate)
    tunnel = Tunnel(lambda _: socket.create_connection((str(parts.hostname), int(parts.port or 80))), tls)
    try:
        yield tunnel
    finally:
        tunnel.close()


class HttpProxy:
    """Knows CONNECT alone, and asks for a login if it has one; `asked` are the hosts that clients wanted."""

    def __init__(self, login: str | None = None) -> None:
        self._login, self.asked = login, list[str]()
        self.tunnel = Tunnel(self._connect)

    def _connect(self, client: socket.socket) -> socket.socket | None:
        head = b""
        while b"\r\n\r\n" not in head and (piece := client.recv(_PIECE)):
            head += piece
        method, target = head.decode().split()[:2]
        wanted = base64.b64encode((self._login or "").encode()).decode()
        if self._login and f"Basic {wanted}" not in head.decode():
            client.sendall(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n")
            return None
        if method != "CONNECT":
            client.sendall(b"HTTP/1.1 405 Method Not Allowed\r\nContent-Length: 0\r\n\r\n")
            return None
        self.asked.append(target)
        host, _, port = target.rpartition(":")
        server = socket.create_connection((host, int(port)))
        client.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
        return server


@contextmanager
def http_proxy(login: str | None = None) -> Iterator[HttpProxy]:
    proxy = HttpProxy(login)
    try:
        yield proxy
    finally:
        proxy.tunnel.close()
