"""reference, floor and classifier: what samples are compared with, and that it is what the models give."""

from pathlib import Path

import numpy as np
import pytest
import torch

from models.metrics import from_uint8, to_uint8
from pipeline.artifacts import Manifest
from pipeline.config import Config, floor_keys, load_config
from pipeline.data import choose_rows, thinned
from pipeline.errors import ConfigError, ContractError
from pipeline.evaluation import read_statistics
from pipeline.evaluation.networks import feature_network, networks_of
from pipeline.evaluation.reference import Statistics
from pipeline.inference import load_tokenizer
from pipeline.storage import open_storage
from pipeline.workflow import stage_fingerprints
from pipeline.workflow.graph import check_exists, find_stage
from pipeline.workflow.preflight import check_images, check_labelled, check_start
from tests.support.artifacts import prepared
from tests.support.contexts import real_images, reference_of
from tests.support.trainers import small_config

SETS = ["evaluate.network_size=32", "evaluate.reference_images=70", "evaluate.batch_size=32", "evaluate.also=[self]"]
LITE, OWN = "efficientnet_lite0", "self-digits"


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    return small_config(tmp_path_factory.mktemp("reference"), *SETS)


@pytest.fixture(scope="module")
def made(config: Config, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Manifest]:
    return reference_of(config, prepared(config), tmp_path_factory.mktemp("scratch"))


def statistics(config: Config, manifest: Manifest, network: str) -> Statistics:
    return read_statistics(open_storage(config.root), manifest, network)


def features(config: Config, made: dict[str, Manifest], images: torch.Tensor, place: int) -> torch.Tensor:
    network = networks_of(config, made, open_storage(config.root).root)[place]
    return feature_network(network, torch.device("cpu"))(images)["pool"]


@pytest.mark.parametrize(("place", "network"), enumerate([LITE, OWN]))
def test_the_reference_has_the_statistics_of_the_real_images(config, made, place, network):
    images, _ = real_images(config, made["prepare"], "train", 70)
    expected = features(config, made, torch.from_numpy(images), place)
    found = statistics(config, made["reference"], network)
    assert found.images == 70
    torch.testing.assert_close(found.features_NF, expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found.moments["pool"].mean_F, expected.double().mean(0), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found.moments["pool"].covariance_FF, expected.double().T.cov(), atol=1e-4, rtol=1e-3)
    assert made["reference"].details["reference"] == "70 images of the training split"
    assert made["reference"].metrics == {"reference/images": 70.0}


def test_the_floor_is_of_the_same_images_at_the_generators_level(config, made):
    images = torch.from_numpy(real_images(config, made["prepare"], "train", 70)[0])
    tokenizer, latent_filter = load_tokenizer(open_storage(config.root), made["train-tokenizer"], torch.device("cpu"))
    z_BDhw = latent_filter(tokenizer.encode(from_uint8(images)).mean_BDhw, config.sit.level)
    expected = features(config, made, to_uint8(tokenizer.decode(z_BDhw)), 0)
    assert made["floor"].details["level"] == config.sit.level == 2
    (note,) = made["floor"].details["notes"]  # of the classifier's features there are fewer than images
    assert note.startswith("70 images for the 1,280 features of efficientnet_lite0: ")
    torch.testing.assert_close(statistics(config, made["floor"], LITE).features_NF, expected, atol=0.05, rtol=0.05)
    assert set(made["floor"].metrics) == floor_keys([LITE, OWN])
    for key, (low, high) in made["floor"].intervals.items():
        assert low < made["floor"].metrics[key] < high
        assert made["floor"].metrics[key] > 0


def test_a_reference_that_is_gone_is_said_in_a_line(config, made):
    gone = made["reference"].model_copy(update={"fingerprint": "0" * 64})
    with pytest.raises(ContractError, match=r"reference/000000000000/self-digits.safetensors is missing"):
        statistics(config, gone, OWN)


def test_rows_are_thinned_as_features_are(made):
    units = choose_rows(made["prepare"], "train", 70)
    thin = thinned(units, 7)
    assert [row for unit in thin for row in unit.rows] == [row for unit in units for row in unit.rows][::10]
    assert thinned(units, 1000) == units


# --- what counts ---


def prints(*sets: str) -> dict[str, str | None]:
    return stage_fingerprints(load_config("quickstart", ["data.revision=abc", *sets]))


def moved(*sets: str) -> list[str]:
    before, after = prints(), prints(*sets)
    return [stage for stage in before if before[stage] != after[stage]]


def test_what_a_reference_depends_on():
    assert moved("evaluate.reference_split=validation") == moved("evaluate.reference_images=100")
    assert moved("evaluate.reference_images=100") == [
        "reference", "floor", "evaluate-samples", "register", "convergence",
    ]  # fmt: skip
    assert moved("evaluate.class_accuracy=false", "register.gate.metric=reconstruction/psnr") == [
        "evaluate-samples", "register",
    ]  # fmt: skip
    assert "reference" not in moved("sit.level=1")
    assert "floor" in moved("sit.level=1")
    assert "floor" not in moved("sit.steps=9")
    assert moved("data.name=mine") == [], "no key has it"


def test_the_classifier_is_there_where_it_is_asked_for():
    config = load_config("quickstart", ["data.revision=abc"])
    assert "classifier" not in prints()
    assert find_stage("evaluate-tokenizer").inputs_with(config) == ("prepare", "train-tokenizer")
    with pytest.raises(ConfigError, match="classifier: no network of this config is self"):
        check_exists(config, "classifier")
    own = ["evaluate.also=[self]"]
    assert moved(*own)[0] == "evaluate-tokenizer"
    first, other = prints(*own), prints(*own, "data.name=mine")
    assert first["classifier"] != other["classifier"], "the keys have its name"
    assert prints(*own, "evaluate.network_size=64")["classifier"] == first["classifier"]


# --- what is refused ---


def test_data_without_classes_have_no_network_of_their_own(made):
    with pytest.raises(ConfigError, match=r"is a classifier, and data.classes is 1"):
        load_config("quickstart", ["evaluate.also=[self]", "data.classes=1"])
    with pytest.raises(ConfigError, match=r"named after its data; set data.name"):
        load_config("quickstart", ["evaluate.also=[self]", "data.format=folder", "data.horizontal_flip=true"])
    with pytest.raises(ConfigError, match="names a network twice"):
        load_config("quickstart", ["evaluate.also=[efficientnet_lite0]"])
    found = load_config("quickstart", ["evaluate.also=[self]"])
    one = found.model_copy(update={"data": found.data.model_copy(update={"classes": 1})})
    with pytest.raises(ConfigError, match="the network self is a classifier, and the source has one class"):
        check_start(one, ["classifier"])
    ten = found.model_copy(update={"data": found.data.model_copy(update={"classes": 10})})
    counts = {"train": [9, 0], "validation": [1, 0]}
    poor = made["prepare"].model_copy(update={"details": {**made["prepare"].details, "class_counts": counts}})
    for check in (lambda: check_labelled(ten, poor), lambda: check_images(ten, ["classifier"], poor)):
        with pytest.raises(ConfigError, match="the training images have one class"):
            check()


def test_validation_images_as_a_reference(tmp_path: Path):
    config = small_config(tmp_path, *SETS[:1], "evaluate.reference_split=validation")
    made = reference_of(config, prepared(config), tmp_path / "scratch")
    count = sum(file["rows"] for file in made["prepare"].details["splits"]["validation"])
    assert made["reference"].details["reference"] == f"{count} images of the validation split"
    images, _ = real_images(config, made["prepare"], "validation", count)
    expected = features(config, made, torch.from_numpy(np.ascontiguousarray(images)), 0)
    torch.testing.assert_close(statistics(config, made["reference"], LITE).features_NF, expected, atol=1e-4, rtol=1e-4)
