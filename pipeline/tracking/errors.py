"""One-line messages with hints for errors of MLflow; those about a single event are separate from all others."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline.errors import PipelineError
from pipeline.tracking.upload import seconds_for


class TrackingError(PipelineError):
    """MLflow is unavailable, or denies access."""


class RefusedError(TrackingError):
    """MLflow rejects these events for good, but not others."""


_WHERE = "Check tracking.uri and MLFLOW_TRACKING_URI."
# part of the error's code, text and status, as `tracking_error` joins them -> (problem, hint); the first match counts
_MESSAGES = {
    "header value": (  # from http.client and requests, whose text quotes the value
        "the login for MLflow at {uri} contains a line break or another invalid character",
        "Remove it from MLFLOW_TRACKING_TOKEN, MLFLOW_TRACKING_USERNAME or MLFLOW_TRACKING_PASSWORD.",
    ),
    "Invalid Host header": (
        "MLflow at {uri} does not accept requests for this host name (Invalid Host header)",
        "Start it with --allowed-hosts {host} (in the chart: mlflow.allowedHosts), or use a name that it accepts.",
    ),
    "UNAUTHENTICATED": ("MLflow at {uri} {login}", "{set} MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD."),
    "CUSTOMER_UNAUTHORIZED": (
        "MLflow at {uri} {login}",
        "{set} MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD.",
    ),
    "(status 401)": ("MLflow at {uri} {login}", "{set} MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD."),
    "PERMISSION_DENIED": (
        "MLflow at {uri} denies this user write access",
        "Grant the user MLFLOW_TRACKING_USERNAME the permission EDIT on the experiment (tracking.experiment).",
    ),
    "(status 403)": (
        "MLflow at {uri} denies this user write access",
        "Grant the user MLFLOW_TRACKING_USERNAME the permission EDIT on the experiment (tracking.experiment).",
    ),
    "WRONG_VERSION_NUMBER": ("{uri} does not speak TLS", f"Write http:// there, or correct the port. {_WHERE}"),
    "record layer failure": ("{uri} does not speak TLS", f"Write http:// there, or correct the port. {_WHERE}"),
    "Invalid URL": ("{uri} is not a URL", _WHERE),
    "Failed to parse": ("{uri} is not a URL", _WHERE),
    "BadStatusLine": ("the server at {uri} is not MLflow", _WHERE),
    "SSLError": (
        "TLS fails at {uri} ({detail})",
        "Set MLFLOW_TRACKING_SERVER_CERT_PATH to its authority's certificate.",
    ),
    "Failed to resolve": ("the host of {uri} cannot be resolved", _WHERE),
    "Connection refused": ("nothing listens at {uri}", f"Start MLflow. {_WHERE}"),
    "valid JSON": ("the server at {uri} is not MLflow", _WHERE),
    "failed with error code 404": ("the server at {uri} is not MLflow", _WHERE),
    "failed with error code 405": ("the server at {uri} is not MLflow", _WHERE),
}
_EVENT_ERRORS = {
    "BAD_REQUEST",
    "INVALID_PARAMETER_VALUE",
    "INVALID_STATE",
    "RESOURCE_CONFLICT",
    "RESOURCE_DOES_NOT_EXIST",
}
_EVENT_STATUSES = {400, 409, 411, 413, 414, 415, 422, 431}  # of HTTP: this request, however often it is sent
_AWAY_STATUSES = {401, 408, 425, 429}  # and all from 500: of every request
_DIRECT = "Large files do not pass through there where this machine reaches MLflow's bucket."
_RETRY = "Correct the cause and run `python -m pipeline tracking retry`, or `tracking drop`."


@contextmanager
def mlflow_errors(uri: str) -> Iterator[None]:
    """Turn exceptions of MLflow's client into TrackingErrors, RefusedErrors if only these events are rejected."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except (MlflowException, OSError) as error:
        raise tracking_error(error, uri) from error


@contextmanager
def file_errors(uri: str, file: Path, name: str, place: str, hint: str = _RETRY) -> Iterator[None]:
    """The same, of an upload of `file` as `name` to `place`, which may be a bucket or a folder, not the server.

    Unless MLflow or the bucket is away, or slow, the file alone is refused, and `hint` says what to do then.
    """
    try:
        yield
    except Exception as error:  # of any client of any store that MLflow knows, or the lack of one
        if is_away(error):
            raise _slow_upload(error, uri, file, name) or tracking_error(error, uri) from error
        if _status(error) == 413:
            what = f"a proxy in front of MLflow at {uri} takes no file of the size of {_sized(name, file)}: status 413"
            raise RefusedError(what, f"Raise its limit (nginx: client_max_body_size). {_DIRECT} {hint}") from error
        text = _detail(" ".join(f"{type(error).__name__}: {error}".split()))
        raise RefusedError(f"MLflow's place for files, {place}, did not take {name} ({text})", hint) from error


def _slow_upload(error: Exception, uri: str, file: Path, name: str) -> TrackingError | None:
    """The error for the user if MLflow is there, but does not get the file to its bucket, or not in time."""
    if "Read timed out" in str(error):  # as urllib3 says it, however MLflow's client and requests wrap it
        return TrackingError(
            f"MLflow at {uri} took {_sized(name, file)}, but did not say that it is stored within "
            f"{seconds_for(file.stat().st_size):.0f} s",
            f"Its way to the bucket is slow or stuck: see its log. {_DIRECT}",
        )
    if (status := _status(error)) in (408, 504):
        return TrackingError(
            f"a proxy in front of MLflow at {uri} did not wait until {_sized(name, file)} was stored: status {status}",
            f"Raise its time limit (nginx: proxy_read_timeout). {_DIRECT}",
        )
    if status in (500, 507):
        return TrackingError(
            f"MLflow at {uri} failed to store {_sized(name, file)}: status {status}",
            f"See its log. What goes through it needs room for the whole file in its temporary folder. {_DIRECT}",
        )
    return None


def _sized(name: str, file: Path) -> str:
    size = file.stat().st_size
    return f"{name} ({size / 1e6:,.1f} MB)" if size >= 1e5 else f"{name} ({size:,} bytes)"


def tracking_error(error: BaseException, uri: str) -> TrackingError:
    """The error for the user from an exception of MLflow's client."""
    text, code = " ".join(str(error).split()), getattr(error, "error_code", "")
    facts = {"uri": uri, "host": uri.partition("://")[2].partition("/")[0], "detail": _detail(text), **_login()}
    known = f"{code} {text} (status {_status(error)})"
    for part, (what, hint) in _MESSAGES.items():
        if part in known:
            return TrackingError(what.format(**facts), hint.format(**facts))
    if code in _EVENT_ERRORS or _status(error) in _EVENT_STATUSES:
        return RefusedError(f"MLflow at {uri} rejected an event ({_detail(text)})", _RETRY)
    return TrackingError(f"MLflow at {uri} is unavailable ({_detail(text)})", f"Check that it is running. {_WHERE}")


def is_away(error: Exception) -> bool:
    """Whether the server, or the bucket behind it, did not answer, or not to anybody. Else the answer is about this."""
    from mlflow.exceptions import MlflowException
    from requests import RequestException

    from pipeline.storage import is_transient

    if (status := _status(error)) is not None:
        return status in _AWAY_STATUSES or status >= 500
    return isinstance(error, MlflowException | RequestException) or is_transient(error)


def _status(error: BaseException) -> int | None:
    """The HTTP status of an answer; None if there was none, or the exception does not say."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(status, int):
        return status
    found = re.search(r"failed with error code (\d{3})\b", str(error))  # as MLflow's client says it
    return int(found[1]) if found else None


def _login() -> dict[str, Any]:
    is_set = os.environ.get("MLFLOW_TRACKING_USERNAME") or os.environ.get("MLFLOW_TRACKING_TOKEN")
    return {
        "login": "does not accept this login" if is_set else "requires a login",
        "set": "Check" if is_set else "Set",
    }


def _detail(text: str) -> str:
    """At most 200 characters: the cause, if requests has wrapped it."""
    _, wrapped, cause = text.partition("(Caused by ")
    return (cause.removesuffix(")") if wrapped else text)[:200]
