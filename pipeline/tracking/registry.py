"""What MLflow's model registry holds, asked without importing mlflow: `plan` has five seconds and no heavy packages.

A server is asked by its REST interface; a local SQLite database by one query on the tables behind it. Writing to the
registry is the `register` stage's, through MLflow's own client.
"""

import os
import sqlite3
import urllib.parse
from base64 import b64encode
from pathlib import Path
from typing import Any

from pipeline.errors import PipelineError
from pipeline.tracking.errors import TrackingError, tracking_error

FINGERPRINT_TAG = "dvae.fingerprint"
CANDIDATE, CHAMPION = "candidate", "champion"  # aliases
_TIMEOUT_SECONDS = 5.0
_VERSIONS = (
    "SELECT COUNT(*) FROM model_version_tags JOIN model_versions USING (workspace, name, version)"
    " WHERE name = ? AND key = ? AND value = ? AND current_stage != 'Deleted_Internal'"
)
_ALIASED = "SELECT version FROM registered_model_aliases WHERE name = ? AND alias = ?"


def has_version(uri: str, name: str, fingerprint: str) -> bool:
    """Is there a version of model `name` made by the `register` stage of this fingerprint?

    PipelineError when the registry cannot be asked.
    """
    if uri.startswith("sqlite:///"):
        found = _ask_sqlite(uri, _VERSIONS, name, FINGERPRINT_TAG, fingerprint)
        return bool(found and found[0])
    query = f"name='{name}' and tags.`{FINGERPRINT_TAG}`='{fingerprint}'"
    return bool((_ask_server(uri, "model-versions/search", filter=query) or {}).get("model_versions"))


def champion(uri: str, name: str) -> str | None:
    """The version of model `name` that carries the alias `champion`; None where none does.

    PipelineError when the registry cannot be asked.
    """
    if uri.startswith("sqlite:///"):
        found = _ask_sqlite(uri, _ALIASED, name, CHAMPION)
        return str(found[0]) if found else None
    # Not by `registered-models/alias`: a server with users denies that one for a model that is not there yet.
    answer = _ask_server(uri, "registered-models/get", name=name)
    if answer is None:
        return None
    try:
        aliases = answer["registered_model"].get("aliases", [])
        return next((str(one["version"]) for one in aliases if one["alias"] == CHAMPION), None)
    except (AttributeError, KeyError, TypeError) as error:
        raise tracking_error(OSError("no valid JSON of MLflow's"), uri) from error


def _ask_sqlite(uri: str, query: str, *values: str) -> tuple[Any, ...] | None:
    """The first row; None where there is none, or no database yet."""
    database = Path(uri.removeprefix("sqlite:///"))
    if not database.exists():
        return None
    try:
        connection = sqlite3.connect(f"file:{urllib.parse.quote(str(database))}?mode=ro", uri=True, timeout=5)
        with connection:
            row: tuple[Any, ...] | None = connection.execute(query, values).fetchone()
        connection.close()
    except sqlite3.OperationalError as error:
        if any(word in str(error) for word in ("no such table", "no such column", "cannot join")):
            return None  # MLflow has not set the database up yet, or is about to
        raise PipelineError(f"{database}: {error}", "Is it MLflow's database, of the pinned version?") from error
    return row


def _ask_server(uri: str, path: str, **query: str) -> dict[str, Any] | None:
    """The answer; None where the server says that there is no such thing. TrackingError as MLflow's own client."""
    if not uri.startswith(("http://", "https://")):
        raise TrackingError(f"the registry at {uri} cannot be asked", "Use an http(s):// server or sqlite:///PATH.")
    import requests  # a local run needs it not

    verify: str | bool = os.environ.get("MLFLOW_TRACKING_SERVER_CERT_PATH") or True
    if os.environ.get("MLFLOW_TRACKING_INSECURE_TLS", "").lower() in ("true", "1"):
        verify = False
    address = f"{uri.rstrip('/')}/api/2.0/mlflow/{path}"
    try:
        answer = requests.get(address, params=query, auth=_login, timeout=_TIMEOUT_SECONDS, verify=verify)
        told = answer.json()
        if _is_absence(told):
            return None
        if answer.status_code != 200:
            raise OSError(f"failed with error code {answer.status_code} ({told.get('message', '')})")
        return dict(told)
    except requests.JSONDecodeError as error:  # as a proxy, and a server that does not know its name, answer
        said = f"failed with error code {answer.status_code} ({answer.text[:100]})"
        raise tracking_error(OSError("no valid JSON" if answer.ok else said), uri) from error
    except (AttributeError, TypeError) as error:  # JSON of another form
        raise tracking_error(OSError("no valid JSON of MLflow's"), uri) from error
    except (OSError, ValueError) as error:  # requests' own are OSErrors; of an address that is none, ValueErrors
        raise tracking_error(error, uri) from error


def _login(request: Any) -> Any:
    """What MLflow's own client sends."""
    token, user = os.environ.get("MLFLOW_TRACKING_TOKEN"), os.environ.get("MLFLOW_TRACKING_USERNAME")
    if token:
        request.headers["Authorization"] = f"Bearer {token}"
    elif user:
        password = os.environ.get("MLFLOW_TRACKING_PASSWORD", "")
        request.headers["Authorization"] = "Basic " + b64encode(f"{user}:{password}".encode()).decode()
    return request


def _is_absence(told: dict[str, Any]) -> bool:
    return told.get("error_code") == "RESOURCE_DOES_NOT_EXIST"
