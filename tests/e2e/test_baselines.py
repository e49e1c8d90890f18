"""The command line with the baselines in the place of the ViT: SD-VAE trained, DC-AE imported, both to a champion."""

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.artifacts import all_manifests
from pipeline.storage import open_storage
from tests.support import PROJECT
from tests.support.tokenizers import SD_VAE_SETS, saved_tokenizer
from tests.support.whole_runs import ENVIRONMENT, TINY, call, one_line, sets

pytestmark = [pytest.mark.slow, pytest.mark.ray]

UNTRAINED = sets(*(one for one in TINY if not one.startswith("tokenizer.")))


def command(*words: str) -> subprocess.CompletedProcess[str]:
    import os

    environment = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"}
    return subprocess.run(
        [sys.executable, "-m", "pipeline", *words], cwd=PROJECT, env={**environment, **ENVIRONMENT}, text=True,
        capture_output=True, timeout=600,
    )  # fmt: skip


def champion_draws(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import mlflow
    import pandas
    from PIL import Image

    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{root}/mlflow.db")
    model = mlflow.pyfunc.load_model("models:/denoising-vae@champion")
    pictures = model.predict(pandas.DataFrame({"label": [3], "seed": [0]}), params={"steps": 2})["image"]
    assert [Image.open(io.BytesIO(picture)).size for picture in pictures] == [(32, 32)]


def test_sd_vae_from_images_to_a_champion_and_to_diffusers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import diffusers

    root, own = tmp_path / "runs", sets(*SD_VAE_SETS)
    call("run", root, *own)
    champion_draws(root, monkeypatch)
    done = command("export", "tokenizer", "quickstart", *_given(root, *own), "--to", str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    network = diffusers.AutoencoderKL.from_pretrained(tmp_path / "out")
    assert list(network.config.block_out_channels) == [8, 16, 16]
    again = command("export", "tokenizer", "quickstart", *_given(root, *own), "--to", str(tmp_path / "out"))
    one_line(again.stderr, "is not empty")


def _given(root: Path, *own: str) -> list[str]:
    return [*sets(*TINY), *own, "--root", str(root)]


def test_dc_ae_is_imported_and_runs_to_a_champion(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, public = tmp_path / "runs", tmp_path / "public"
    saved_tokenizer(public, "dc-ae")
    done = command("import", "tokenizer", "dc-ae", str(public), "--image-size", "32", "--root", str(root))
    assert done.returncode == 0, done.stderr
    (made,) = all_manifests(open_storage(str(root)))
    assert f"imported: {made.fingerprint}" in done.stdout
    own = sets(
        "tokenizer.kind=dc-ae", f"tokenizer.imported={made.fingerprint}", "tokenizer.latent_dim=4", *SD_VAE_SETS[-4:]
    )
    done = command("run", "quickstart", *UNTRAINED, *own, "--root", str(root))
    assert done.returncode == 0, done.stdout + done.stderr
    champion_draws(root, monkeypatch)
    verified = command("artifact", "verify", "--root", str(root))
    assert f"{made.name}  ok" in verified.stdout
    kept = _stages(root, own)
    assert {stage["status"] for stage in kept.values()} == {"cached"}
    (root / made.name / "weights.safetensors").write_bytes(b"broken")
    repaired = command("artifact", "repair", made.name, "--root", str(root))
    one_line(repaired.stderr, "was imported", f"import tokenizer dc-ae file://{public}")
    assert (
        command("import", "tokenizer", "dc-ae", str(public), "--image-size", "32", "--root", str(root)).returncode == 0
    )
    assert _stages(root, own) == kept


def _stages(root: Path, own: list[str]) -> dict[str, dict[str, object]]:
    """The report's stages by name; without the seconds of the import, which differ from one to the next."""
    told = command("report", "quickstart", *UNTRAINED, *own, "--root", str(root), "--json")
    assert told.returncode == 0, told.stdout + told.stderr
    stages: dict[str, dict[str, object]] = json.loads(told.stdout)["stages"]
    del stages["train-tokenizer"]["seconds"]
    return stages
