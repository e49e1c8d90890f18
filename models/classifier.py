"""A small classifier of a data set's own classes: features for distances where ImageNet's see mostly blur.

Legend: B batch, N images, C channels, H W pixels, F features, K classes.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FEATURES = 64
LARGEST_SIDE = 32  # pixels; larger images are averaged down to it
_WIDTHS = (16, 32, FEATURES)
_GROUPS = 8
_BATCH = 128
_SEEN = 300_000  # images over the training, under two minutes of a CPU core; a small set is seen _MOST_EPOCHS times
_MOST_EPOCHS = 20
_LEARNING_RATE = 4e-3
_WARMUP = 0.15  # share of the steps
_WEIGHT_DECAY = 0.05
_SMOOTHING = 0.1


class ClassifierOutput(NamedTuple):
    """Both fp32."""

    features_BF: Tensor
    logits_BK: Tensor


class Classifier(nn.Module):
    """A residual network of five convolutions with GroupNorm, and a linear layer on the mean over positions.

    Args:
        classes: K.
    """

    def __init__(self, classes: int) -> None:
        super().__init__()
        stages, before = list[nn.Module](), 3
        for width in _WIDTHS:
            stages.append(_convolution(before, width, stride=2))
            if before != 3:
                stages.append(_Residual(width))
            before = width
        self.trunk = nn.Sequential(*stages)
        self.head = nn.Linear(FEATURES, classes)

    def forward(self, x_BCHW: Tensor) -> ClassifierOutput:
        """uint8 images, 3 channels, of any size."""
        x = x_BCHW.float() / 127.5 - 1
        if max(x.shape[-2:]) > LARGEST_SIDE:
            x = F.adaptive_avg_pool2d(x, (min(x.shape[-2], LARGEST_SIDE), min(x.shape[-1], LARGEST_SIDE)))
        features_BF = self.trunk(x).mean((2, 3))
        return ClassifierOutput(features_BF, self.head(features_BF))


class _Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner = _convolution(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x)  # type: ignore[no-any-return]


def _convolution(before: int, width: int, stride: int = 1) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(before, width, 3, stride, padding=1, bias=False), nn.GroupNorm(_GROUPS, width), nn.ReLU()
    )


def train_classifier(images_NCHW: Tensor, labels_N: Tensor, classes: int, flip: bool, seed: int) -> Classifier:
    """Train one on a CPU, with shifts of the images; in eval mode. The same arguments give the same weights.

    Args:
        images_NCHW: uint8.
        labels_N: long, 0 to classes - 1.
        classes: K.
        flip: whether half of the images are flipped horizontally.
        seed: of the first weights, the order, shifts and flips.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = Classifier(classes)
    epochs = max(1, min(_MOST_EPOCHS, _SEEN // len(images_NCHW)))
    order = torch.cat([torch.randperm(len(images_NCHW), generator=generator) for _ in range(epochs)])
    batches = torch.split(order, _BATCH)
    optimizer = torch.optim.AdamW(network.parameters(), _LEARNING_RATE, weight_decay=_WEIGHT_DECAY)
    for step, batch_B in enumerate(batches):
        for group in optimizer.param_groups:
            group["lr"] = _LEARNING_RATE * _rate((step + 1) / len(batches))
        logits_BK = network(_varied(images_NCHW[batch_B], flip, generator)).logits_BK
        loss = F.cross_entropy(logits_BK, labels_N[batch_B], label_smoothing=_SMOOTHING)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
    return network.eval().requires_grad_(False)


def _rate(done: float) -> float:
    """Of the peak learning rate: a linear warm-up, then a cosine to 0."""
    if done < _WARMUP:
        return done / _WARMUP
    return 0.5 + 0.5 * math.cos(math.pi * (done - _WARMUP) / (1 - _WARMUP))


def _varied(x_BCHW: Tensor, flip: bool, generator: torch.Generator) -> Tensor:
    """The batch, shifted as a whole by up to an eighth of its side, and half of it flipped."""
    most = x_BCHW.shape[-1] // 8
    down, right = torch.randint(-most, most + 1, (2,), generator=generator).tolist()
    padded = F.pad(x_BCHW.float(), (most,) * 4, mode="reflect")
    rows, columns = x_BCHW.shape[-2:]
    moved = padded[:, :, most + down : most + down + rows, most + right : most + right + columns]
    if not flip:
        return moved
    flipped_B = torch.rand(len(moved), generator=generator) < 0.5
    return torch.where(flipped_B[:, None, None, None], moved.flip(3), moved)
