import pytest
import torch
import torch.nn.functional as F
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


def dinov2_tensors() -> dict[str, torch.Tensor]:
    """Random weights in Meta's layout; scales of layers far from their small beginnings, so that all blocks count."""
    import timm

    with torch.device("meta"):
        layout = timm.create_model("vit_base_patch14_dinov2", pretrained=False).state_dict()
    generator = torch.Generator().manual_seed(0)
    scale = {"weight": 0.02, "gamma": 0.5, "bias": 0.5, "pos_embed": 0.5, "cls_token": 0.5}
    return {
        name: torch.randn(value.shape, generator=generator) * scale[name.rpartition(".")[2]]
        for name, value in layout.items()
    }


def dinov2_class_token(tensors: dict[str, torch.Tensor], x_BCHW: torch.Tensor) -> torch.Tensor:
    """DINOv2's forward pass, from its description: pre-norm blocks with LayerScale, positions resized from 37 x 37."""

    def linear(x: torch.Tensor, name: str) -> torch.Tensor:
        return x @ tensors[f"{name}.weight"].T + tensors[f"{name}.bias"]

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        return F.layer_norm(x, (768,), tensors[f"{name}.weight"], tensors[f"{name}.bias"], eps=1e-6)

    patches = F.conv2d(x_BCHW, tensors["patch_embed.proj.weight"], tensors["patch_embed.proj.bias"], stride=14)
    side = patches.shape[-1]
    table = tensors["pos_embed"]
    grid = table[0, 1:].T.reshape(1, 768, 37, 37)
    grid = F.interpolate(grid, scale_factor=(side + 0.1) / 37, mode="bicubic", antialias=False)
    positions = torch.cat([table[:, :1], grid.reshape(1, 768, side * side).transpose(1, 2)], 1)
    x = torch.cat([tensors["cls_token"].expand(len(x_BCHW), 1, 768), patches.flatten(2).transpose(1, 2)], 1) + positions
    for block in (f"blocks.{i}" for i in range(12)):
        qkv = linear(norm(x, f"{block}.norm1"), f"{block}.attn.qkv").unflatten(-1, (3, 12, 64))
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        attended = ((q @ k.transpose(-1, -2) / 8).softmax(-1) @ v).transpose(1, 2).flatten(2)
        x = x + tensors[f"{block}.ls1.gamma"] * linear(attended, f"{block}.attn.proj")
        hidden = F.gelu(linear(norm(x, f"{block}.norm2"), f"{block}.mlp.fc1"))
        x = x + tensors[f"{block}.ls2.gamma"] * linear(hidden, f"{block}.mlp.fc2")
    return norm(x, "norm")[:, 0]


def test_dinov2s_class_token_at_another_size_than_it_was_trained_at(tmp_path):
    tensors, path = dinov2_tensors(), tmp_path / "dinov2.safetensors"
    save_file(tensors, path)
    features = ImageNetFeatures("dinov2_vitb14", str(path), 56)
    images_BCHW = torch.randint(0, 256, (2, 3, 56, 56), dtype=torch.uint8)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    scaled = (images_BCHW / 255 - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    expected = dinov2_class_token(tensors, scaled)
    torch.testing.assert_close(features(images_BCHW), expected, rtol=1e-4, atol=1e-4)
    del tensors["blocks.11.ls2.gamma"]
    save_file(tensors, path)
    with pytest.raises(ValueError, match=r"does not contain the weights of a DINOv2 ViT-B/14"):
        ImageNetFeatures("dinov2_vitb14", str(path), 56)
