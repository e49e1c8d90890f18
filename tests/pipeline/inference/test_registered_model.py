"""The registered model: it draws the images of the stage `sample`, without the pipeline and beside other versions."""

import os
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import torch

import models
from models.generator import ImageGenerator, LatentStatistics, Sampling
from pipeline.artifacts import Manifest
from pipeline.inference import model_code, model_package, sit_details
from tests.support.registration import STATISTICS, Registration
from tests.support.tokenizers import random_tokenizer


def test_no_pickle_is_in_the_model(registration):
    registration.register(0.95)
    source = registration.client.get_model_version("denoising-vae", "1").source.removeprefix("file://")
    names = [path.name for path in Path(source).rglob("*") if path.is_file()]
    assert "registered_model.py" in names
    assert not [name for name in names if name.endswith((".pkl", ".pickle", ".pt", ".pth", ".bin", ".pyc"))]


def test_the_champion_gives_pictures_of_a_class(registration):
    registration.register(0.95)
    rows = {"label": [3, 3, 7], "seed": [0, 1, 2]}
    pictures = registration.predict(rows, guidance=2.0, steps=3, method="euler")
    assert [picture.shape for picture in pictures] == [(16, 16, 3)] * 3
    assert not np.array_equal(pictures[0], pictures[1])
    alone = registration.predict({"label": [7], "seed": [2]}, guidance=2.0, steps=3, method="euler")
    assert np.abs(alone[0].astype(int) - pictures[2].astype(int)).max() <= 1


def test_the_champion_draws_what_the_sample_stage_draws(registration, networks):
    registration.register(0.95)
    own = registration.config()
    tokenizer, sit = networks
    generator = ImageGenerator(tokenizer, sit, LatentStatistics(**STATISTICS), "velocity").eval()
    expected = generator.draw(torch.tensor([4, 5]), [14, 15], Sampling(**own.sampling()))
    pictures = registration.predict({"label": [4, 5], "seed": [14, 15]})
    assert np.array_equal(np.stack(pictures), expected.permute(0, 2, 3, 1).numpy())


def test_a_baseline_is_registered_with_the_package_that_it_needs(tmp_path, networks, mlflow_template, monkeypatch):
    """SD-VAE in the place of the ViT: the same contract, and diffusers pinned beside torch."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "mlflow.db").write_bytes(mlflow_template)
    sd_vae = random_tokenizer("sd-vae", image_size=16)
    registration = Registration(tmp_path, (sd_vae, networks[1]))
    registration.register(0.95)
    source = registration.client.get_model_version("denoising-vae", "1").source.removeprefix("file://")
    (requirements,) = Path(source).rglob("requirements.txt")
    assert f"diffusers=={version('diffusers')}" in requirements.read_text().splitlines()
    own = registration.config()
    generator = ImageGenerator(sd_vae, networks[1], LatentStatistics(**STATISTICS), "velocity").eval()
    expected = generator.draw(torch.tensor([4]), [14], Sampling(**own.sampling()))
    pictures = registration.predict({"label": [4], "seed": [14]})
    assert np.array_equal(np.stack(pictures), expected.permute(0, 2, 3, 1).numpy())


def test_a_vit_needs_no_diffusers(registration):
    registration.register(0.95)
    source = registration.client.get_model_version("denoising-vae", "1").source.removeprefix("file://")
    (requirements,) = Path(source).rglob("requirements.txt")
    assert "diffusers" not in requirements.read_text()


def test_wrong_questions_are_refused(registration):
    registration.register(0.95)
    with pytest.raises(ValueError, match="labels must be from 0 to 9"):
        registration.predict({"label": [10], "seed": [0]})
    with pytest.raises(ValueError, match="unknown method 'rk'"):
        registration.predict({"label": [1], "seed": [0]}, method="rk")


@pytest.mark.slow
def test_the_model_loads_where_there_is_no_pipeline(registration, tmp_path):
    """In a process that finds neither this checkout nor an installed copy of it, and is not asked to trust a pickle."""
    registration.register(0.95)
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
    environment = {**os.environ, "MLFLOW_TRACKING_URI": registration.tracking, "PYTHONPATH": ""}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert f"/code/{model_package()}/" in done.stdout


def test_two_versions_in_one_process_have_their_own_code(registration, tmp_path, monkeypatch):
    """The second one's networks give the negative of a picture; each version keeps to what it was registered with."""
    registration.register(0.95)
    later = tmp_path / "later" / "models"
    shutil.copytree(Path(models.__file__).parent, later)
    rule = (later / "metrics.py").read_text()
    changed = rule.replace("(x_BCHW.float() * 127.5 + 127.5)", "(127.5 - x_BCHW.float() * 127.5)")
    assert changed != rule
    (later / "metrics.py").write_text(changed)
    monkeypatch.setattr(model_code, "_PACKAGE", later)
    registration.register(0.97)
    rows = {"label": [3], "seed": [0]}
    first, second, again = (registration.predict(rows, version, steps=2) for version in ("/1", "/2", "/1"))
    assert np.array_equal(first[0], again[0])
    assert np.abs(first[0].astype(int) + second[0] - 255).max() <= 1
    assert first[0].std() > 1, "a picture whose negative is another"


@pytest.mark.slow
def test_a_host_may_have_models_of_its_own(registration, tmp_path):
    """A service with a package `models` loads ours, and keeps its own."""
    registration.register(0.95)
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
    environment = {**os.environ, "MLFLOW_TRACKING_URI": registration.tracking, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines()[-1] == f"the host ['{tmp_path}/models']"


def test_what_early_generators_leave_unsaid() -> None:
    """They embedded 1000 t, on the linear path, and their manifests name neither."""
    made = Manifest(
        stage="train-sit", fingerprint="a" * 64, inputs={}, input_contents={}, config={}, files={}, rows=1, metrics={},
        seconds=0.0, git_sha=None, image_digest=None, created="2026-01-01T00:00:00Z",
        details={"network": {"grid": 4}, "prediction": "velocity"},
    )  # fmt: skip
    network = {"grid": 4, "time_scale": 1000.0}
    assert sit_details(made) == {"network": network, "path": "linear", "prediction": "velocity"}
    now = {"network": {"grid": 4, "time_scale": 1.0}, "path": "vp", "prediction": "noise"}
    assert sit_details(made.model_copy(update={"details": now})) == now
