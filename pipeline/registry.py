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

from pipeline.errors import PipelineError

FINGERPRINT_TAG = "dvae.fingerprint"
_TIMEOUT_SECONDS = 5.0


def has_version(uri: str, name: str, fingerprint: str) -> bool:
    """Is there a version of model `name` made by the `register` stage of this fingerprint?

    PipelineError when the registry cannot be asked.
    """
    if uri.startswith("sqlite:///"):
        return _ask_sqlite(Path(uri.removeprefix("sqlite:///")), name, fingerprint)
    if uri.startswith(("http://", "https://")):
        return _ask_server(uri, name, fingerprint)
    raise PipelineError(f"the registry at {uri} cannot be asked", "Use an http(s):// server or sqlite:///PATH.")


def _ask_sqlite(database: Path, name: str, fingerprint: str) -> bool:
    if not database.exists():
        return False
    query = (
        "SELECT COUNT(*) FROM model_version_tags JOIN model_versions USING (workspace, name, version)"
        " WHERE name = ? AND key = ? AND value = ? AND current_stage != 'Deleted_Internal'"
    )
    try:
        connection = sqlite3.connect(f"file:{urllib.parse.quote(str(database))}?mode=ro", uri=True, timeout=5)
        with connection:
            (count,) = connection.execute(query, (name, FINGERPRINT_TAG, fingerprint)).fetchone()
        connection.close()
    except sqlite3.OperationalError as error:
        if "no such table" in str(error):
            return False  # MLflow has not set the database up yet
        raise PipelineError(f"{database}: {error}", "Is it MLflow's database, of the pinned version?") from error
    return bool(count)


def _ask_server(uri: str, name: str, fingerprint: str) -> bool:
    query = urllib.parse.urlencode({"filter": f"name='{name}' and tags.`{FINGERPRINT_TAG}`='{fingerprint}'"})
    request = urllib.request.Request(f"{uri.rstrip('/')}/api/2.0/mlflow/model-versions/search?{query}")  # noqa: S310
    token, user = os.environ.get("MLFLOW_TRACKING_TOKEN"), os.environ.get("MLFLOW_TRACKING_USERNAME")
    if token:
        request.add_header("Authorization", f"Bearer {token}")
    elif user:
        password = os.environ.get("MLFLOW_TRACKING_PASSWORD", "")
        request.add_header("Authorization", "Basic " + b64encode(f"{user}:{password}".encode()).decode())
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS) as answer:  # noqa: S310
            return bool(json.load(answer).get("model_versions"))
    except (OSError, ValueError) as error:
        raise PipelineError(
            f"MLflow at {uri} does not answer ({error})", "Is it up? See MLFLOW_TRACKING_URI."
        ) from error
