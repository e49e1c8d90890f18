"""evaluate-samples: real digits passed off as samples come out perfect, mislabelled or grey ones do not."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.config.checks import judging_metrics
from pipeline.data.decode import transform
from pipeline.errors import PipelineError
from pipeline.evaluation import classes_read, networks
from pipeline.evaluation.classifier import classifier_inputs
from pipeline.stages import evaluate_samples
from tests.support.artifacts import prepared
from tests.support.contexts import LocalContext, local_context, real_images, reference_of, samples
from tests.support.trainers import small_config

GATE = ["register.gate.metric=reconstruction/psnr"]
SETS = ["evaluate.network_size=32", "evaluate.reference_images=90", "evaluate.batch_size=32"]
NETWORK = "efficientnet_lite0"


def made(folder: Path, *sets: str) -> LocalContext:
    """A context whose samples are the very images of the reference."""
    config = small_config(folder, *SETS, *sets)
    prepare = prepared(config)
    images, labels = real_images(config, prepare, "train", 90)
    inputs = {**reference_of(config, prepare, folder / "scratch"), "sample": samples(config, images, labels)}
    del inputs["train-tokenizer"]
    return local_context(config, "evaluate-samples", inputs, folder / "scratch")


def with_samples(context: LocalContext, images: np.ndarray, labels: np.ndarray) -> LocalContext:
    context.inputs["sample"] = samples(context.config, images, labels)
    return context


def measured(networks: Sequence[str], class_accuracy: bool) -> set[str]:
    return {key for key in judging_metrics(networks, class_accuracy, False) if key.startswith("samples/")}


def test_the_reference_itself_is_perfect(tmp_path):
    outcome = evaluate_samples.run(made(tmp_path))
    assert outcome.rows == 90
    assert outcome.metrics[f"samples/frechet_distance/{NETWORK}"] == pytest.approx(0, abs=1e-3)
    assert outcome.metrics[f"samples/precision/{NETWORK}"] == 1.0
    assert outcome.metrics[f"samples/recall/{NETWORK}"] == 1.0
    assert outcome.metrics["samples/class_accuracy"] == pytest.approx(1, abs=0.02)
    assert outcome.metrics["samples/classifier_accuracy"] >= 0.97, "the classifier must know real digits"
    assert outcome.details["reference"] == "90 images of the training split"
    assert "held-out" in outcome.details["classifier"]
    assert set(outcome.metrics) == measured([NETWORK], class_accuracy=True)
    assert set(outcome.details["intervals"]) == set(outcome.metrics)
    for key, (low, high) in outcome.details["intervals"].items():
        assert low <= outcome.metrics[key] <= high, key
    floor = outcome.metrics[f"samples/frechet_distance_to_reconstructions/{NETWORK}"]
    assert floor > 1, "of a tokenizer that knows nothing"
    assert outcome.details["notes"] == [
        "90 images for the 1,280 features of efficientnet_lite0: their covariance has not full rank, and the Frechet "
        "distance is too large, by more the fewer they are; compare equal numbers, or by kid, which has no bias. "
        "1,281 are the least, 12,800 would do"
    ]


def test_wrong_labels_and_noise_are_seen(tmp_path):
    context = made(tmp_path)
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (60, 3, 32, 32), np.uint8)
    outcome = evaluate_samples.run(with_samples(context, noise, np.arange(60) % 10))
    assert outcome.metrics["samples/class_accuracy"] < 0.4
    assert outcome.metrics[f"samples/frechet_distance/{NETWORK}"] > 1
    assert outcome.metrics[f"samples/precision/{NETWORK}"] < 0.5


def test_inception_gives_its_own_measures(tmp_path, monkeypatch):
    def network(x: torch.Tensor) -> networks.Features:
        flat = x.flatten(1).float() / 255
        return {"pool": flat[:, :20], "spatial": flat[:, 20:30], "logits": torch.zeros(len(x), 1008)}

    monkeypatch.setattr(networks, "feature_network", lambda network_, device: network)
    weights = f"evaluate.network_weights={{uri: file:///none, sha256: '{'0' * 64}'}}"
    context = made(tmp_path, "evaluate.network=inception", "evaluate.network_size=299", weights)
    metrics = evaluate_samples.run(context).metrics
    assert metrics["samples/inception_score"] == pytest.approx(1.0), "equal logits for all: the least score"
    assert metrics["samples/sfid"] == pytest.approx(0, abs=1e-6)
    assert "samples/frechet_distance/inception" in metrics
    assert set(metrics) == measured(["inception"], class_accuracy=True)


def test_without_a_classifier(tmp_path):
    outcome = evaluate_samples.run(made(tmp_path, "evaluate.class_accuracy=false", *GATE))
    assert set(outcome.metrics) == measured([NETWORK], class_accuracy=False)
    assert "classifier" not in outcome.details


@pytest.mark.slow
def test_the_datas_own_classifier_reads_the_samples(tmp_path):
    context = made(tmp_path, "evaluate.also=[self]", "evaluate.class_accuracy=false", *GATE)
    own = "self-digits"
    outcome = evaluate_samples.run(context)
    assert set(outcome.metrics) == measured([NETWORK, own], class_accuracy=False)
    assert outcome.metrics[f"samples/class_accuracy/{own}"] > 0.9, "these are real digits"
    assert context.inputs["classifier"].metrics["classifier/accuracy"] > 0.9
    assert outcome.metrics[f"samples/frechet_distance/{own}"] == pytest.approx(0, abs=1e-3)
    _, labels = real_images(context.config, context.inputs["prepare"], "train", 90)
    images, _ = real_images(context.config, context.inputs["prepare"], "train", 90)
    wrong = evaluate_samples.run(with_samples(context, images, (labels + 1) % 10))
    assert wrong.metrics[f"samples/class_accuracy/{own}"] < 0.1


def test_too_few_samples_are_refused(tmp_path):
    context = made(tmp_path)
    few = with_samples(context, np.zeros((3, 3, 32, 32), np.uint8), np.zeros(3, np.int64))
    with pytest.raises(PipelineError, match="needs 4 real and generated images; there are 90 and 3"):
        evaluate_samples.run(few)


@pytest.mark.parametrize("size", [8, 16, 20, 32, 45])
def test_classifier_inputs_are_area_means(size):
    images = np.random.default_rng(0).integers(0, 256, (2, 3, size, size), np.uint8)
    inputs = classifier_inputs(images)
    side = min(size, 16)
    assert inputs.shape == (2, side * side)
    if size == 32:
        expected = images.astype(float).mean(1).reshape(2, 16, 2, 16, 2).mean((2, 4)) / 255
        assert np.allclose(inputs, expected.reshape(2, -1), atol=1e-6)
    assert np.allclose(classifier_inputs(np.full_like(images, 51)), 0.2, atol=1e-6)


def test_a_classifier_of_imagenet_reads_the_samples(tmp_path, monkeypatch):
    """The share that it reads as asked, over all tasks, with its interval."""
    monkeypatch.setattr(
        "pipeline.evaluation.networks.imagenet_classifier", lambda *_: lambda x_NCHW: x_NCHW[:, 0, 0, 0]
    )
    monkeypatch.setattr(evaluate_samples, "_TASK_SAMPLES", 20)
    context = made(tmp_path, "data.classes=1000", "evaluate.classifier=efficientnet_lite0")
    images = np.zeros((60, 3, 32, 32), np.uint8)
    images[:45] += np.arange(45, dtype=np.uint8)[:, None, None, None]  # their first pixel is what this one reads
    outcome = evaluate_samples.run(with_samples(context, images, np.arange(60)))
    key = f"samples/class_accuracy/{NETWORK}"
    assert outcome.metrics[key] == 45 / 60
    low, high = outcome.details["intervals"][key]
    assert low < 45 / 60 < high
    own = context.config.evaluate
    assert key in judging_metrics([NETWORK], own.class_accuracy, False, own.classifier)


@pytest.mark.slow
def test_real_photographs_are_read_as_what_they_are(real_data, tmp_path):
    """By the real weights, and in the order of classes that ImageNet's folders have: that of their names."""
    from timm.data import ImageNetInfo

    folders = sorted((real_data / "imagenet-sample").iterdir())[::8]
    wnids = ImageNetInfo().label_names()
    assert wnids == sorted(wnids)
    pixels = np.stack([transform(Image.open(next(one.glob("*.JPEG"))).convert("RGB"), 224, True) for one in folders])
    config = small_config(tmp_path, "data.classes=1000", "evaluate.classifier=efficientnet_lite0")
    read_N = classes_read(torch.from_numpy(pixels).permute(0, 3, 1, 2), config.evaluate)
    right = sum(wnids[index] == folder.name for index, folder in zip(read_N.tolist(), folders, strict=True))
    assert right >= 0.6 * len(folders), f"{right} of {len(folders)}"
