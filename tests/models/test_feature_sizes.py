"""The closed forms of the networks that evaluation reads images with, against a counted forward on the meta device."""

from typing import get_args

import pytest
import torch
from torch import Tensor, nn

from models.choices import FeatureNetwork
from models.classifier import Classifier
from models.feature_sizes import CONVNEXT_SMALL_GFLOPS, FEATURE_GFLOPS, efficientnet_gflops, feature_gflops
from tests.support.counting import counted_gflops


class UpToFeatures(nn.Module):
    """A network of timm's up to what `ImageNetFeatures` takes of it."""

    def __init__(self, name: str, **options: int) -> None:
        super().__init__()
        import timm

        with torch.device("meta"):
            self.network = timm.create_model(name, pretrained=False, **options).eval()

    def forward(self, x_BCHW: Tensor) -> Tensor:
        features: Tensor = self.network.forward_head(self.network.forward_features(x_BCHW), pre_logits=True)
        return features


def test_every_network_has_its_cost() -> None:
    assert set(FEATURE_GFLOPS) == set(get_args(FeatureNetwork))


def image(side: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.zeros(1, 3, side, side, dtype=dtype, device="meta")


@pytest.mark.parametrize("side", [64, 224, 299])
def test_efficientnet(side: int) -> None:
    network = UpToFeatures("tf_efficientnet_lite0")
    assert feature_gflops("efficientnet_lite0", side, 32, 10) == pytest.approx(
        counted_gflops(network, image(side)), rel=1e-12
    )
    assert efficientnet_gflops(side, logits=True) == pytest.approx(
        counted_gflops(network.network, image(side)), rel=1e-12
    )


@pytest.mark.parametrize("side", [224, 518])
def test_dinov2(side: int) -> None:
    counted = counted_gflops(UpToFeatures("vit_base_patch14_dinov2", img_size=side), image(side))
    assert feature_gflops("dinov2_vitb14", side, 32, 10) == pytest.approx(counted, rel=1e-12)


def test_inception() -> None:
    """It brings images of any size to its own."""
    from models.inception import _network

    counted = counted_gflops(_network().to("meta"), image(64, torch.uint8))
    assert feature_gflops("inception", 64, 64, 10) == pytest.approx(counted, rel=1e-12)


@pytest.mark.parametrize(("side", "classes"), [(8, 10), (17, 3), (32, 10), (64, 1000)])
def test_the_classifier_of_the_datas_own_classes(side: int, classes: int) -> None:
    with torch.device("meta"):
        network = Classifier(classes)
    counted = counted_gflops(network, image(side, torch.uint8))
    assert feature_gflops("self", 299, side, classes) == pytest.approx(counted, rel=1e-12)


def test_the_classifier_of_imagenet_that_needs_no_file_named() -> None:
    import timm

    with torch.device("meta"):
        network = timm.create_model("convnext_small", pretrained=False).eval()
    side = network.default_cfg["input_size"][-1]
    assert pytest.approx(counted_gflops(network, image(side)), rel=1e-12) == CONVNEXT_SMALL_GFLOPS
