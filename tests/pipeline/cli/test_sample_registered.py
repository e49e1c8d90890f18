"""`sample models:/NAME@ALIAS`: the registered model's own code draws the pictures; and what is refused."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner, Result

from models.generator import ImageGenerator, LatentStatistics, Sampling
from pipeline.cli.app import app
from pipeline.errors import ConfigError, ContractError, PipelineError
from tests.support.registration import STATISTICS, Registration

CHAMPION = "models:/denoising-vae@champion"
QUICK = ("--method", "euler", "--steps", "3")


def call(registration: Registration, *words: str) -> Result:
    return CliRunner().invoke(app, ["sample", *words, "--root", registration.storage.root], env={"COLUMNS": "200"})


def drawn(registration: Registration, file: Path, *words: str) -> np.ndarray:
    done = call(registration, *words, "--npz", str(file))
    assert done.exit_code == 0, done.output or repr(done.exception)
    with np.load(file) as made:
        images: np.ndarray = made["arr_0"]
    file.unlink()
    return images


def refusal(registration: Registration, *words: str) -> PipelineError:
    done = call(registration, *words)
    assert isinstance(done.exception, PipelineError), done.output or repr(done.exception)
    assert "\n" not in str(done.exception)
    return done.exception


def test_the_champion_draws_as_its_networks_do(registration, networks, tmp_path):
    """Also under another seed, which its `predict` does not take; its version and its alias are one model."""
    registration.register(0.95)
    tokenizer, sit = networks
    generator = ImageGenerator(tokenizer, sit, LatentStatistics(**STATISTICS), "velocity").eval()
    base = ("--class", "4,7", "--n", "2", *QUICK)
    own = registration.config()
    for words, asked in (
        ((), {}),
        (
            ("--seed", "3", "--guidance", "4", "--interval", "0.2,1"),
            {"seed": 3, "guidance": 4.0, "guidance_interval": (0.2, 1.0)},
        ),
    ):
        sampling = Sampling(**own.sampling(method="euler", steps=3, **asked))
        expected = generator.draw(torch.tensor([4, 7, 4, 7]), [4, 7, 14, 17], sampling)
        images = drawn(registration, tmp_path / "a.npz", CHAMPION, *base, *words)
        assert np.array_equal(images, expected.permute(0, 2, 3, 1).numpy())
    again = drawn(registration, tmp_path / "b.npz", "models:/denoising-vae/1", *base, *words)
    assert np.array_equal(images, again)


def test_it_knows_its_classes_and_settings(registration, tmp_path):
    registration.register(0.95)
    line = str(refusal(registration, CHAMPION, "--class", "ten", "--out", str(tmp_path / "x")))
    assert "--class ten: there is no class of this name. Choose one of 0, 1, 2" in line
    idle = refusal(registration, CHAMPION, "--class", "1", "--out", "x", "--set", "sample.steps=3")
    assert isinstance(idle, ConfigError)
    assert "--set sample.steps=3 has no effect on models:/denoising-vae@champion" in str(idle)
    assert not (tmp_path / "x").exists()


def test_its_files_may_be_gone(registration):
    registration.register(0.95)
    source = Path(registration.client.get_model_version("denoising-vae", "1").source.removeprefix("file://"))
    kept = (source / "artifacts" / "model.json").read_bytes()
    (source / "artifacts" / "model.json").write_bytes(b"{}")
    other = refusal(registration, CHAMPION, "--class", "1", "--out", "x")
    assert isinstance(other, ContractError)
    assert f"{CHAMPION} is not a model of this pipeline: model.json is missing or of another form" in str(other)
    (source / "artifacts" / "model.json").write_bytes(kept)
    shutil.rmtree(source)
    gone = refusal(registration, CHAMPION, "--class", "1", "--out", "x")
    assert isinstance(gone, ContractError)
    assert f"the files of {CHAMPION} cannot be had from" in str(gone)
    assert source.name in str(gone)


@pytest.mark.parametrize("uri", ["models:/other@champion", "models:/denoising-vae@nobody", "models:/denoising-vae/7"])
def test_a_version_that_is_not_there(registration, uri):
    registration.register(0.95)
    error = refusal(registration, uri, "--class", "1", "--out", "x")
    assert isinstance(error, ConfigError)
    assert f"{uri} is not in the registry of MLflow at sqlite:///" in str(error)


@pytest.mark.parametrize(
    "uri", ["models:/", "models:/x", "models:/x@", "models:/@y", "models:/x/latest", "models:/x/y/1"]
)
def test_what_names_no_version(tmp_path, uri):
    error = CliRunner().invoke(app, ["sample", uri, "--class", "1", "--out", "x", "--root", str(tmp_path)]).exception
    assert isinstance(error, ConfigError)
    assert f"'{uri}' names no version of a model" in str(error)


def test_a_root_without_mlflow(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    words = ["sample", CHAMPION, "--class", "1", "--out", "x", "--root", str(tmp_path / "new")]
    error = CliRunner().invoke(app, words).exception
    assert isinstance(error, ConfigError)
    assert f"{CHAMPION}: there is no database of MLflow at sqlite:///{tmp_path}/new/mlflow.db" in str(error)
    assert not (tmp_path / "new").exists()
