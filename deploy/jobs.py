"""Ray's Jobs API over HTTP: submit, look, follow. The other side is the dashboard of a Ray cluster.

Ray itself is not needed on this side. What is submitted, and when again, is `submit.py`'s.
"""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import requests
import websocket

from deploy.errors import ConnectError, DeniedError, ProtocolError

_SECONDS = 30.0  # for an answer
_SILENCE_SECONDS = 20.0  # after which a silent log is asked whether its job still runs
_RUNNING = ("PENDING", "RUNNING")


@dataclass(frozen=True)
class Job:
    """A submitted job, as the dashboard tells it."""

    id: str
    status: str  # PENDING, RUNNING, STOPPED, SUCCEEDED or FAILED
    message: str
    exit_code: int | None  # of the entrypoint; None when it has not ended by itself
    metadata: Mapping[str, str]

    @property
    def running(self) -> bool:
        return self.status in _RUNNING


def token() -> str | None:
    """The cluster's token, where Ray's own clients look: RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH, ~/.ray/auth_token."""
    if "RAY_AUTH_TOKEN" in os.environ:
        return os.environ["RAY_AUTH_TOKEN"].strip() or None
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    try:
        return path.read_text().strip() or None
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DeniedError(f"{path}: the token cannot be read ({error.strerror})", "Check its permissions.") from error


class Dashboard:
    """A Ray cluster's dashboard. Each call raises ConnectError, DeniedError or ProtocolError."""

    def __init__(self, address: str, secret: str | None) -> None:
        if urlsplit(address).scheme not in ("http", "https") or not urlsplit(address).netloc:
            raise ConnectError(
                f"{address} is no dashboard's address", "Give --address http://HOST:8265, or https://HOST."
            )
        self.address = address.rstrip("/")
        self._headers = {"Authorization": f"Bearer {secret}"} if secret else {}

    def version(self) -> str:
        """Ray's version over there."""
        return str(self._ask("GET", "/api/version").json()["ray_version"])

    def jobs(self) -> list[Job]:
        """Every job that was submitted and is still remembered."""
        return [_job(told) for told in self._ask("GET", "/api/jobs/").json() if told.get("submission_id")]

    def job(self, name: str) -> Job | None:
        """None when the cluster does not know it (any more)."""
        answer = self._ask("GET", f"/api/jobs/{name}", missing=True)
        return None if answer.status_code == 404 else _job(answer.json())

    def submit(self, name: str, entrypoint: str, variables: Mapping[str, str], metadata: Mapping[str, str]) -> bool:
        """Start a job. False when there has been one of this name."""
        body = {
            "entrypoint": entrypoint,
            "submission_id": name,
            "runtime_env": {"env_vars": dict(variables)},
            "metadata": dict(metadata),
        }
        try:
            self._ask("POST", "/api/jobs/", json=body)
        except ProtocolError:
            if self.job(name) is not None:  # the server has a status 500 for that
                return False
            raise
        return True

    def log(self, name: str) -> str:
        """All that the job has printed; empty when it has not begun."""
        answer = self._ask("GET", f"/api/jobs/{name}/logs", missing=True)
        return "" if answer.status_code == 404 else str(answer.json()["logs"] or "")

    def follow(self, name: str) -> Iterator[str]:
        """What the job prints, from its beginning, in pieces as it comes; an empty piece after a while of silence.

        Ends with the job, or with the connection: ask `job` which it was.
        """
        scheme, rest = self.address.split("://", 1)
        url = f"{'wss' if scheme == 'https' else 'ws'}://{rest}/api/jobs/{name}/logs/tail"
        options: dict[str, Any] = {"header": self._headers, "timeout": _SILENCE_SECONDS}
        if scheme == "https" and "REQUESTS_CA_BUNDLE" in os.environ:  # one variable for both of our clients
            options["sslopt"] = {"ca_certs": os.environ["REQUESTS_CA_BUNDLE"]}
        try:
            connection = websocket.create_connection(url, **options)
        except (websocket.WebSocketException, OSError):
            return
        try:
            while True:
                try:
                    piece = connection.recv()
                except websocket.WebSocketTimeoutException:
                    yield ""
                    continue
                if not piece:  # closed over there
                    return
                yield str(piece)
        except (websocket.WebSocketException, OSError):
            return
        finally:
            connection.close()

    def _ask(self, method: str, path: str, missing: bool = False, **body: Any) -> requests.Response:
        """The answer, if it is a good one; with `missing` a 404 is one too."""
        try:
            answer = requests.request(
                method, self.address + path, headers=self._headers, timeout=_SECONDS, allow_redirects=False, **body
            )
        except requests.exceptions.SSLError as error:
            raise ProtocolError(
                f"{self.address}: TLS failed ({_reason(error)})",
                "Is it https at all? Name its authority's certificate by REQUESTS_CA_BUNDLE.",
            ) from error
        except requests.RequestException as error:
            raise ConnectError(
                f"no dashboard answers at {self.address} ({_reason(error)})",
                "Is the cluster up, and its port forwarded? Say --address or RAY_API_SERVER_ADDRESS.",
            ) from error
        status = answer.status_code
        if status == 401:
            raise DeniedError(
                f"{self.address} wants a token, and none was found",
                "Set RAY_AUTH_TOKEN, or RAY_AUTH_TOKEN_PATH to a file with it.",
            )
        if status == 403:
            raise DeniedError(f"{self.address} refused the token", "Is it this cluster's? See RAY_AUTH_TOKEN.")
        if status in (502, 503, 504):
            raise ConnectError(f"{self.address} answers {status}: the head is not there", "Wait, or look at its pod.")
        if status == 404 and missing:
            return answer
        if status != 200:
            text = " ".join(answer.text.split())
            raise ProtocolError(f"{method} {self.address}{path} answered {status}: {text[-200:]}", _NOT_RAY)
        if "json" not in answer.headers.get("Content-Type", ""):
            raise ProtocolError(f"what answers at {self.address} is no Ray dashboard", _NOT_RAY)
        return answer


_NOT_RAY = "Is this the dashboard of a Ray of version 2.55 or newer?"


def _job(told: dict[str, Any]) -> Job:
    return Job(
        id=told["submission_id"],
        status=told["status"],
        message=" ".join((told.get("message") or "").split()),
        exit_code=told.get("driver_exit_code"),
        metadata=told.get("metadata") or {},
    )


def _reason(error: Exception) -> str:
    """The innermost word of a chain of wrapped errors."""
    inner: BaseException = error
    while inner.__cause__ or inner.__context__:
        inner = inner.__cause__ or inner.__context__ or inner
    return " ".join(str(inner).split())[:200] or type(inner).__name__
