"""A client of Ray's Jobs API (HTTP, on the dashboard of a Ray cluster): submit a job, query it, follow its log.

It does not need Ray itself. What to submit, and when to submit again, is decided in `submit.py`.
"""

import os
import re
import ssl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import requests
import websocket

from deploy.answers import NOT_RAY, is_missing, refusal
from deploy.connection import BUNDLE, dashboard_address, websocket_options
from deploy.errors import ConnectError, DeniedError, ProtocolError, StrangerError
from pipeline.errors import PipelineError

_SECONDS = 30.0  # timeout of one request
_SILENCE_SECONDS = 20.0  # without output; then check whether the job still runs
_RUNNING = ("PENDING", "RUNNING")


@dataclass(frozen=True)
class Job:
    """A submitted job, as reported by the dashboard."""

    id: str
    status: str  # PENDING, RUNNING, STOPPED, SUCCEEDED or FAILED
    message: str
    exit_code: int | None  # of the entrypoint; None if it has not exited by itself
    metadata: Mapping[str, str]

    @property
    def running(self) -> bool:
        return self.status in _RUNNING


def token() -> str | None:
    """The cluster's token, from where Ray's clients read it: RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH, ~/.ray/auth_token."""
    if secret := os.environ.get("RAY_AUTH_TOKEN", "").strip():
        return _checked(secret, "RAY_AUTH_TOKEN")
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    try:
        return _checked(path.read_text(errors="replace").strip(), str(path))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DeniedError(
            f"{path}: the token cannot be read ({error.strerror})", "Check the file's permissions."
        ) from error


def _checked(secret: str, source: str) -> str | None:
    """The token. DeniedError if it is malformed; without its text, which a later error message would contain."""
    if secret and not re.fullmatch(r"[\x21-\x7e]+", secret):
        raise DeniedError(f"{source} is not a token: one line of printable ASCII", "Copy it from the cluster's Secret.")
    return secret or None


class _Bearer(requests.auth.AuthBase):
    """Sends the token, and ignores ~/.netrc."""

    def __init__(self, secret: str | None) -> None:
        self._secret = secret

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        if self._secret:
            request.headers["Authorization"] = f"Bearer {self._secret}"
        return request


class Dashboard:
    """A Ray cluster's dashboard. Each call raises ConnectError, DeniedError or ProtocolError."""

    def __init__(self, address: str, secret: str | None) -> None:
        self.address = dashboard_address(address)
        self._auth = _Bearer(secret)
        self._headers = {"Authorization": f"Bearer {secret}"} if secret else {}

    def version(self) -> str:
        """Ray's version on the cluster."""
        answer = self._ask("GET", "/api/version")
        with self._expected_form():
            return str(answer.json()["ray_version"])

    def jobs(self) -> list[Job]:
        """Every submitted job that the cluster still knows."""
        answer = self._ask("GET", "/api/jobs/")
        with self._expected_form():
            return [self._checked_job(one) for one in list(answer.json()) if one.get("submission_id")]

    def job(self, name: str) -> Job | None:
        """The job; None if the cluster does not know it (any more)."""
        answer = self._ask("GET", f"/api/jobs/{name}", missing=True)
        with self._expected_form():
            return None if answer.status_code == 404 else self._checked_job(answer.json())

    def _checked_job(self, row: dict[str, Any]) -> Job:
        """The job as reported, but FAILED if its driver's node is dead.

        A new head that restored its state from Redis reports the old head's jobs as running until the next one is
        submitted.
        """
        job, node = _job(row), row.get("driver_node_id")
        if job.status == "RUNNING" and node and self._is_dead(node):
            return replace(job, status="FAILED", message="the node of its driver is dead")
        return job

    def _is_dead(self, node: str) -> bool:
        """Whether Ray reports this node as dead. False if the query fails: then the reported job status counts."""
        question = urlencode({"filter_keys": "node_id", "filter_predicates": "=", "filter_values": node})
        try:
            rows = self._ask("GET", f"/api/v0/nodes?{question}").json()["data"]["result"]["result"]
            return any(row["state"] == "DEAD" for row in rows)
        except (PipelineError, ValueError, KeyError, TypeError):
            return False

    def submit(self, name: str, entrypoint: str, variables: Mapping[str, str], metadata: Mapping[str, str]) -> bool:
        """Start a job. False if a job of this name exists already."""
        body = {
            "entrypoint": entrypoint,
            "submission_id": name,
            "runtime_env": {"env_vars": dict(variables)},
            "metadata": dict(metadata),
        }
        try:
            self._ask("POST", "/api/jobs/", json=body)
        except ProtocolError as error:  # a dashboard answers 500 if there is such a job
            if self._has(name):
                return False
            raise error from None
        return True

    def _has(self, name: str) -> bool:
        """Whether there is such a job. False if the answer cannot be used: then the first error counts."""
        with suppress(ProtocolError):
            return self.job(name) is not None
        return False

    def log(self, name: str) -> str:
        """The job's whole output so far; empty if it has not started."""
        answer = self._ask("GET", f"/api/jobs/{name}/logs", missing=True)
        with self._expected_form():
            return "" if answer.status_code == 404 else str(answer.json()["logs"] or "")

    def follow(self, name: str) -> Iterator[str]:
        """The job's output from its start, in pieces as it arrives; an empty piece after 20 s without output.

        Ends when the job ends or the connection breaks: `job` tells which. ProtocolError if websockets are blocked.
        """
        connection = self._websocket(f"/api/jobs/{name}/logs/tail")
        if connection is None:
            return
        try:
            while True:
                try:
                    piece = connection.recv()
                except websocket.WebSocketTimeoutException:
                    yield ""
                    continue
                if not piece:  # closed by the server
                    return
                yield str(piece)
        except (websocket.WebSocketException, OSError):
            return
        finally:
            connection.shutdown()  # `close` would wait three seconds for the server's word

    def _websocket(self, path: str) -> websocket.WebSocket | None:
        """A connection to this path; None if the dashboard is away, or does not know the job.

        ProtocolError as `follow`.
        """
        url = self.address + path
        options = {"header": self._headers, "timeout": _SILENCE_SECONDS, "redirect_limit": 0}  # the token stays here
        options.update(websocket_options(url))
        if options.get("proxy_type", "http") != "http":
            raise self._no_websocket(f"not through a proxy by {options['proxy_type']}")
        try:
            return websocket.create_connection(f"ws{url.removeprefix('http')}", **options)
        except websocket.WebSocketBadStatusException as error:
            if error.status_code >= 500 or error.status_code == 404:
                return None
            raise self._no_websocket(str(error.status_code)) from error
        except (ssl.SSLError, websocket.WebSocketProxyException) as error:
            raise self._no_websocket(reason(error)) from error
        except (websocket.WebSocketException, OSError) as error:
            if "Redirect" in str(error):
                raise self._no_websocket("it redirects them") from error
            return None

    def _no_websocket(self, why: str) -> ProtocolError:
        return ProtocolError(
            f"{self.address} does not accept websockets ({why})", "Check for a proxy that blocks them."
        )

    @contextmanager
    def _expected_form(self) -> Iterator[None]:
        """StrangerError for JSON of another form than a dashboard's."""
        try:
            yield
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise StrangerError(f"the server at {self.address} is not a Ray dashboard", NOT_RAY) from error

    def _ask(self, method: str, path: str, missing: bool = False, **body: Any) -> requests.Response:
        """The answer to a successful request; with `missing`, also that there is no such job."""
        try:
            answer = requests.request(
                method, self.address + path, auth=self._auth, timeout=_SECONDS, allow_redirects=False, **body
            )
        except requests.exceptions.SSLError as error:
            raise ProtocolError(
                f"{self.address}: TLS failed ({reason(error)})",
                f"Check that the server speaks https, and set {BUNDLE} to the certificate of its authority.",
            ) from error
        except requests.exceptions.ProxyError as error:
            raise ConnectError(
                f"the proxy on the way to {self.address} does not lead there ({reason(error)})",
                "Correct HTTP_PROXY or HTTPS_PROXY, or name the host in NO_PROXY.",
            ) from error
        except requests.RequestException as error:
            raise ConnectError(
                f"no dashboard answers at {self.address} ({reason(error)})",
                "Check --address (or RAY_API_SERVER_ADDRESS) and the port-forward. "
                "Run `python -m deploy doctor` to find out why a cluster does not start.",
            ) from error
        except ValueError as error:  # raised by requests for a Location that is no address, though it does not go there
            raise StrangerError(f"{self.address} redirects to no address ({reason(error)})", NOT_RAY) from error
        except OSError as error:  # raised by requests if the bundle does not exist
            raise ProtocolError(reason(error), f"Correct {BUNDLE} (or CURL_CA_BUNDLE).") from error
        if missing and is_missing(answer):
            return answer
        refused = refusal(answer, self.address, path, bool(self._headers))
        if refused is not None:
            raise refused
        return answer


def _job(row: dict[str, Any]) -> Job:
    return Job(
        id=row["submission_id"],
        status=row["status"],
        message=" ".join((row.get("message") or "").split()),
        exit_code=row.get("driver_exit_code"),
        metadata=row.get("metadata") or {},
    )


def reason(error: Exception) -> str:
    """The message of the innermost error in a chain, at most 200 characters."""
    inner: BaseException = error
    while inner.__cause__ or inner.__context__:
        inner = inner.__cause__ or inner.__context__ or inner
    return " ".join(str(inner).split())[:200] or type(inner).__name__
