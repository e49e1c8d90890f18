"""The PatchGAN discriminator of the tokenizer's adversarial term (Eq. 2), and its hinge losses.

GroupNorm instead of batch norm: a logit depends on its own image only, so results do not depend on the batch split.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .sizes import smallest_discriminator_image


class PatchDiscriminator(nn.Module):
    """Strided 4x4 convolutions, then one logit for each overlapping patch (Isola et al. 2017).

    Args:
        channels: image channels.
        width: channels of the first layer; doubled in each layer up to 8 x `width`.
        layers: strided layers. The side of an image must be at least 3 * 2**layers: 24 for three, 12 for two.
    """

    def __init__(self, channels: int = 3, width: int = 64, layers: int = 3) -> None:
        super().__init__()
        self.smallest_image = smallest_discriminator_image(layers)
        blocks: list[nn.Module] = [nn.Conv2d(channels, width, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        inputs = width
        for layer in range(1, layers + 1):
            outputs = width * min(2**layer, 8)
            stride = 2 if layer < layers else 1
            blocks += [nn.Conv2d(inputs, outputs, 4, stride=stride, padding=1)]
            blocks += [nn.GroupNorm(math.gcd(32, outputs), outputs), nn.LeakyReLU(0.2)]
            inputs = outputs
        self.trunk = nn.Sequential(*blocks)
        self.head = nn.Conv2d(inputs, 1, 4, padding=1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.02)
                assert module.bias is not None
                nn.init.zeros_(module.bias)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Images in [0, 1] to logits (B, 1, h, w) in fp32; positive means real.

        Raises:
            ValueError: the image is smaller than the layers require.
        """
        if min(x_BCHW.shape[-2:]) < self.smallest_image:
            shape = tuple(x_BCHW.shape[-2:])
            raise ValueError(
                f"image of {shape} is smaller than {self.smallest_image} pixels, which the discriminator requires"
            )
        logits_B1hw: Tensor = self.head(self.trunk(x_BCHW))
        return logits_B1hw.float()


def discriminator_hinge(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """The discriminator's loss, (mean relu(1 - real) + mean relu(1 + fake)) / 2 over all logits: a fp32 scalar."""
    return 0.5 * (F.relu(1.0 - real_logits.float()).mean() + F.relu(1.0 + fake_logits.float()).mean())


def generator_hinge(fake_logits: Tensor) -> Tensor:
    """The tokenizer's adversarial loss, -mean of the logits of its reconstructions: a fp32 scalar."""
    return torch.neg(fake_logits.float().mean())
