"""LPIPS on a VGG-16 of random weights: its speed is that of the trained one, and it needs no package but torch.

Layers, slices and scaling as in lpips 0.1; `width` is 64 in VGG-16.
"""

from typing import cast

import torch
from torch import Tensor, nn

from models.perceptual import LPIPS, FrozenNetwork

_CONVOLUTIONS = ((1, 1), (2, 2), (4, 4, 4), (8, 8, 8), (8, 8, 8))  # of each slice: channels, in multiples of the width


class _Scaling(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("shift", torch.tensor([-0.030, -0.088, -0.188]).view(1, 3, 1, 1))
        self.register_buffer("scale", torch.tensor([0.458, 0.448, 0.450]).view(1, 3, 1, 1))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return (x_BCHW - cast(Tensor, self.shift)) / cast(Tensor, self.scale)


class _Slices(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        channels, slices = 3, list[nn.Module]()
        for index, multiples in enumerate(_CONVOLUTIONS):
            layers: list[nn.Module] = [nn.MaxPool2d(2, 2)] if index else []
            for multiple in multiples:
                layers += [nn.Conv2d(channels, multiple * width, 3, padding=1), nn.ReLU(inplace=True)]
                channels = multiple * width
            slices.append(nn.Sequential(*layers))
        self.slices = nn.ModuleList(slices)

    def forward(self, x_BCHW: Tensor) -> list[Tensor]:
        features = []
        for part in self.slices:
            x_BCHW = part(x_BCHW)
            features.append(x_BCHW)
        return features


class _Network(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.scaling_layer, self.net = _Scaling(), _Slices(width)
        self.lins = nn.ModuleList(nn.Conv2d(multiples[-1] * width, 1, 1, bias=False) for multiples in _CONVOLUTIONS)


class RandomLPIPS(LPIPS):
    """LPIPS with random weights. Its values mean nothing."""

    def __init__(self, width: int = 64) -> None:
        FrozenNetwork.__init__(self, _Network(width))
