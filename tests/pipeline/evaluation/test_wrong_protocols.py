"""Protocols that are wrong, and by how much the number moves: each is told from the right one, which gives 0 or less.

Features are a fixed random projection of pixels, so that what moves is the protocol and no network's taste.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from models.generator import ImageGenerator, LatentStatistics, Sampling
from models.metrics import FeatureMoments, frechet_distance, from_uint8, kid, psnr_B, to_uint8
from pipeline.config import Config
from pipeline.data import transform
from pipeline.evaluation.comparison import sample_metrics
from pipeline.evaluation.features import write_features
from pipeline.evaluation.networks import Network
from pipeline.evaluation.reference import gathered
from pipeline.storage import open_storage
from tests.support.artifacts import prepared
from tests.support.contexts import real_images
from tests.support.registration import STATISTICS, random_networks
from tests.support.trainers import small_config

FEATURES = 16


def features(images_NCHW: Tensor) -> Tensor:
    """(N, 16) fp64, of about unit size."""
    flat = images_NCHW.flatten(1).double() / 255
    spread = torch.randn(flat.shape[1], FEATURES, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return flat @ spread / flat.shape[1] ** 0.5 * 10


def moments(features_NF: Tensor) -> tuple[Tensor, Tensor]:
    total = FeatureMoments(features_NF.shape[1])
    total.update(features_NF)
    return total.result()


def distance(a_NF: Tensor, b_NF: Tensor) -> float:
    return frechet_distance(*moments(a_NF), *moments(b_NF))


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> tuple[Tensor, Tensor]:
    """Real images of the training and of the validation split."""
    config: Config = small_config(tmp_path_factory.mktemp("protocols"))
    prepare = prepared(config)
    train, validation = (real_images(config, prepare, split, 300)[0] for split in ("train", "validation"))
    return torch.from_numpy(train), torch.from_numpy(validation)


def test_latents_left_normalised() -> None:
    """A decoder that is given them as the generator has them makes other images."""
    tokenizer, sit = random_networks()
    sampling = Sampling("euler", 3)
    labels, indices = torch.arange(60) % 10, list(range(60))
    right = ImageGenerator(tokenizer, sit, LatentStatistics(**STATISTICS), "velocity").draw(labels, indices, sampling)
    channels = len(STATISTICS["std"])
    as_it_is = LatentStatistics(mean=[0.0] * channels, std=[1.0] * channels)
    wrong = ImageGenerator(tokenizer, sit, as_it_is, "velocity").draw(labels, indices, sampling)
    assert distance(features(right), features(right)) == pytest.approx(0, abs=1e-6)
    assert distance(features(right), features(wrong)) > 0.01


def test_truncation_for_rounding(digits: tuple[Tensor, Tensor]) -> None:
    """It darkens every image by half a level, which the round trip of our rule does not."""
    images = digits[0]
    within = torch.rand(images.shape, generator=torch.Generator().manual_seed(1)) - 0.5
    noisy = from_uint8(images) + 0.9 / 127.5 * within
    rounded, truncated = to_uint8(noisy), (noisy * 127.5 + 127.5).clamp(0, 255).to(torch.uint8)
    assert torch.equal(rounded, images)
    assert psnr_B(truncated, images).mean() < psnr_B(rounded, images).mean() - 3
    assert distance(features(images), features(rounded)) == pytest.approx(0, abs=1e-9)
    assert distance(features(images), features(truncated)) > 1e-7


def test_flattening_channels_first_for_sfid() -> None:
    """The same numbers in another order are other features, where rows of one file meet those of another."""
    maps_NhwC = torch.rand(200, 4, 4, 7, generator=torch.Generator().manual_seed(0)).double() * torch.arange(1, 8)
    right = maps_NhwC.flatten(1)
    wrong = maps_NhwC.permute(0, 3, 1, 2).flatten(1)
    assert distance(right, right) == pytest.approx(0, abs=1e-6)
    assert distance(right, wrong) > 10


def test_an_uncropped_reference() -> None:
    """Photographs are wider than high: squeezed to a square they are another distribution than cropped."""
    random = np.random.default_rng(0)
    pictures = [Image.fromarray(random.integers(0, 256, (8, 16, 3), np.uint8)).resize((96, 48)) for _ in range(80)]
    sides = {
        crop: torch.from_numpy(np.stack([transform(picture, 32, crop) for picture in pictures])).permute(0, 3, 1, 2)
        for crop in (True, False)
    }
    right, wrong = features(sides[True]), features(sides[False])
    assert distance(right, wrong) > 0.05
    assert kid(wrong, right).value != pytest.approx(0, abs=1e-3)


def test_validation_for_training_reference(digits: tuple[Tensor, Tensor]) -> None:
    """What was trained on is nearer to itself: the reference has to be named."""
    train, validation = (features(images) for images in digits)
    assert distance(train, train) == pytest.approx(0, abs=1e-6)
    assert distance(train, validation) > 0.01


def test_half_precision_statistics(digits: tuple[Tensor, Tensor]) -> None:
    """Sums of fp16 lose what the distance is made of; ours of fp32 features are fp64."""
    half = (features(digits[0]) + 40).half()
    mean = half.sum(0, dtype=torch.float16) / len(half)
    centred = half - mean
    covariance = (centred.mT @ centred) / (len(half) - 1)
    exact = moments(half)
    assert frechet_distance(*exact, *exact) == pytest.approx(0, abs=1e-6)
    assert frechet_distance(mean.double(), covariance.double(), *exact) > 1e-3


def test_samples_of_classes_that_do_not_exist(tmp_path: Path) -> None:
    """The generator refuses the label after the last, its null class; if drawn elsewhere, accuracy shows it."""
    tokenizer, sit = random_networks()
    generator = ImageGenerator(tokenizer, sit, LatentStatistics(**STATISTICS), "velocity")
    with pytest.raises(ValueError, match="label"):
        generator.draw(torch.tensor([sit.null_label]), [0], Sampling("euler", 2))
    storage, own = open_storage(str(tmp_path)), Network("self-digits", "self", 32, None, "")
    labels = torch.arange(40) % 10
    found = {}
    for name, asked in (("right", labels), ("wrong", torch.where(labels < 5, labels, 10))):
        logits, pool = torch.eye(10)[labels], torch.rand(40, 4, generator=torch.Generator().manual_seed(0))
        write_features(storage, name, {"self-digits/logits": logits, "self-digits/pool": pool, "labels": asked})
        real = gathered(storage, ["right"], own)
        measured = sample_metrics(storage, [name], real, real, own)
        found[name] = measured.metrics["samples/class_accuracy/self-digits"]
    assert found == {"right": 1.0, "wrong": 0.5}
