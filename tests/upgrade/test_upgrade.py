"""An upgrade costs no training: what earlier versions finished is found, and what they left half trained goes on.

The roots are in this folder, one archive a version, which `make.py` has written by that version's own code.
"""

import subprocess
import tarfile
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.config import Config, load_config
from pipeline.training.loop import train
from pipeline.training.worker import no_notice
from pipeline.training.world import World
from pipeline.workflow import artifacts_of, resolved, survey
from tests.support import PROJECT
from tests.support.trainers import Ranks, job_of, make_trainee, put_lease
from tests.upgrade.make import TRAINS, environment, run_of

ARCHIVES = sorted(Path(__file__).parent.glob("*.tar.gz"))


@pytest.fixture(params=ARCHIVES, ids=lambda path: path.name.removesuffix(".tar.gz"))
def old(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the root of a version and its configs. MLflow knows nothing of it."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    with tarfile.open(request.param) as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path


def config_of(folder: Path, name: str) -> Config:
    mirror = f"cluster.mirror={folder / 'mirror'}"
    return resolved(load_config(str(folder / f"{name}.yaml"), [mirror], str(folder / "root")), fresh=True)


def test_a_version_is_here():
    assert ARCHIVES


def test_what_is_finished_is_found(old: Path) -> None:
    """All but the version in MLflow's registry, which is not of the root."""
    nodes = survey(config_of(old, "finished"))
    assert len(nodes) >= 12
    assert [node.stage.name for node in nodes if node.status != "cached"] == ["register"]


@pytest.mark.parametrize("name", TRAINS)
def test_what_is_half_trained_goes_on(old: Path, name: str) -> None:
    """From its last checkpoint to its last step, by this version's trainer."""
    config, stage = config_of(old, name), TRAINS[name]
    nodes = survey(config)
    (mine,) = [node for node in nodes if node.stage.name == stage]
    assert mine.status == "resumable"
    made = artifacts_of(nodes)
    job = job_of(config, stage, {key: made[key] for key in mine.stage.inputs})
    begun = max(int(path.name) for path in (old / "root" / job.work / "checkpoints").iterdir())

    put_lease(job)
    torch.set_num_threads(1)
    ranks = Ranks(job)
    trainee, steps = make_trainee(ranks, World.alone()), []
    step = trainee.step

    def counted(batch: Any, number: int) -> Any:
        steps.append(number)
        return step(batch, number)

    trainee.step = counted
    train(trainee, ranks.loop, World.alone(), no_notice)
    assert begun >= 20
    assert steps == list(range(begun, 120))


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.parametrize("name", ["finished", *TRAINS])
def test_the_command_goes_on_as_well(old: Path, name: str) -> None:
    """To the registered model. Of the finished run nothing is made but that, and no training is begun anew."""
    before = {path: path.stat().st_mtime_ns for path in old.glob("root/[!.]*/*/manifest.json")}
    done = subprocess.run(
        run_of(old, name), cwd=PROJECT, env=environment(old), text=True, capture_output=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    after = {path: path.stat().st_mtime_ns for path in old.glob("root/[!.]*/*/manifest.json")}
    changed = {path.parent.parent.name for path in after if after[path] != before.get(path)}
    if name == "finished":
        assert changed <= {"register"}
    else:
        assert TRAINS[name] in changed
        assert not list(old.glob(f"root/.work/{TRAINS[name]}/*/checkpoints"))
