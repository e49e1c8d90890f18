"""Versions of a model in MLflow's registry, brought to this disk: `models:/NAME@ALIAS` and `models:/NAME/VERSION`."""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote

from pipeline.config import Config
from pipeline.errors import ConfigError, ContractError
from pipeline.storage import cache_folder
from pipeline.tracking.errors import is_away, tracking_error
from pipeline.tracking.mlflow import mlflow_client, tracking_uri

MODELS = "models:/"
_MARK = "MLmodel"  # the file that MLflow knows a model by
_UNKNOWN = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")  # the latter of an alias that no version has


class ModelUri(NamedTuple):
    name: str
    alias: str | None
    version: str | None
    """One of the two."""


def parse_model_uri(uri: str) -> ModelUri:
    """ConfigError unless it is of one of the two forms above."""
    rest = uri.removeprefix(MODELS)
    name, at, alias = rest.rpartition("@")
    if at and name and alias and "/" not in rest:
        return ModelUri(name, alias, None)
    name, _, version = rest.rpartition("/")
    if name and "/" not in name and version.isascii() and version.isdigit():
        return ModelUri(name, None, version)
    raise ConfigError(f"'{uri}' names no version of a model", "Write models:/NAME@ALIAS or models:/NAME/VERSION.")


def fetch_model(config: Config, uri: str, say: Callable[[str], None]) -> Path:
    """The folder of a version's files: where they lie if that is on this machine, else a copy in the cache.

    Only root and tracking of the config are read. ConfigError if the registry has no such version, ContractError if its
    files are gone, TrackingError if MLflow does not answer.
    """
    asked, mlflow = parse_model_uri(uri), tracking_uri(config)
    if mlflow.startswith("sqlite:///") and not Path(mlflow.removeprefix("sqlite:///")).exists():
        raise ConfigError(f"{uri}: there is no database of MLflow at {mlflow}", "Give --root or tracking.uri.")
    version = _version(mlflow_client(mlflow), asked, uri, mlflow)
    source = str(version.source)
    if source.startswith(("/", "file:")):
        folder = Path(unquote(source.removeprefix("file://")))
        if not (folder / _MARK).is_file():
            raise _gone(uri, source, f"no {_MARK} there")
        return folder
    key = "\n".join((mlflow, asked.name, str(version.version), source, str(version.creation_timestamp)))
    folder = cache_folder() / "models" / hashlib.sha256(key.encode()).hexdigest()[:16]
    if not (folder / _MARK).is_file():
        say(f"fetching version {version.version} of {asked.name} from {source}")
        _download(uri, source, mlflow, folder)
    return folder


def _version(client: Any, asked: ModelUri, uri: str, mlflow: str) -> Any:
    from mlflow.exceptions import MlflowException

    try:
        if asked.alias is not None:
            return client.get_model_version_by_alias(asked.name, asked.alias)
        return client.get_model_version(asked.name, asked.version)
    except (MlflowException, OSError) as error:
        if getattr(error, "error_code", "") in _UNKNOWN:
            raise ConfigError(
                f"{uri} is not in the registry of MLflow at {mlflow}",
                "Choose a name, alias or version that is there; --root or tracking.uri names another registry.",
            ) from error
        raise tracking_error(error, mlflow) from error


def _download(uri: str, source: str, mlflow: str, folder: Path) -> None:
    """Whole or not at all."""
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    from mlflow.artifacts import download_artifacts, list_artifacts

    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".new-") as new:
        try:
            if not list_artifacts(artifact_uri=source, tracking_uri=mlflow):
                raise _gone(uri, source, "nothing there")
            made = Path(download_artifacts(artifact_uri=source, dst_path=new, tracking_uri=mlflow))
        except ContractError:
            raise
        except Exception as error:  # of any client of any store that MLflow knows, or the lack of one
            if is_away(error):
                raise tracking_error(error, mlflow) from error
            raise _gone(uri, source, f"{type(error).__name__}: {' '.join(str(error).split())[:200]}") from error
        if not (made / _MARK).is_file():
            raise _gone(uri, source, f"no {_MARK} there")
        shutil.rmtree(folder, ignore_errors=True)
        made.replace(folder)


def _gone(uri: str, source: str, why: str) -> ContractError:
    return ContractError(
        f"the files of {uri} cannot be had from {source} ({why})",
        "Choose another version, or register this one again: `python -m pipeline run PRESET`.",
    )
