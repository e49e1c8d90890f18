"""register against real MLflow: the gate's decisions, one version a fingerprint, and pictures from the champion.

On SQLite in a temporary folder; the slow test starts a real server.
"""

import hashlib
import io
import os
import shutil
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
import torch
from mlflow import MlflowClient
from PIL import Image
from safetensors.torch import save_file

import models
from models.generator import ImageGenerator, LatentStatistics, Sampling
from models.sit import SiT
from models.tokenizers.vit import Tokenizer
from pipeline.artifacts.lease import Lease
from pipeline.artifacts.manifest import Manifest
from pipeline.artifacts.writer import ArtifactWriter, commit
from pipeline.config.loading import load_config
from pipeline.config.schema import Config
from pipeline.errors import PipelineError
from pipeline.inference import model_code, model_package
from pipeline.stages import register
from pipeline.storage.local import LocalStorage
from pipeline.storage.uri import open_storage
from pipeline.tracking.mlflow import tracking_uri
from pipeline.tracking.outbox import OUTBOX, Outbox
from pipeline.tracking.registry import FINGERPRINT_TAG, champion, has_version
from pipeline.workflow.context import StageContext
from tests.support.groups import free_port
from tests.support.mlflow_server import running_mlflow

TOKENIZER = {"image_size": 16, "patch_size": 4, "latent_dim": 3, "width": 16, "depth": 1, "heads": 2, "hidden": 24}
SIT = {"grid": 4, "latent_dim": 3, "classes": 10, "width": 16, "depth": 1, "heads": 2}
STATISTICS = {"mean": [0.5, -1.0, 0.0], "std": [2.0, 0.3, 1.0]}
METRIC = "samples/class_accuracy"


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


@pytest.fixture(scope="module")
def networks() -> tuple[Tokenizer, SiT]:
    """Tiny, with random weights, SiT's zero layers included."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        tokenizer, sit = Tokenizer(**TOKENIZER), SiT(**SIT)
        for parameter in sit.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
    return tokenizer, sit


class World:
    """A root with everything that register is made from, and an MLflow."""

    def __init__(self, folder: Path, networks: tuple[Tokenizer, SiT], uri: str | None = None) -> None:
        self.folder, self.networks = folder, networks
        self.storage = open_storage(str(folder / "runs"))
        assert isinstance(self.storage, LocalStorage)
        self.uri = uri

    def config(self, **gate) -> Config:
        overrides = [f"register.gate.{name}={value}" for name, value in gate.items()]
        if self.uri:
            overrides.append(f"tracking.uri={self.uri}")
        return load_config("quickstart", overrides, root=self.storage.root)

    @property
    def tracking(self) -> str:
        return tracking_uri(self.config())

    @property
    def client(self) -> MlflowClient:
        return MlflowClient(tracking_uri=self.tracking, registry_uri=self.tracking)

    def aliases(self) -> dict[str, str]:
        found = self.client.get_registered_model("denoising-vae").aliases
        return {name: str(version) for name, version in found.items()}

    def fingerprint(self, accuracy: float) -> str:
        return digest(f"register {accuracy}")

    def register(self, accuracy: float, *, after_version=None, **gate):
        """Run the stage as the runner does, for a candidate of that class accuracy."""
        config, fingerprint = self.config(**gate), self.fingerprint(accuracy)
        outbox = Outbox(self.storage, f"pipeline-{fingerprint[:8]}/register")
        Outbox(self.storage, f"pipeline-{fingerprint[:8]}").open("quickstart", {})
        outbox.open("register", {}, parent=f"pipeline-{fingerprint[:8]}")
        lease = Lease(self.storage, "register", fingerprint)
        try:
            context = StageContext(
                config=config,
                stage="register",
                fingerprint=fingerprint,
                storage=self.storage,
                inputs=self.inputs(accuracy),
                writer=ArtifactWriter(self.storage, "register", fingerprint),
                work=lease.folder,
                scratch=self.folder / f"scratch-{time.time_ns()}",
                lease=lease,
                outbox=outbox,
                progress=lambda *_, **__: None,
            )
            return register.run(context)
        finally:
            lease.release(finished=True)

    def inputs(self, accuracy: float) -> dict[str, Manifest]:
        tokenizer, sit = self.networks
        prepare = self.commit("prepare", {}, class_names=[str(digit) for digit in range(10)])
        made = {
            "train-tokenizer": self.commit(
                "train-tokenizer",
                tokenizer.state_dict(),
                network=TOKENIZER,
                filter={"mask": "gain", "keep": 0.5},
            ),
            "encode": self.commit("encode", {}, inputs={"prepare": prepare.fingerprint}),
            "train-sit": self.commit(
                "train-sit", sit.state_dict(), network=SIT, level=2, prediction="velocity", statistics=STATISTICS
            ),
            "evaluate-tokenizer": self.commit("evaluate-tokenizer", {}, metrics={"reconstruction/psnr": 30.5}),
        }
        made["evaluate-samples"] = self.commit(f"evaluate-samples {accuracy}", {}, metrics={METRIC: accuracy})
        return made

    def commit(self, name: str, weights, *, inputs=None, metrics=None, **details) -> Manifest:
        """An artifact, unless it is there already; `name` is the stage, and what tells two of it apart."""
        stage, fingerprint = name.split()[0], digest(name)
        writer = ArtifactWriter(self.storage, stage, fingerprint)
        if weights:
            path = self.folder / "weights"
            save_file(weights, path)
            writer.add(path, "weights.safetensors")
        manifest = Manifest(
            stage=stage,
            fingerprint=fingerprint,
            inputs=inputs or {},
            input_contents={},
            config={"data.format": "digits", "data.uri": None, "data.revision": "d1"} if stage == "prepare" else {},
            files=writer.files,
            rows=1,
            metrics=metrics or {},
            details=details,
            seconds=1.0,
            git_sha=None,
            image_digest=None,
            created="2026-01-01T00:00:00+00:00",
        )
        if not self.storage.exists(f"{writer.folder}/manifest.json"):
            lease = Lease(self.storage, stage, fingerprint)
            commit(self.storage, manifest, lease)
            lease.release(finished=True)
        return manifest


@pytest.fixture(autouse=True)
def _no_other_mlflow(monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.fixture
def world(tmp_path, networks, mlflow_template) -> World:
    """Its database is a copy of one that MLflow has already set up, which takes it seconds."""
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "mlflow.db").write_bytes(mlflow_template)
    return World(tmp_path, networks)


def predict(world: World, rows: dict[str, list[int]], version: str = "@champion", **params) -> list[np.ndarray]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", world.tracking)
        model = mlflow.pyfunc.load_model(f"models:/denoising-vae{version}")
        table = model.predict(pd.DataFrame(rows), params=params)
    assert list(table.columns) == ["image"]
    return [np.asarray(Image.open(io.BytesIO(png))) for png in table["image"]]


def test_first_champion_then_better_then_worse(world):
    first = world.register(0.91)
    assert first.details["promoted"], first.details["decision"]
    assert "first champion" in first.details["decision"]
    assert world.aliases() == {"candidate": "1", "champion": "1"}

    worse = world.register(0.905)
    assert not worse.details["promoted"]
    assert "not better than 0.91 of champion version 1" in worse.details["decision"]
    assert world.aliases() == {"candidate": "2", "champion": "1"}

    better = world.register(0.97)
    assert better.details["promoted"]
    assert world.aliases() == {"candidate": "3", "champion": "3"}

    closer = world.register(0.975, margin=0.01)
    assert "by less than the margin 0.01" in closer.details["decision"]
    assert world.aliases() == {"candidate": "4", "champion": "3"}


def test_below_the_minimum_there_is_no_champion(world):
    refused = world.register(0.5)
    assert not refused.details["promoted"]
    assert "does not reach the minimum 0.9" in refused.details["decision"]
    assert world.aliases() == {"candidate": "1"}
    assert world.register(0.92).details["promoted"]


def test_repeating_makes_no_second_version(world):
    first, again = world.register(0.95), world.register(0.95)
    assert (first.details["version"], again.details["version"]) == ("1", "1")
    assert again.details["promoted"]
    assert again.files == first.files
    assert len(world.client.search_model_versions("name='denoising-vae'")) == 1


def test_an_old_version_repeated_does_not_dethrone_a_better_champion(world):
    world.register(0.92)
    world.register(0.97)
    assert not world.register(0.92).details["promoted"]
    assert world.aliases()["champion"] == "2"


@pytest.mark.parametrize("cut", ["create_model_version", "set_model_version_tag", "set_registered_model_alias"])
def test_killed_before_or_behind_the_version(world, monkeypatch, cut):
    """An attempt that is cut at any of these calls, then the same again: one version, and the champion."""

    class Killed(BaseException):
        pass

    def kill(*_, **__):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, cut, kill)
        with pytest.raises(Killed):
            world.register(0.95)
    assert world.register(0.95).details["promoted"]
    assert len(world.client.search_model_versions("name='denoising-vae'")) == 1
    assert world.aliases() == {"candidate": "1", "champion": "1"}


def test_the_registry_is_asked_without_mlflow(world):
    name, fingerprint = "denoising-vae", world.fingerprint(0.95)
    empty = world.folder / "never.db"
    assert not has_version(f"sqlite:///{empty}", name, fingerprint)
    assert not empty.exists()
    assert not has_version(world.tracking, name, fingerprint)
    world.register(0.95)
    assert has_version(world.tracking, name, fingerprint)
    assert not has_version(world.tracking, "another", fingerprint)
    assert not has_version(world.tracking, name, digest("another"))
    world.client.delete_model_version(name, "1")
    assert not has_version(world.tracking, name, fingerprint)


def test_a_version_deleted_from_the_registry_is_made_again(world):
    world.register(0.95)
    world.client.delete_model_version("denoising-vae", "1")
    assert world.register(0.95).details["version"] == "2"
    assert world.aliases()["champion"] == "2"


def test_a_version_whose_files_are_lost_is_made_again(world):
    world.register(0.95)
    version = world.client.get_model_version("denoising-vae", "1")
    artifacts = open_storage(world.client.get_run(version.run_id).info.artifact_uri).local_path()
    assert artifacts is not None
    shutil.rmtree(artifacts)
    assert world.register(0.95).details["version"] == "2"
    assert world.aliases()["champion"] == "2"


def test_a_registry_that_mlflow_is_just_setting_up_has_no_version(tmp_path):
    """Its tables get their columns one migration after the other."""
    with sqlite3.connect(tmp_path / "mlflow.db") as database:
        database.execute("CREATE TABLE model_versions (name TEXT, version INT, current_stage TEXT)")
        database.execute("CREATE TABLE model_version_tags (name TEXT, version INT, key TEXT, value TEXT)")
    assert not has_version(f"sqlite:///{tmp_path}/mlflow.db", "denoising-vae", digest("any"))
    assert champion(f"sqlite:///{tmp_path}/mlflow.db", "denoising-vae") is None


def test_the_version_carries_lineage_and_metrics_and_lies_in_its_run(world):
    outcome = world.register(0.95)
    version = world.client.get_model_version("denoising-vae", "1")
    assert version.tags[FINGERPRINT_TAG] == world.fingerprint(0.95)
    assert version.tags["dvae.input.train-sit"] == digest("train-sit")
    assert version.tags["dvae.input.prepare"] == digest("prepare")
    assert float(version.tags["dvae.metric.reconstruction/psnr"]) == 30.5
    assert version.tags["dvae.decision"] == outcome.details["decision"]
    run = world.client.get_run(version.run_id)
    assert version.source.startswith(run.info.artifact_uri)
    files = {entry.path for entry in world.client.list_artifacts(version.run_id, "model/artifacts")}
    assert files == {
        f"model/artifacts/{name}"
        for name in ("train-tokenizer.safetensors", "train-sit.safetensors", "model.json", "README.md")
    }
    card = (world.storage.local_path(f"register/{world.fingerprint(0.95)[:12]}/README.md")).read_text()
    for word in (
        "Apache-2.0",
        digest("encode"),
        "reconstruction/psnr | 30.5",
        "models:/denoising-vae@champion",
        "digits",
    ):
        assert word in card


def test_no_pickle_is_in_the_model(world):
    world.register(0.95)
    source = world.client.get_model_version("denoising-vae", "1").source.removeprefix("file://")
    names = [path.name for path in Path(source).rglob("*") if path.is_file()]
    assert "registered_model.py" in names
    assert not [name for name in names if name.endswith((".pkl", ".pickle", ".pt", ".pth", ".bin", ".pyc"))]


def test_the_champion_gives_pictures_of_a_class(world):
    world.register(0.95)
    rows = {"label": [3, 3, 7], "seed": [0, 1, 2]}
    pictures = predict(world, rows, guidance=2.0, steps=3, method="euler")
    assert [picture.shape for picture in pictures] == [(16, 16, 3)] * 3
    assert not np.array_equal(pictures[0], pictures[1])
    alone = predict(world, {"label": [7], "seed": [2]}, guidance=2.0, steps=3, method="euler")
    assert np.abs(alone[0].astype(int) - pictures[2].astype(int)).max() <= 1


def test_the_champion_draws_what_the_sample_stage_draws(world, networks):
    world.register(0.95)
    own = world.config().sample
    tokenizer, sit = networks
    generator = ImageGenerator(tokenizer, sit, LatentStatistics(**STATISTICS), "velocity").eval()
    expected = generator.draw(torch.tensor([4, 5]), [14, 15], Sampling(**own.sampling()))
    pictures = predict(world, {"label": [4, 5], "seed": [14, 15]})
    assert np.array_equal(np.stack(pictures), expected.permute(0, 2, 3, 1).numpy())


def test_wrong_questions_are_refused(world):
    world.register(0.95)
    with pytest.raises(ValueError, match="labels must be from 0 to 9"):
        predict(world, {"label": [10], "seed": [0]})
    with pytest.raises(ValueError, match="unknown method 'rk'"):
        predict(world, {"label": [1], "seed": [0]}, method="rk")


def test_the_model_loads_where_there_is_no_pipeline(world, tmp_path):
    """In a process that finds neither this checkout nor an installed copy of it, and is not asked to trust a pickle."""
    world.register(0.95)
    code = (
        "import sys; sys.path = [p for p in sys.path if p]\n"
        "import importlib.abc\n"
        "class Refuse(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.partition('.')[0] in ('pipeline', 'deploy', 'ray'): raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, Refuse())\n"
        "import mlflow, pandas\n"
        "model = mlflow.pyfunc.load_model('models:/denoising-vae@champion')\n"
        "table = model.predict(pandas.DataFrame({'label': [1], 'seed': [0]}), params={'steps': 2})\n"
        "assert table['image'][0].startswith(b'\\x89PNG')\n"
        "print(*[m.__file__ for n, m in sys.modules.items() if n.endswith('.generator') and 'models' in n])\n"
    )
    environment = {**os.environ, "MLFLOW_TRACKING_URI": world.tracking, "PYTHONPATH": ""}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert f"/code/{model_package()}/" in done.stdout


def test_two_versions_in_one_process_have_their_own_code(world, tmp_path, monkeypatch):
    """The second one's networks give the negative of a picture; each version keeps to what it was registered with."""
    world.register(0.95)
    later = tmp_path / "later" / "models"
    shutil.copytree(Path(models.__file__).parent, later)
    rule = (later / "metrics.py").read_text()
    changed = rule.replace("(x_BCHW.float() * 127.5 + 127.5)", "(127.5 - x_BCHW.float() * 127.5)")
    assert changed != rule
    (later / "metrics.py").write_text(changed)
    monkeypatch.setattr(model_code, "_PACKAGE", later)
    world.register(0.97)
    rows = {"label": [3], "seed": [0]}
    first, second, again = (predict(world, rows, version, steps=2) for version in ("/1", "/2", "/1"))
    assert np.array_equal(first[0], again[0])
    assert np.abs(first[0].astype(int) + second[0] - 255).max() <= 1
    assert first[0].std() > 1, "a picture whose negative is another"


def test_a_host_may_have_models_of_its_own(world, tmp_path):
    """A service with a package `models` loads ours, and keeps its own."""
    world.register(0.95)
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "__init__.py").write_text("OWNER = 'the host'\n")
    code = (
        "import sys\n"  # an editable installation would give our `models` behind the host's back
        "sys.meta_path = [f for f in sys.meta_path if 'editable' not in getattr(f, '__module__', '')]\n"
        "import models, mlflow, pandas\n"
        "model = mlflow.pyfunc.load_model('models:/denoising-vae@champion')\n"
        "table = model.predict(pandas.DataFrame({'label': [1], 'seed': [0]}), params={'steps': 2})\n"
        "assert table['image'][0].startswith(b'\\x89PNG')\n"
        "import models; print(models.OWNER, models.__path__)\n"
    )
    environment = {**os.environ, "MLFLOW_TRACKING_URI": world.tracking, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines()[-1] == f"the host ['{tmp_path}/models']"


def test_a_gate_on_a_metric_nobody_measured(world):
    with pytest.raises(PipelineError, match="there is no metric 'reconstruction/lpips'"):
        world.register(0.95, metric="reconstruction/lpips")


def test_mlflow_away_is_one_line_and_the_events_stay(tmp_path, networks, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "2")
    world = World(tmp_path, networks, uri=f"http://127.0.0.1:{free_port()}")
    with pytest.raises(PipelineError, match="register needs MLflow") as caught:
        world.register(0.95)
    assert "\n" not in str(caught.value)
    assert list(world.storage.list(OUTBOX))


@pytest.fixture
def server(tmp_path):
    """It serves the artifacts too."""
    with running_mlflow(tmp_path) as server:
        yield server


@pytest.mark.slow
def test_against_a_real_server(tmp_path, networks, server):
    world = World(tmp_path, networks, uri=server.uri)
    name, fingerprint = "denoising-vae", world.fingerprint(0.95)
    assert not has_version(server.uri, name, fingerprint)
    assert world.register(0.95).details["promoted"]
    assert has_version(server.uri, name, fingerprint)
    assert not has_version(server.uri, "another", fingerprint)
    assert world.register(0.95).details["version"] == "1"
    assert world.register(0.97).details["promoted"]
    assert world.aliases() == {"candidate": "2", "champion": "2"}
    assert world.client.get_model_version(name, "1").source.startswith("mlflow-artifacts:")
    (picture,) = predict(world, {"label": [3], "seed": [0]}, steps=2)
    assert picture.shape == (16, 16, 3)
