"""What MLflow may refuse, as one line with its hint: what holds for everything sent there, and for one event alone."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pipeline.errors import PipelineError


class TrackingError(PipelineError):
    """MLflow is away, or lets nobody in."""


class RefusedError(TrackingError):
    """MLflow does not take this, though it takes other things."""


_WHERE = "See tracking.uri and MLFLOW_TRACKING_URI."
# What is said -> what is wrong, what to do about it. The first that fits counts.
_WORDS = {
    "header value": (  # of http.client and of requests alike, which quote it
        "the login for MLflow at {uri} holds a line end or the like",
        "Write it without: see MLFLOW_TRACKING_TOKEN, MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD.",
    ),
    "Invalid Host header": (
        "MLflow at {uri} does not serve under that name (Invalid Host header)",
        "Start it with --allowed-hosts {host} (in the chart: mlflow.allowedHosts), or use a name that it knows.",
    ),
    "UNAUTHENTICATED": ("MLflow at {uri} {login}", "{set} MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD."),
    "CUSTOMER_UNAUTHORIZED": (
        "MLflow at {uri} {login}",
        "{set} MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD.",
    ),
    "401 ": ("MLflow at {uri} {login}", "{set} MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD."),
    "PERMISSION_DENIED": (
        "MLflow at {uri} does not let this user write",
        "Give the user of MLFLOW_TRACKING_USERNAME the permission EDIT on the experiment (tracking.experiment).",
    ),
    "403 ": (
        "MLflow at {uri} does not let this user write",
        "Give the user of MLFLOW_TRACKING_USERNAME the permission EDIT on the experiment (tracking.experiment).",
    ),
    "WRONG_VERSION_NUMBER": ("{uri} does not speak TLS", f"Write http:// there, or correct the port. {_WHERE}"),
    "record layer failure": ("{uri} does not speak TLS", f"Write http:// there, or correct the port. {_WHERE}"),
    "Invalid URL": ("{uri} is no URL", _WHERE),
    "Failed to parse": ("{uri} is no URL", _WHERE),
    "BadStatusLine": ("what answers at {uri} is no MLflow", _WHERE),
    "SSLError": ("TLS fails at {uri} ({detail})", "Name the file of its CA in MLFLOW_TRACKING_SERVER_CERT_PATH."),
    "Failed to resolve": ("the host of {uri} is not known", _WHERE),
    "Connection refused": ("nothing listens at {uri}", f"Is MLflow up? {_WHERE}"),
    "valid JSON": ("what answers at {uri} is no MLflow", _WHERE),
    "failed with error code 404": ("what answers at {uri} is no MLflow", _WHERE),
    "failed with error code 405": ("what answers at {uri} is no MLflow", _WHERE),
}
_OF_ONE_EVENT = {
    "BAD_REQUEST",
    "INVALID_PARAMETER_VALUE",
    "INVALID_STATE",
    "RESOURCE_CONFLICT",
    "RESOURCE_DOES_NOT_EXIST",
}


@contextmanager
def mlflow_said(uri: str) -> Iterator[None]:
    """Turn what MLflow's client raises into a TrackingError."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except (MlflowException, OSError) as error:
        raise tracking_error(error, uri) from error


def tracking_error(error: BaseException, uri: str) -> TrackingError:
    """The error of MLflow's client for the user."""
    text, code = " ".join(str(error).split()), getattr(error, "error_code", "")
    facts = {"uri": uri, "host": uri.partition("://")[2].partition("/")[0], "detail": _detail(text), **_login()}
    for said, (what, hint) in _WORDS.items():
        if said in f"{code} {text}":
            return TrackingError(what.format(**facts), hint.format(**facts))
    if code in _OF_ONE_EVENT:
        return RefusedError(f"MLflow at {uri} refuses ({_detail(text)})", "See what it says.")
    return TrackingError(f"MLflow at {uri} does not answer, or is in trouble ({_detail(text)})", f"Is it up? {_WHERE}")


def _login() -> dict[str, Any]:
    given = os.environ.get("MLFLOW_TRACKING_USERNAME") or os.environ.get("MLFLOW_TRACKING_TOKEN")
    return {"login": "does not accept this login" if given else "wants a login", "set": "Check" if given else "Set"}


def _detail(text: str) -> str:
    """Short: the cause, where requests has wrapped it."""
    _, wrapped, cause = text.partition("(Caused by ")
    return (cause.removesuffix(")") if wrapped else text)[:200]
