"""Ray's Jobs API over HTTP: submit, look, follow. The other side is the dashboard of a Ray cluster.

Ray itself is not needed on this side. What is submitted, and when again, is `submit.py`'s.
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
        return _checked(os.environ["RAY_AUTH_TOKEN"].strip(), "RAY_AUTH_TOKEN")
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    try:
        return _checked(path.read_text(errors="replace").strip(), str(path))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DeniedError(f"{path}: the token cannot be read ({error.strerror})", "Check its permissions.") from error


def _checked(secret: str, source: str) -> str | None:
    """DeniedError, without a word of it, for what cannot be a token: it would be shown by an error further on."""
    if secret and not re.fullmatch(r"[\x21-\x7e]+", secret):
        raise DeniedError(f"{source} holds no token: one line of printable signs", "Take it from the cluster's Secret.")
    return secret or None


class _Bearer(requests.auth.AuthBase):
    """The token, and not what a ~/.netrc has for that host."""

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
                f"{address} is no dashboard's address", "Give --address http://HOST:8265, or https://HOST."
            )
        if parts.username or parts.password:
            raise ConfigError("--address holds a user or password", "Take it out; the token goes into RAY_AUTH_TOKEN.")
        self.address = address.rstrip("/")
        self._auth = _Bearer(secret)
        self._headers = {"Authorization": f"Bearer {secret}"} if secret else {}

    def version(self) -> str:
        """Ray's version over there."""
        return str(self._told("/api/version", "ray_version"))

    def jobs(self) -> list[Job]:
        """Every job that was submitted and is still remembered."""
        told = self._told("/api/jobs/", None)
        if not isinstance(told, list):
            raise ProtocolError(f"what answers at {self.address} is no Ray dashboard", _NOT_RAY)
        return [self._seen(one) for one in told if one.get("submission_id")]

    def job(self, name: str) -> Job | None:
        """None when the cluster does not know it (any more)."""
        answer = self._ask("GET", f"/api/jobs/{name}", missing=True)
        return None if answer.status_code == 404 else self._seen(answer.json())

    def _seen(self, told: dict[str, Any]) -> Job:
        """As it is told; but a job whose driver's node is dead has failed.

        A new head that has its state from Redis calls the old one's jobs running until the next one is submitted.
        """
        job, node = _job(told), told.get("driver_node_id")
        if job.status == "RUNNING" and node and self._is_dead(node):
            return replace(job, status="FAILED", message="the node of its driver is gone")
        return job

    def _is_dead(self, node: str) -> bool:
        """Has Ray given this node up? False also where that cannot be asked: what is said of the job counts then."""
        question = urlencode({"filter_keys": "node_id", "filter_predicates": "=", "filter_values": node})
        try:
            rows = self._ask("GET", f"/api/v0/nodes?{question}").json()["data"]["result"]["result"]
            return any(row["state"] == "DEAD" for row in rows)
        except (PipelineError, ValueError, KeyError, TypeError):
            return False

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

        Ends with the job, or with the connection: ask `job` which it was. ProtocolError when no websocket gets through.
        """
        scheme, rest = self.address.split("://", 1)
        url = f"{'wss' if scheme == 'https' else 'ws'}://{rest}/api/jobs/{name}/logs/tail"
        options: dict[str, Any] = {"header": self._headers, "timeout": _SILENCE_SECONDS}
        bundle = os.environ.get("REQUESTS_CA_BUNDLE")  # one variable for both of our clients
        if scheme == "https" and bundle:
            options["sslopt"] = {"ca_cert_path" if Path(bundle).is_dir() else "ca_certs": bundle}
        try:
            connection = websocket.create_connection(url, **options)
        except websocket.WebSocketBadStatusException as error:
            if error.status_code >= 500 or error.status_code == 404:  # the head is being replaced, or forgets the job
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
                if not piece:  # closed over there
                    return
                yield str(piece)
        except (websocket.WebSocketException, OSError):
            return
        finally:
            connection.close()

    def _no_websocket(self, why: str) -> ProtocolError:
        return ProtocolError(f"{self.address} lets no websocket through ({why})", "Is there a proxy that refuses it?")

    def _told(self, path: str, key: str | None) -> Any:
        """What is answered in JSON, or one part of it. ProtocolError where it is of another form."""
        try:
            content = self._ask("GET", path).json()
            return content if key is None else content[key]
        except (ValueError, KeyError, TypeError) as error:
            raise ProtocolError(f"what answers at {self.address} is no Ray dashboard", _NOT_RAY) from error

    def _ask(self, method: str, path: str, missing: bool = False, **body: Any) -> requests.Response:
        """The answer, if it is a good one; with `missing` a 404 is one too."""
        try:
            answer = requests.request(
                method, self.address + path, auth=self._auth, timeout=_SECONDS, allow_redirects=False, **body
            )
        except requests.exceptions.SSLError as error:
            raise ProtocolError(
                f"{self.address}: TLS failed ({reason(error)})",
                "Is it https at all? Name its authority's certificate by REQUESTS_CA_BUNDLE.",
            ) from error
        except requests.RequestException as error:
            raise ConnectError(
                f"no dashboard answers at {self.address} ({reason(error)})",
                "Is its port forwarded? Say --address or RAY_API_SERVER_ADDRESS. What keeps a cluster from coming up, "
                "`python -m deploy doctor` says.",
            ) from error
        except OSError as error:  # requests' own for a bundle that is not there
            raise ProtocolError(reason(error), "Correct REQUESTS_CA_BUNDLE.") from error
        if answer.status_code == 404 and missing:
            return answer
        self._refuse(answer, method, path)
        if "json" not in answer.headers.get("Content-Type", ""):
            raise ProtocolError(f"what answers at {self.address} is no Ray dashboard", _NOT_RAY)
        return answer

    def _refuse(self, answer: requests.Response, method: str, path: str) -> None:
        """Raise what a status other than 200 means."""
        status = answer.status_code
        if status == 401 and not self._headers:
            raise DeniedError(
                f"{self.address} wants a token, and none was found",
                "Set RAY_AUTH_TOKEN, or RAY_AUTH_TOKEN_PATH to a file with it.",
            )
        if status in (401, 403):
            raise DeniedError(
                f"{self.address} refused the token ({status})",
                "Is it this cluster's? See RAY_AUTH_TOKEN; or is it a proxy that refuses (HTTP_PROXY, NO_PROXY)?",
            )
        if status in (429, 502, 503, 504) or (status == 500 and method == "GET"):
            raise ConnectError(f"{self.address} answers {status}: the head is not there", "Wait, or look at its pod.")
        # Whoever would start the job is not there yet, or not any more: a head comes up, or is on its way out.
        if status == 500 and re.search(r"No available agent|aiohttp\.client_exceptions", answer.text):
            raise ConnectError(f"{self.address} takes no jobs now", "Wait, then try again.")
        if status != 200:
            text = " ".join(answer.text.split())
            raise ProtocolError(f"{method} {self.address}{path} answered {status}: {text[-200:]}", _NOT_RAY)


_NOT_RAY = "Is this the dashboard of a Ray of version 2.55 or newer?"


def _job(told: dict[str, Any]) -> Job:
    return Job(
        id=told["submission_id"],
        status=told["status"],
        message=" ".join((told.get("message") or "").split()),
        exit_code=told.get("driver_exit_code"),
        metadata=told.get("metadata") or {},
    )


def reason(error: Exception) -> str:
    """The innermost word of a chain of wrapped errors."""
    inner: BaseException = error
    while inner.__cause__ or inner.__context__:
        inner = inner.__cause__ or inner.__context__ or inner
    return " ".join(str(inner).split())[:200] or type(inner).__name__
