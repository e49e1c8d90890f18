"""The command line with generators: convergence, public weights, warm starts, longer training and several averages."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.artifacts import Manifest, all_manifests
from pipeline.storage import open_storage
from tests.support import PROJECT
from tests.support.public_sit import HEADS, SMALL, public_weights
from tests.support.tokenizers import SD_VAE_SETS, saved_tokenizer
from tests.support.whole_runs import ENVIRONMENT, TINY, call, sets

pytestmark = [pytest.mark.slow, pytest.mark.ray]

CURVE = ["sit.steps=60", "sit.milestones=[20,40,60]", "convergence.images=64", "sample.guidance=1"]


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "pipeline", *words]


def environment() -> dict[str, str]:
    return {**{name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"}, **ENVIRONMENT}


def done(*words: str) -> subprocess.CompletedProcess[str]:
    made = subprocess.run(
        command(*words), cwd=PROJECT, env=environment(), text=True, capture_output=True, timeout=600
    )  # fmt: skip
    assert made.returncode == 0, made.stdout + made.stderr
    return made


def made_by(root: Path, stage: str) -> list[Manifest]:
    return [one for one in all_manifests(open_storage(str(root))) if one.stage == stage]


def test_two_trainings_in_one_figure_killed_on_the_way(tmp_path: Path) -> None:
    """The second command goes on: nothing that was committed is made again, and there is one figure of both."""
    for name, own in {"raw": "level: 0, alignment: none", "fda": "level: 2, alignment: fda"}.items():
        (tmp_path / f"{name}.yaml").write_text(f"extends: quickstart\nsit: {{{own}}}\n")
    root, to = tmp_path / "runs", tmp_path / "figure3"
    presets = [str(tmp_path / "raw.yaml"), str(tmp_path / "fda.yaml")]
    given = [*sets(*TINY, *CURVE, f"cluster.mirror={tmp_path / 'mirror'}"), "--root", str(root)]
    begun = subprocess.Popen(
        command("convergence", *presets, "--to", str(to), *given), cwd=PROJECT, env=environment(),
        stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip
    end = time.monotonic() + 400
    while not list(root.glob(".work/train-sit/*/checkpoints/*040/state.json")):
        assert begun.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < end
        time.sleep(0.05)
    begun.kill()
    begun.wait()
    said = done("convergence", *presets, "--to", str(to), *given).stdout
    assert "raw" in said
    assert "fda" in said
    assert {"figure3.png", "figure3.svg"} <= {path.name for path in to.iterdir()}
    curves = made_by(root, "convergence")
    assert len(curves) == 2
    assert [len(made_by(root, stage)) for stage in ("train-tokenizer", "encode", "train-sit")] == [1, 1, 2]
    points = [json.loads((root / one.name / "curve-efficientnet_lite0.json").read_text())["points"] for one in curves]
    assert [[point["step"] for point in curve] for curve in points] == [[20, 40, 60]] * 2
    before = {one.name: one.created for one in all_manifests(open_storage(str(root)))}
    done("convergence", *presets, "--to", str(to), *given)
    assert {one.name: one.created for one in all_manifests(open_storage(str(root)))} == before


def test_a_public_generator_samples_and_is_registered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, file, folder = tmp_path / "runs", tmp_path / "repa.pt", tmp_path / "vae"
    saved_tokenizer(folder, "sd-vae", latent_channels=4)
    done("import", "tokenizer", "sd-vae", str(folder), "--image-size", "32", "--root", str(root))
    weights = public_weights("repa", **{**SMALL, "classes": 10})
    torch.save({"ema": weights, "steps": 7}, file)
    done("import", "sit", "repa", str(file), "--heads", str(HEADS), "--root", str(root))
    (tokenizer,), (sit,) = made_by(root, "train-tokenizer"), made_by(root, "train-sit")
    own = [one for one in TINY if not one.startswith(("tokenizer.", "sit."))] + [
        f"tokenizer.imported={tokenizer.fingerprint}", f"sit.imported={sit.fingerprint}", "tokenizer.kind=sd-vae",
        "sit.level=0", "tokenizer.latent_dim=4", *SD_VAE_SETS[-4:], f"cluster.mirror={tmp_path / 'mirror'}",
    ]  # fmt: skip
    given = [*sets(*own), "--root", str(root)]
    done("run", "quickstart", *given)
    assert [one.inputs["train-sit"] for one in made_by(root, "register")] == [sit.fingerprint]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{root}/mlflow.db")
    drawn = tmp_path / "drawn.npz"
    done("sample", "quickstart", *given, "--class", "0-2,7", "--n", "2", "--npz", str(drawn))
    with np.load(drawn) as arrays:
        assert arrays["arr_0"].shape == (8, 32, 32, 3)
        assert sorted(set(arrays["arr_1"].tolist())) == [0, 1, 2, 7]
    out = tmp_path / "out.pt"
    done("export", "sit", "repa", "quickstart", *given, "--to", str(out))
    again = torch.load(out, weights_only=True)
    again = again.get("ema", again)
    names = [name for name in again if not name.startswith("projectors")]  # of REPA's training, which was left behind
    torch.testing.assert_close(*({name: one[name] for name in names} for one in (again, weights)), atol=1e-6, rtol=0)


def test_longer_then_from_there(undisturbed: Path, tmp_path: Path) -> None:
    """More steps go on from the kept state; another recipe starts from the weights."""
    root = tmp_path / "runs"
    for stage in ("prepare", "train-tokenizer", "encode"):
        shutil.copytree(undisturbed / stage, root / stage)
    constant = ["sit.decay=constant", "sit.warmup=0"]
    own = sets("sit.keep_state=true", "sit.ema_decays=[0.5]", "sit.milestones=[10]", *constant)
    call("run", root, *own, *sets("sit.steps=20"), "--until", "train-sit")
    longer = call("run", root, *own, *sets("sit.steps=30"), "--until", "train-sit")
    (first, second) = sorted(made_by(root, "train-sit"), key=lambda one: int(one.config["sit.steps"]))
    assert second.details["went_on_from"] == {"artifact": first.name, "step": 20}
    assert f"goes on from {first.name} at step 20" in longer.stdout
    start = sets(f"sit.start_from={second.fingerprint[:10]}", "sit.steps=5", "sit.learning_rate=5e-5")
    call("run", root, *start, "--until", "train-sit")
    (warm,) = [one for one in made_by(root, "train-sit") if "sit.start_from" in one.config]
    assert warm.config["sit.start_from"] == second.fingerprint
    lines = [json.loads(line) for line in (root / warm.name / "history.jsonl").read_text().splitlines()]
    cold = [json.loads(line) for line in (root / first.name / "history.jsonl").read_text().splitlines()]
    assert lines[0]["loss"] < cold[0]["loss"], "it knows what the other has learnt"
