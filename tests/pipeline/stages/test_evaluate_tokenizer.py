"""evaluate-tokenizer against the models' own measures, on digits and a tokenizer with random weights."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from models.metrics import from_uint8, inception_score, psnr_B, to_uint8
from pipeline import metrics
from pipeline.artifacts.manifest import artifact_path
from pipeline.config.checks import judging_metrics
from pipeline.errors import DataError
from pipeline.evaluation.comparison import reconstruction_metrics
from pipeline.evaluation.features import write_features
from pipeline.evaluation.networks import Network
from pipeline.inference.networks import load_tokenizer
from pipeline.stages import evaluate_tokenizer
from pipeline.storage import open_storage
from tests.support.artifacts import prepared
from tests.support.contexts import LocalContext, local_context, real_images, untrained_tokenizer
from tests.support.trainers import small_config

SETS = ["evaluate.images=60", "evaluate.batch_size=25", "evaluate.network_size=32"]


def made(folder: Path, stage: str, *sets: str) -> LocalContext:
    config = small_config(folder, *SETS, *sets)
    prepare = prepared(config)
    tokenizer = untrained_tokenizer(config, prepare, folder / "scratch")
    return local_context(config, stage, {"prepare": prepare, "train-tokenizer": tokenizer}, folder / "scratch")


def validation(context: LocalContext, most: int) -> torch.Tensor:
    return torch.from_numpy(real_images(context.config, context.inputs["prepare"], "validation", most)[0])


def levels(context: LocalContext, images: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """The latent and the reconstruction at every level, straight from the models."""
    tokenizer, latent_filter = load_tokenizer(context.storage, context.inputs["train-tokenizer"], torch.device("cpu"))
    latents = [latent_filter(tokenizer.encode(from_uint8(images)).mean_BDhw, level) for level in range(4)]
    return [(z, to_uint8(tokenizer.decode(z))) for z in latents]


def shown(context: LocalContext) -> set[str]:
    lines = [context.storage.read(entry.path) for entry in context.storage.list(".work/tracking")]
    return {json.loads(line)["path"].rpartition("/")[2] for text in lines for line in text.splitlines()}


def measured(network: str, lpips: bool) -> set[str]:
    return {key for key in judging_metrics([network], False, lpips) if key.startswith("reconstruction/")}


def test_every_level_is_measured_against_the_image_itself(tmp_path):
    context = made(tmp_path, "evaluate-tokenizer")
    outcome = evaluate_tokenizer.run(context)
    assert outcome.rows == 60
    images = validation(context, 60)
    for level, (_, reconstruction) in enumerate(levels(context, images)):
        name = "reconstruction/psnr" + (f"_level{level}" if level else "")
        assert outcome.metrics[name] == pytest.approx(float(psnr_B(reconstruction, images).mean()), abs=1e-3)
        assert -1 <= outcome.metrics[name.replace("psnr", "ssim")] <= 1
        error = float(psnr_B(reconstruction, images).std()) / 60**0.5
        assert outcome.details["intervals"][name][1] - outcome.metrics[name] == pytest.approx(1.96 * error, rel=0.02)
    assert set(outcome.details["intervals"]) == set(outcome.metrics)
    assert outcome.metrics["reconstruction/frechet_distance/efficientnet_lite0"] > 0
    assert set(outcome.metrics) == measured("efficientnet_lite0", lpips=False)
    assert set(outcome.files) == shown(context) == {"reconstructions.png"}
    folder = artifact_path("evaluate-tokenizer", context.fingerprint)
    assert context.storage.read(f"{folder}/reconstructions.png").startswith(b"\x89PNG")


def test_every_level_has_its_distances(tmp_path):
    """Table 4: the blurred levels are further from the originals."""
    said = list[str]()
    outcome = evaluate_tokenizer.run(replace(made(tmp_path, "evaluate-tokenizer"), say=said.append))
    assert outcome.details["notes"] == said, "of all levels one line"
    assert [line.partition(":")[0] for line in said] == ["60 images for the 1,280 features of efficientnet_lite0"]
    name = "reconstruction/frechet_distance/efficientnet_lite0"
    distances = [outcome.metrics[name + suffix] for suffix in ("", "_level1", "_level2", "_level3")]
    assert len(set(distances)) == 4
    low, high = outcome.details["intervals"][name]
    line = f"frechet_distance/efficientnet_lite0 {distances[0]:.5g} ({low:.4g} to {high:.4g})"
    assert metrics.on_line(outcome.metrics, outcome.details["intervals"])[-1] == line
    assert low < distances[0] < high
    assert {metrics.find_metric(name + suffix) for suffix in ("", "_level3")} == {metrics.find_metric(name)}


def test_inceptions_measures_have_their_own_names(tmp_path):
    """rFID, r-sFID and the Inception Score, from features of either set."""
    storage = open_storage(str(tmp_path))
    source = torch.Generator().manual_seed(0)
    files = {}
    for side in ("original", "reconstruction"):
        kinds = {"pool": 4, "spatial": 3, "logits": 5}
        files[side] = {f"inception/{kind}": torch.rand(40, width, generator=source) for kind, width in kinds.items()}
        write_features(storage, side, files[side])
    inception = Network("inception", "inception", 299, None, "")
    measures = reconstruction_metrics(storage, ["original"], ["reconstruction"], inception)
    assert measures.intervals.keys() == measures.metrics.keys()
    found = measures.metrics
    assert {f"reconstruction/{name}" for name in ("rfid", "sfid", "inception_score")} == set(found)
    assert found.keys() == {key for key in measured("inception", lpips=False) if "level" not in key} - {
        "reconstruction/psnr", "reconstruction/ssim",
    }  # fmt: skip
    assert found["reconstruction/inception_score"] == inception_score(files["reconstruction"]["inception/logits"])
    same = reconstruction_metrics(storage, ["original"], ["original"], inception).metrics
    assert same["reconstruction/rfid"] == pytest.approx(0, abs=1e-6)
    assert same["reconstruction/sfid"] == pytest.approx(0, abs=1e-6)


@pytest.mark.slow
def test_lpips_is_measured_where_its_weights_are_given(tmp_path, monkeypatch):
    def distance(y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        assert y.min() >= -1
        assert x.max() <= 1
        return (y - x).abs().mean((1, 2, 3))

    monkeypatch.setattr(evaluate_tokenizer, "_lpips", lambda weights, device: distance)
    sha256 = "0" * 64
    context = made(tmp_path, "evaluate-tokenizer", f"evaluate.lpips={{uri: file:///none, sha256: '{sha256}'}}")
    outcome = evaluate_tokenizer.run(context)
    images = validation(context, 60)
    for level, (_, reconstruction) in enumerate(levels(context, images)):
        name = "reconstruction/lpips" + (f"_level{level}" if level else "")
        expected = distance(from_uint8(reconstruction), from_uint8(images)).mean()
        assert outcome.metrics[name] == pytest.approx(float(expected), rel=1e-3)

    assert set(outcome.metrics) == measured("efficientnet_lite0", lpips=True)


def test_one_image_has_no_distance(tmp_path):
    context = made(tmp_path, "evaluate-tokenizer", "evaluate.images=1")
    with pytest.raises(DataError, match="needs 2 validation images; there are 1"):
        evaluate_tokenizer.run(context)
