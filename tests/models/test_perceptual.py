import pytest
import torch
from safetensors.torch import save_file

from models.perceptual import LPIPS, ConvNeXtLogits, EfficientNetDistance, ImageNetFeatures, PerceptualLoss
from models.resize import resize
from pipeline.config import load_config
from pipeline.weights import fetch_weights, resolve_weights


def images(seed=0, size=32):
    return torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.fixture(scope="module")
def vgg_file(tmp_path_factory):
    import torchvision

    torch.manual_seed(0)
    features = torchvision.models.vgg16(weights=None).features.state_dict()
    path = tmp_path_factory.mktemp("vgg") / "vgg16.safetensors"
    save_file({f"features.{name}": value for name, value in features.items()}, path)
    return str(path)


@pytest.fixture(scope="module")
def convnext_file(tmp_path_factory):
    import timm  # seconds, of every process that collects

    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("convnext") / "convnext.safetensors"
    save_file(timm.create_model("convnext_atto", pretrained=False).state_dict(), path)
    return str(path)


@pytest.fixture(scope="module")
def photographs():
    """Pieces of scikit-learn's two photographs, (4, 3, 32, 32) in [-1, 1]."""
    from sklearn.datasets import load_sample_images

    pieces = [
        torch.tensor(image[y : y + 128, y : y + 128]) for image in load_sample_images().images for y in (100, 260)
    ]
    return resize(torch.stack(pieces).permute(0, 3, 1, 2).float() / 127.5 - 1, 32, "bilinear")


@pytest.mark.slow
def test_lpips_is_the_packages(vgg_file):
    metric = LPIPS(vgg_file)
    x, y = images(0), images(1)
    torch.testing.assert_close(metric(x, y), metric.network(x, y).flatten())
    assert torch.equal(metric(x, x), torch.zeros(2))
    assert not any(p.requires_grad for p in metric.parameters())
    with torch.autocast("cpu", torch.bfloat16):
        assert metric(x, y).dtype == torch.float32


@pytest.mark.slow
def test_the_combined_loss_has_gradients_to_the_image(vgg_file, convnext_file):
    lpips, convnext = LPIPS(vgg_file), ConvNeXtLogits(convnext_file, "convnext_atto", 32)
    x, y = images(0).requires_grad_(), images(1)
    value = PerceptualLoss([(lpips, 1.0), (convnext, 0.1)])(x, y)
    expected = (lpips(x, y).mean() + 0.1 * convnext(x, y).mean()) / 1.1
    torch.testing.assert_close(value, expected)
    value.backward()
    assert x.grad is not None
    assert x.grad.abs().sum() > 0
    torch.testing.assert_close(PerceptualLoss([(lpips, 1.0)])(x, y), lpips(x, y).mean())
    torch.testing.assert_close(PerceptualLoss([(convnext, 0.1)])(x, y), convnext(x, y).mean())
    with pytest.raises(ValueError, match="needs a network"):
        PerceptualLoss([])


def test_efficientnet_is_a_distance_that_sees_blur(photographs):
    """With real weights: 0 for the same image, symmetric, larger for more blur than for less, and with a gradient."""
    file = resolve_weights(load_config("cifar10")).tokenizer.efficientnet
    assert file is not None
    distance = EfficientNetDistance(str(fetch_weights(file)))
    x = photographs
    assert torch.equal(distance(x, x), torch.zeros(len(x)))
    slightly, strongly = (resize(resize(x, side, "bilinear"), 32, "bilinear") for side in (24, 8))
    torch.testing.assert_close(distance(x, slightly), distance(slightly, x))
    assert (distance(x, slightly) < distance(x, strongly)).all()
    y = strongly.clone().requires_grad_()
    distance(x, y).mean().backward()
    assert y.grad is not None
    assert (y.grad.flatten(1).norm(dim=1) > 0).all()
    assert not any(parameter.requires_grad for parameter in distance.parameters())
    with torch.autocast("cpu", torch.bfloat16):
        assert distance(x, y).dtype == torch.float32


def test_wrong_weights_are_refused(vgg_file, convnext_file):
    with pytest.raises(ValueError, match="VGG-16"):
        LPIPS(convnext_file)
    with pytest.raises(ValueError, match="convnext_atto"):
        ConvNeXtLogits(vgg_file, "convnext_atto")
    with pytest.raises(ValueError, match="requires a weight file"):
        ImageNetFeatures("resnet18", None)


def test_features_of_the_registrys_network():
    network = ImageNetFeatures("efficientnet_lite0", None, image_size=64)
    x = torch.randint(256, (3, 3, 40, 40), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    features = network(x)
    assert features.shape == (3, 1280)
    assert features.dtype == torch.float32
    assert not any(module.training for module in network.train().modules())
    assert network.logits(features).shape == (3, 1000)
    torch.testing.assert_close(network(x[1:2]), features[1:2], atol=1e-4, rtol=1e-4)
    assert ImageNetFeatures("efficientnet_lite0", None).image_size == 224


def test_features_of_a_timm_network(convnext_file):
    network = ImageNetFeatures("convnext_atto", convnext_file, image_size=32)
    x = torch.zeros(2, 3, 32, 32, dtype=torch.uint8)
    expected = network.network(((x.float() / 255) - network.mean) / network.std)
    torch.testing.assert_close(network.logits(network(x)), expected)
