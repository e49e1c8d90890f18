"""Versions of a registered model that lie in a bucket: copied once, whole or not at all, and what is said otherwise."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from mlflow import artifacts
from mlflow.exceptions import MlflowException
from requests import ConnectionError as Refused

from pipeline.config import load_config
from pipeline.errors import ContractError
from pipeline.tracking import TrackingError, fetch_model, models

URI, SOURCE = "models:/denoising-vae@champion", "s3://bucket/1/run/artifacts/model"


class Registry:
    """An MLflow client of one version, and a bucket with its files; `fails` stands in front of the bucket."""

    def __init__(self) -> None:
        self.created, self.files, self.downloads = 1, {"MLmodel": b"m", "artifacts/model.json": b"{}"}, 0
        self.fails: Exception | None = None

    def get_model_version_by_alias(self, name: str, alias: str) -> Any:
        assert (name, alias) == ("denoising-vae", "champion")
        return SimpleNamespace(version="3", source=SOURCE, creation_timestamp=self.created)

    def listed(self, artifact_uri: str, tracking_uri: str) -> list[str]:
        assert (artifact_uri, tracking_uri) == (SOURCE, "http://mlflow:5000")
        return list(self.files)

    def download(self, artifact_uri: str, dst_path: str, tracking_uri: str) -> str:
        assert (artifact_uri, tracking_uri) == (SOURCE, "http://mlflow:5000")
        self.downloads += 1
        for name, content in self.files.items():
            path = Path(dst_path, "model", name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
            if self.fails:
                raise self.fails
        return str(Path(dst_path, "model"))


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Registry:
    made = Registry()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(models, "mlflow_client", lambda _: made)
    monkeypatch.setattr(artifacts, "list_artifacts", made.listed)
    monkeypatch.setattr(artifacts, "download_artifacts", made.download)
    return made


@pytest.fixture
def fetch(tmp_path: Path) -> Callable[[], tuple[Path, list[str]]]:
    def call() -> tuple[Path, list[str]]:
        said: list[str] = []
        config = load_config("quickstart", ["tracking.uri=http://mlflow:5000"], root=str(tmp_path / "runs"))
        return fetch_model(config, URI, said.append), said

    return call


def left(folder: Path) -> list[str]:
    return [path.name for path in (folder / "cache").rglob("*") if path.is_file()]


def test_a_version_is_copied_once(registry, fetch):
    folder, said = fetch()
    assert said == [f"fetching version 3 of denoising-vae from {SOURCE}"]
    assert (folder / "artifacts" / "model.json").read_bytes() == b"{}"
    assert fetch() == (folder, [])
    assert registry.downloads == 1
    registry.created = 2  # the registry was made anew, with other files under the same names
    other, _ = fetch()
    assert other != folder
    assert registry.downloads == 2


@pytest.mark.parametrize(
    ("failure", "kind", "said"),
    [
        (Refused("Connection refused"), TrackingError, "nothing listens at http://mlflow:5000"),
        (
            MlflowException("API request failed with error code 503"),
            TrackingError,
            "MLflow at http://mlflow:5000 is un",
        ),
        (
            OSError("No such key"),
            ContractError,
            f"the files of {URI} cannot be had from {SOURCE} (OSError: No such key)",
        ),
        (MlflowException("API request failed with error code 404"), ContractError, f"the files of {URI} cannot be had"),
    ],
)
def test_a_copy_that_fails_leaves_nothing(registry, fetch, tmp_path, failure, kind, said):
    registry.fails = failure
    with pytest.raises(kind) as refusal:
        fetch()
    assert said in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert left(tmp_path) == []
    registry.fails = None
    assert (fetch()[0] / "MLmodel").is_file()


@pytest.mark.parametrize("files", [{}, {"other": b""}])
def test_files_that_are_gone(registry, fetch, tmp_path, files):
    registry.files = files
    with pytest.raises(ContractError, match=r"the files of .* cannot be had from s3://.* register this one again"):
        fetch()
    assert left(tmp_path) == []


def test_a_registry_that_does_not_answer(registry, fetch, monkeypatch):
    def away(*_: str) -> Any:
        raise MlflowException("API request to http://mlflow:5000 failed with exception: Connection refused")

    monkeypatch.setattr(registry, "get_model_version_by_alias", away)
    with pytest.raises(TrackingError, match="nothing listens at http://mlflow:5000"):
        fetch()
