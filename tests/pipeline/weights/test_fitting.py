"""Weights of another network than a field takes, and files that are not whole, are refused before a run starts."""

import hashlib
import json
import re
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save, save_file

from models.inception import inception_layout
from pipeline.config import Config, load_config
from pipeline.errors import ConfigError
from pipeline.weights import check_file, resolve_weights, weights_used
from pipeline.weights.catalogue import Layout
from pipeline.weights.convert import _timm_layout
from pipeline.weights.fitting import NETWORKS, tensor_shapes

INCEPTION = ["evaluate.network=inception", "evaluate.network_size=299"]


def config_of(*sets: str) -> Config:
    return load_config("quickstart", ["data.revision=abc", *sets])


@pytest.mark.parametrize("layout", NETWORKS)
def test_the_known_shapes_are_those_of_the_network(layout: Layout) -> None:
    timm_name = {"dinov2_vitb14": "vit_base_patch14_dinov2"}.get(layout, layout)
    own = inception_layout() if layout == "inception" else _timm_layout(timm_name)
    known = NETWORKS[layout].shapes
    assert known == {name: list(own[name].shape) for name in known}
    if layout == "vgg16":
        assert known.keys() == {name for name in own if name.startswith("features.")}


@pytest.mark.parametrize(
    ("sets", "said"),
    [
        (
            ["evaluate.lpips=inception"],
            "evaluate.lpips: inception is Inception-v3 of FID .* takes VGG-16 .*lpips=vgg16",
        ),
        (["tokenizer={perceptual: lpips, lpips: sd-vae-ft-ema}"], "tokenizer.lpips: sd-vae-ft-ema is SD-VAE"),
        (
            ["tokenizer={perceptual: lpips+convnext, convnext: vgg16}"],
            "tokenizer.convnext: vgg16 .* Set tokenizer.convnext=convnext-small",
        ),
        (
            ["tokenizer={perceptual: efficientnet_lite0, efficientnet: vgg16}"],
            "tokenizer.efficientnet: .*Set tokenizer.efficientnet=efficientnet-lite0",
        ),
        (["evaluate.network_weights=vgg16"], "evaluate.network_weights: .*=efficientnet-lite0"),
        (
            [*INCEPTION, "evaluate.network_weights=dinov2-vitb14"],
            "evaluate.network_weights: dinov2-vitb14 .* Set evaluate.network_weights=inception",
        ),
    ],
)
def test_a_name_of_another_network_is_refused(sets: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        resolve_weights(config_of(*sets))
    assert "\n" not in str(caught.value)


def refusal(path: Path) -> str:
    """Of a file as the weights of LPIPS."""
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    config = config_of(f"evaluate.lpips={{uri: 'file://{path}', sha256: '{digest}'}}")
    (use,) = (one for one in weights_used(config) if one.field == "lpips")
    with pytest.raises(ConfigError) as caught:
        check_file(use, config, path)
    line = str(caught.value)
    assert line.startswith(f"evaluate.lpips: file://{path} is not ")
    assert "\n" not in line
    return line


def test_a_file_of_another_network_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_file({"stem.0.weight": torch.zeros(2)}, path)
    assert "not of VGG-16: it has no features.0.weight" in refusal(path)
    save_file({"features.0.weight": torch.zeros(5, 3)}, path)
    assert "not of VGG-16: features.0.weight has shape [5, 3], not [64, 3, 3, 3]" in refusal(path)


def test_a_file_that_is_not_whole_is_refused(tmp_path: Path) -> None:
    path, whole = tmp_path / "weights.safetensors", save({"features.0.weight": torch.zeros(5, 3)})
    for data in (b"", b"\x01", whole[:-1], whole + b"x", b"<html>not found</html>", b"PK\x03\x04" + bytes(100)):
        path.write_bytes(data)
        assert "is not a file of safetensors" in refusal(path)
    for header in (b"{", b"[]", b"\xff\xfe", b'{"a": 1}', b'{"a": {"shape": 3, "data_offsets": [0, 0]}}', b'{"a": {}}'):
        path.write_bytes(len(header).to_bytes(8, "little") + header)
        assert "is not a file of safetensors" in refusal(path)


def test_another_file_than_the_packages_is_no_efficientnet() -> None:
    """Which is no safetensors: it is known by its sha256, before a worker would open it."""
    sets = [
        "evaluate.network=efficientnet_lite0",
        f"evaluate.network_weights={{uri: 's3://b/x', sha256: '{'a' * 64}'}}",
    ]
    config = config_of(*sets)
    (use,) = (one for one in weights_used(config) if one.field == "network_weights")
    with pytest.raises(ConfigError, match=r"network_weights: s3://b/x is not the file of .*Set .*=efficientnet-lite0"):
        check_file(use, config, Path("x"))
    named = resolve_weights(config_of("evaluate.network_weights=efficientnet-lite0"))
    (own,) = (one for one in weights_used(named) if one.field == "network_weights")
    check_file(own, named, Path("x"))


def test_a_whole_file_of_the_network_is_taken(tmp_path: Path) -> None:
    """Of shapes alone: the header says the sizes, and the file is as long, with a hole for the values."""
    header, end = {}, 0
    for name, shape in NETWORKS["vgg16"].shapes.items():
        size = 4 * int(torch.Size(shape).numel())
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text, path = json.dumps(header).encode(), tmp_path / "weights.safetensors"
    with open(path, "wb") as handle:
        handle.write(len(text).to_bytes(8, "little") + text)
        handle.truncate(8 + len(text) + end)
    config = config_of(f"evaluate.lpips={{uri: 'file://{path}', sha256: {'a' * 64}}}")
    for use in weights_used(config):
        check_file(use, config, path)


@given(st.dictionaries(st.text(min_size=1, max_size=5), st.lists(st.integers(0, 3), max_size=3), max_size=4))
def test_a_header_is_read_as_by_safetensors(
    tmp_path_factory: pytest.TempPathFactory, shapes: dict[str, list[int]]
) -> None:
    shapes.pop("__metadata__", None)
    path = tmp_path_factory.mktemp("header") / "weights.safetensors"
    save_file({name: torch.zeros(shape) for name, shape in shapes.items()}, path, metadata={"format": "pt"})
    assert tensor_shapes(path) == shapes


def test_the_sum_is_named_with_the_file(tmp_path: Path) -> None:
    from pipeline.weights import fetch_weights

    path = tmp_path / "weights.safetensors"
    path.write_bytes(b"x")
    config = config_of(f"evaluate.lpips={{uri: 'file://{path}', sha256: {'a' * 64}}}")
    (use,) = (one for one in weights_used(config) if one.field == "lpips")
    with pytest.raises(ConfigError, match=re.escape(f"file://{path} has sha256 ")):
        fetch_weights(use.file)


def classifier_refusal(name: str, path: Path) -> str:
    """Of a file as the weights of a classifier of ImageNet."""
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    weights = f"evaluate.classifier_weights={{uri: 'file://{path}', sha256: '{digest}'}}"
    config = load_config("imagenet-f16d32", ["data.revision=abc", f"evaluate.classifier={name}", weights])
    (use,) = (one for one in weights_used(config) if one.field == "classifier_weights")
    with pytest.raises(ConfigError) as caught:
        check_file(use, config, path)
    return str(caught.value)


def test_a_classifier_of_imagenet_is_asked_of_timm(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_file({"conv1.weight": torch.zeros(64, 3, 7, 7)}, path)
    said = classifier_refusal("resnet18", path)
    assert f"evaluate.classifier_weights: file://{path} is not of timm's resnet18: it has no bn1.weight" in said
    assert "timm has no network resnet81. Did you mean resnet" in classifier_refusal("resnet81", path)
    assert "vit_base_patch14_dinov2 reads 0 classes, not the 1,000" in classifier_refusal(
        "vit_base_patch14_dinov2", path
    )


def test_a_whole_file_of_a_classifier_is_taken(tmp_path: Path) -> None:
    import timm

    path = tmp_path / "weights.safetensors"
    save_file(timm.create_model("test_resnet", pretrained=False).state_dict(), path)
    weights = f"evaluate.classifier_weights={{uri: 'file://{path}', sha256: {'a' * 64}}}"
    config = load_config("imagenet-f16d32", ["data.revision=abc", "evaluate.classifier=test_resnet", weights])
    (use,) = (one for one in weights_used(config) if one.field == "classifier_weights")
    check_file(use, config, path)
