"""Queries MLflow's model registry without importing mlflow, so that `plan` stays fast (five seconds).

A server is queried through its REST API, a local SQLite database directly. Only the `register` stage writes to the
registry, through MLflow's client.
"""

import json
import os
import sqlite3
import urllib.parse
from base64 import b64encode
from pathlib import Path
from typing import Any

from pipeline.errors import PipelineError
from pipeline.tracking.errors import TrackingError, tracking_error

FINGERPRINT_TAG = "dvae.fingerprint"
METRIC_TAG, INTERVAL_TAG = "dvae.metric.", "dvae.interval."  # of a version, with the metric's key behind it
KEY_TAG = "dvae.key"  # by which a run is found
CANDIDATE, CHAMPION = "candidate", "champion"  # aliases
_TIMEOUT_SECONDS = 5.0
_VERSIONS = (
    "SELECT COUNT(*) FROM model_version_tags JOIN model_versions USING (workspace, name, version)"
    " WHERE name = ? AND key = ? AND value = ? AND current_stage != 'Deleted_Internal'"
)
_TAGS = (
    "SELECT json_group_object(key, value) FROM model_version_tags JOIN model_versions USING (workspace, name, version)"
    " WHERE name = ? AND version = ?"
)
_ALIASED = "SELECT version FROM registered_model_aliases WHERE name = ? AND alias = ?"


def has_version(uri: str, name: str, fingerprint: str) -> bool:
    """Whether model `name` has a version from the `register` stage of this fingerprint.

    PipelineError if the query fails.
    """
    if uri.startswith("sqlite:///"):
        found = _query_sqlite(uri, _VERSIONS, name, FINGERPRINT_TAG, fingerprint)
        return bool(found and found[0])
    query = f"name='{name}' and tags.`{FINGERPRINT_TAG}`='{fingerprint}'"
    return bool((_query_server(uri, "model-versions/search", filter=query) or {}).get("model_versions"))


def input_tag(stage: str) -> str:
    """The tag with the fingerprint of the artifact of this stage that a version, or a run, was made from."""
    return f"dvae.input.{stage}"


def champion(uri: str, name: str) -> str | None:
    """The version of model `name` with the alias `champion`; None if there is none.

    PipelineError if the query fails.
    """
    return _aliased(uri, name, CHAMPION)


def aliased_tags(uri: str, name: str, alias: str) -> dict[str, str] | None:
    """The tags of the version of model `name` with this alias; None if there is none.

    PipelineError if a query fails.
    """
    version = _aliased(uri, name, alias)
    if version is None:
        return None
    if uri.startswith("sqlite:///"):
        found = _query_sqlite(uri, _TAGS, name, version)
        return dict(json.loads(found[0])) if found else None
    answer = _query_server(uri, "model-versions/get", name=name, version=version)
    if answer is None:
        return None
    try:
        return {tag["key"]: tag["value"] for tag in answer["model_version"].get("tags", [])}
    except (AttributeError, KeyError, TypeError) as error:
        raise tracking_error(OSError("no valid JSON from MLflow"), uri) from error


def runs_page(uri: str, experiment: str, key: str) -> str | None:
    """The address of the server's page that shows the run of this key; None if it has no such experiment.

    PipelineError if the query fails.
    """
    answer = _query_server(uri, "experiments/get-by-name", experiment_name=experiment)
    if answer is None:
        return None
    try:
        number = str(answer["experiment"]["experiment_id"])
    except (KeyError, TypeError) as error:
        raise tracking_error(OSError("no valid JSON from MLflow"), uri) from error
    wanted = urllib.parse.quote(f"tags.`{KEY_TAG}` = '{key}'")
    return f"{uri.rstrip('/')}/#/experiments/{number}?searchFilter={wanted}"


def _aliased(uri: str, name: str, alias: str) -> str | None:
    if uri.startswith("sqlite:///"):
        found = _query_sqlite(uri, _ALIASED, name, alias)
        return str(found[0]) if found else None
    # Not with `registered-models/alias`: a server with users denies it for a model that does not exist yet.
    answer = _query_server(uri, "registered-models/get", name=name)
    if answer is None:
        return None
    try:
        aliases = answer["registered_model"].get("aliases", [])
        return next((str(one["version"]) for one in aliases if one["alias"] == alias), None)
    except (AttributeError, KeyError, TypeError) as error:
        raise tracking_error(OSError("no valid JSON from MLflow"), uri) from error


def _query_sqlite(uri: str, query: str, *values: str) -> tuple[Any, ...] | None:
    """The first row; None if there is none, or no database yet."""
    database = Path(uri.removeprefix("sqlite:///"))
    if not database.exists():
        return None
    try:
        connection = sqlite3.connect(f"file:{urllib.parse.quote(str(database))}?mode=ro", uri=True, timeout=5)
        with connection:
            row: tuple[Any, ...] | None = connection.execute(query, values).fetchone()
        connection.close()
    except sqlite3.OperationalError as error:
        if any(part in str(error) for part in ("no such table", "no such column", "cannot join")):
            return None  # MLflow has not created the tables yet
        raise PipelineError(f"{database}: {error}", "Check that it belongs to the pinned version of MLflow.") from error
    return row


def _query_server(uri: str, path: str, **query: str) -> dict[str, Any] | None:
    """The answer's JSON; None if the resource does not exist. TrackingError as from MLflow's client."""
    if not uri.startswith(("http://", "https://")):
        raise TrackingError(f"the registry at {uri} cannot be queried", "Use an http(s):// server or sqlite:///PATH.")
    import requests  # not needed for a local run

    verify: str | bool = os.environ.get("MLFLOW_TRACKING_SERVER_CERT_PATH") or True
    if os.environ.get("MLFLOW_TRACKING_INSECURE_TLS", "").lower() in ("true", "1"):
        verify = False
    address = f"{uri.rstrip('/')}/api/2.0/mlflow/{path}"
    try:
        answer = requests.get(address, params=query, auth=_login, timeout=_TIMEOUT_SECONDS, verify=verify)
        content = answer.json()
        if _is_not_found(content):
            return None
        if answer.status_code != 200:
            raise OSError(f"failed with error code {answer.status_code} ({content.get('message', '')})")
        return dict(content)
    except requests.JSONDecodeError as error:  # from a proxy, or a server that rejects its host name
        text = f"failed with error code {answer.status_code} ({answer.text[:100]})"
        raise tracking_error(OSError("no valid JSON" if answer.ok else text), uri) from error
    except (AttributeError, TypeError) as error:  # JSON of another form
        raise tracking_error(OSError("no valid JSON from MLflow"), uri) from error
    except (OSError, ValueError) as error:  # requests raises OSErrors, and ValueErrors for an invalid URL
        raise tracking_error(error, uri) from error


def _login(request: Any) -> Any:
    """Add the same login as MLflow's client."""
    token, user = os.environ.get("MLFLOW_TRACKING_TOKEN"), os.environ.get("MLFLOW_TRACKING_USERNAME")
    if token:
        request.headers["Authorization"] = f"Bearer {token}"
    elif user:
        password = os.environ.get("MLFLOW_TRACKING_PASSWORD", "")
        request.headers["Authorization"] = "Basic " + b64encode(f"{user}:{password}".encode()).decode()
    return request


def _is_not_found(content: dict[str, Any]) -> bool:
    return content.get("error_code") == "RESOURCE_DOES_NOT_EXIST"
