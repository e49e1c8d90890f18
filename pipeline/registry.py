"""What MLflow's model registry holds, asked without importing mlflow: `plan` has five seconds and no heavy packages.

A server is asked by its REST interface; a local SQLite database by one query on the tables behind it. Writing to the
registry is the `register` stage's, through MLflow's own client.
"""

import json
import os
import sqlite3
import urllib.error
import urllib.parse
import urllib.request
from base64 import b64encode
from pathlib import Path
from typing import Any

from pipeline.errors import PipelineError

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
    answer = _ask_server(uri, "registered-models/alias", name=name, alias=CHAMPION)
    return str(answer["model_version"]["version"]) if answer else None


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
    """The answer; None where the server says that there is no such thing."""
    if not uri.startswith(("http://", "https://")):
        raise PipelineError(f"the registry at {uri} cannot be asked", "Use an http(s):// server or sqlite:///PATH.")
    address = f"{uri.rstrip('/')}/api/2.0/mlflow/{path}?{urllib.parse.urlencode(query)}"
    request = urllib.request.Request(address)  # noqa: S310
    token, user = os.environ.get("MLFLOW_TRACKING_TOKEN"), os.environ.get("MLFLOW_TRACKING_USERNAME")
    if token:
        request.add_header("Authorization", f"Bearer {token}")
    elif user:
        password = os.environ.get("MLFLOW_TRACKING_PASSWORD", "")
        request.add_header("Authorization", "Basic " + b64encode(f"{user}:{password}".encode()).decode())
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS) as answer:  # noqa: S310
            told: dict[str, Any] = json.load(answer)
            return told
    except urllib.error.HTTPError as error:
        if _is_absence(error):
            return None
        raise _refusal(uri, error) from error
    except (OSError, ValueError) as error:
        raise PipelineError(
            f"MLflow at {uri} does not answer ({error})", "Is it up? See MLFLOW_TRACKING_URI."
        ) from error


def _is_absence(error: urllib.error.HTTPError) -> bool:
    """MLflow answers for an alias that is not there with a wrong parameter, for a model with a missing resource."""
    try:
        told = json.load(error)
    except ValueError:
        return False
    missing = told.get("error_code") == "RESOURCE_DOES_NOT_EXIST"
    return missing or (told.get("error_code") == "INVALID_PARAMETER_VALUE" and "alias" in told.get("message", ""))


def _refusal(uri: str, error: urllib.error.HTTPError) -> PipelineError:
    if error.code == 401:
        return PipelineError(
            f"MLflow at {uri} wants a user and a password, or refused these",
            "Set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD.",
        )
    if error.code == 403:
        return PipelineError(
            f"MLflow at {uri} refuses (403)",
            "Has the user a permission there, and is this host name among the server's --allowed-hosts?",
        )
    return PipelineError(f"MLflow at {uri} answers {error.code}", "Look at its log.")
