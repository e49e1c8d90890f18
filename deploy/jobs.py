"""A client of Ray's Jobs API (HTTP, on the dashboard of a Ray cluster): submit a job, query it, follow its log.

It does not need Ray itself. What to submit, and when to submit again, is decided in `submit.py`.
"""

import os
import re
import ssl
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

import requests
import websocket

from deploy.errors import ConnectError, DeniedError, ProtocolError
from pipeline.errors import ConfigError, PipelineError

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
    if "RAY_AUTH_TOKEN" in os.environ:
        return _checked(os.environ["RAY_AUTH_TOKEN"].strip(), "RAY_AUTH_TOKEN")
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
        try:
            parts = urlsplit(address)
            _ = parts.port
        except ValueError:
            parts = urlsplit("")
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise ConfigError(
                f"{address} is not a dashboard address", "Give --address http://HOST:8265, or https://HOST."
            )
        if parts.username or parts.password:
            raise ConfigError("--address contains a user or password", "Remove it; put the token into RAY_AUTH_TOKEN.")
        self.address = address.rstrip("/")
        self._auth = _Bearer(secret)
        self._headers = {"Authorization": f"Bearer {secret}"} if secret else {}

    def version(self) -> str:
        """Ray's version on the cluster."""
        return str(self._json("/api/version", "ray_version"))

    def jobs(self) -> list[Job]:
        """Every submitted job that the cluster still knows."""
        rows = self._json("/api/jobs/", None)
        if not isinstance(rows, list):
            raise ProtocolError(f"the server at {self.address} is not a Ray dashboard", _NOT_RAY)
        return [self._checked_job(one) for one in rows if one.get("submission_id")]

    def job(self, name: str) -> Job | None:
        """The job; None if the cluster does not know it (any more)."""
        answer = self._ask("GET", f"/api/jobs/{name}", missing=True)
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
        except ProtocolError:
            if self.job(name) is not None:  # the server answers 500 in this case
                return False
            raise
        return True

    def log(self, name: str) -> str:
        """The job's whole output so far; empty if it has not started."""
        answer = self._ask("GET", f"/api/jobs/{name}/logs", missing=True)
        return "" if answer.status_code == 404 else str(answer.json()["logs"] or "")

    def follow(self, name: str) -> Iterator[str]:
        """The job's output from its start, in pieces as it arrives; an empty piece after 20 s without output.

        Ends when the job ends or the connection breaks: `job` tells which. ProtocolError if websockets are blocked.
        """
        scheme, rest = self.address.split("://", 1)
        url = f"{'wss' if scheme == 'https' else 'ws'}://{rest}/api/jobs/{name}/logs/tail"
        options: dict[str, Any] = {"header": self._headers, "timeout": _SILENCE_SECONDS}
        bundle = os.environ.get("REQUESTS_CA_BUNDLE")  # so one variable serves both clients, requests and websocket
        if scheme == "https" and bundle:
            options["sslopt"] = {"ca_cert_path" if Path(bundle).is_dir() else "ca_certs": bundle}
        try:
            connection = websocket.create_connection(url, **options)
        except websocket.WebSocketBadStatusException as error:
            if error.status_code >= 500 or error.status_code == 404:  # the head restarts, or does not know the job
                return
            raise self._no_websocket(str(error.status_code)) from error
        except ssl.SSLError as error:
            raise self._no_websocket(reason(error)) from error
        except (websocket.WebSocketException, OSError):
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
            connection.close()

    def _no_websocket(self, why: str) -> ProtocolError:
        return ProtocolError(
            f"{self.address} does not accept websockets ({why})", "Check for a proxy that blocks them."
        )

    def _json(self, path: str, key: str | None) -> Any:
        """The answer's JSON, or its field `key`. ProtocolError if it has another form."""
        try:
            content = self._ask("GET", path).json()
            return content if key is None else content[key]
        except (ValueError, KeyError, TypeError) as error:
            raise ProtocolError(f"the server at {self.address} is not a Ray dashboard", _NOT_RAY) from error

    def _ask(self, method: str, path: str, missing: bool = False, **body: Any) -> requests.Response:
        """The answer to a successful request; with `missing`, also a 404."""
        try:
            answer = requests.request(
                method, self.address + path, auth=self._auth, timeout=_SECONDS, allow_redirects=False, **body
            )
        except requests.exceptions.SSLError as error:
            raise ProtocolError(
                f"{self.address}: TLS failed ({reason(error)})",
                "Check that the server speaks https, and set REQUESTS_CA_BUNDLE to the certificate of its authority.",
            ) from error
        except requests.RequestException as error:
            raise ConnectError(
                f"no dashboard answers at {self.address} ({reason(error)})",
                "Check --address (or RAY_API_SERVER_ADDRESS) and the port-forward. "
                "Run `python -m deploy doctor` to find out why a cluster does not start.",
            ) from error
        except OSError as error:  # raised by requests if the bundle does not exist
            raise ProtocolError(reason(error), "Correct REQUESTS_CA_BUNDLE.") from error
        if answer.status_code == 404 and missing:
            return answer
        self._refuse(answer, method, path)
        if "json" not in answer.headers.get("Content-Type", ""):
            raise ProtocolError(f"the server at {self.address} is not a Ray dashboard", _NOT_RAY)
        return answer

    def _refuse(self, answer: requests.Response, method: str, path: str) -> None:
        """Raise the error for a status other than 200."""
        status = answer.status_code
        if status == 401 and not self._headers:
            raise DeniedError(
                f"{self.address} requires a token, and none was found",
                "Set RAY_AUTH_TOKEN, or RAY_AUTH_TOKEN_PATH to a file with it.",
            )
        if status in (401, 403):
            raise DeniedError(
                f"{self.address} refused the token ({status})",
                "Set RAY_AUTH_TOKEN to this cluster's token, or bypass a proxy that refuses (HTTP_PROXY, NO_PROXY).",
            )
        if status in (429, 502, 503, 504) or (status == 500 and method == "GET"):
            raise ConnectError(f"{self.address} answers {status}: the head is unavailable", "Wait, or check its pod.")
        # The agent that starts jobs is unavailable: the head is starting or shutting down.
        if status == 500 and re.search(r"No available agent|aiohttp\.client_exceptions", answer.text):
            raise ConnectError(f"{self.address} does not accept jobs now", "Wait, then retry.")
        if status != 200:
            text = " ".join(answer.text.split())
            raise ProtocolError(f"{method} {self.address}{path} answered {status}: {text[-200:]}", _NOT_RAY)


_NOT_RAY = "Check that this is the dashboard of Ray 2.55 or newer."


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
