"""What tests of several rooms share."""

from pathlib import Path

import pytest

from models.sit import SiT
from models.tokenizers.vit import Tokenizer
from tests.support.registration import Registration, random_networks


@pytest.fixture(scope="session")
def networks() -> tuple[Tokenizer, SiT]:
    return random_networks()


@pytest.fixture
def registration(
    tmp_path: Path, networks: tuple[Tokenizer, SiT], mlflow_template: bytes, monkeypatch: pytest.MonkeyPatch
) -> Registration:
    """Its database is a copy of one that MLflow has already set up, which takes it seconds."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "mlflow.db").write_bytes(mlflow_template)
    return Registration(tmp_path, networks)
