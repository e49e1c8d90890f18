"""GFLOPs of the networks that evaluation reads images with, as closed forms. No torch; tests count the networks.

What is counted, and how, is described in `sizes.py`: 2 x MAC of every Linear and Conv for one image.
"""

from collections.abc import Callable

from .choices import DINOV2_PATCH, FeatureNetwork

# Of the whole network at the only size that it takes: 299 pixels, and 224.
INCEPTION_GFLOPS = 11.422336192
CONVNEXT_SMALL_GFLOPS = 17.367424512

# The blocks of EfficientNet-Lite0: side of the kernel, stride of the first, expansion, channels, and how many.
_EFFICIENTNET_BLOCKS = (
    (3, 1, 1, 16, 1),
    (3, 2, 6, 24, 2),
    (5, 2, 6, 40, 2),
    (3, 2, 6, 80, 3),
    (5, 1, 6, 112, 3),
    (5, 2, 6, 192, 4),
    (3, 1, 6, 320, 1),
)
_EFFICIENTNET_ENDS = (32, 1280)  # channels of its first layer, and its features
_IMAGENET_CLASSES = 1000
_VIT_B = (768, 12)  # width and depth
_MLP_RATIO = 4
_OWN_WIDTHS = (16, 32, 64)  # of `classifier.Classifier`, a stride of 2 each
_OWN_SIDE = 32  # pixels, at most
_RGB = 3


def feature_gflops(network: FeatureNetwork, size: int, image_size: int, classes: int) -> float:
    """GFLOPs of one image's features.

    Args:
        network: whose features.
        size: side in pixels to which images are resized for ImageNet's networks; Inception has its own.
        image_size: side of the images, which `self` takes as they are.
        classes: that `self` tells apart.
    """
    return FEATURE_GFLOPS[network](size, image_size, classes)


def efficientnet_gflops(size: int, logits: bool = False) -> float:
    """Of EfficientNet-Lite0 at `size` pixels: up to its features, or to the logits of ImageNet's classes."""
    first, last = _EFFICIENTNET_ENDS
    side, before = _halved(size), first
    macs = side**2 * 9 * _RGB * first
    for kernel, stride, expansion, width, count in _EFFICIENTNET_BLOCKS:
        for place in range(count):
            inner = before * expansion
            macs += side**2 * before * inner if expansion > 1 else 0
            side = _halved(side) if place == 0 and stride == 2 else side
            macs += side**2 * (kernel**2 * inner + inner * width)
            before = width
    macs += side**2 * before * last + (last * _IMAGENET_CLASSES if logits else 0)
    return 2 * macs / 1e9


def _dinov2_gflops(size: int) -> float:
    """A ViT-B of patches of 14 pixels, and its class token."""
    width, depth = _VIT_B
    patches = (size // DINOV2_PATCH) ** 2
    macs = patches * _RGB * DINOV2_PATCH**2 * width + depth * (patches + 1) * (4 + 2 * _MLP_RATIO) * width**2
    return 2 * macs / 1e9


def _own_gflops(side: int, classes: int) -> float:
    """A convolution that halves the side at each width, from the second on with a residual one."""
    macs, before = 0, _RGB
    for width in _OWN_WIDTHS:
        side = _halved(side)
        macs += side**2 * 9 * width * (before if before == _RGB else before + width)
        before = width
    return 2 * (macs + before * classes) / 1e9


def _halved(side: int) -> int:
    """The side behind a stride of 2, of padded images."""
    return -(-side // 2)


FEATURE_GFLOPS: dict[FeatureNetwork, Callable[[int, int, int], float]] = {
    "inception": lambda *_: INCEPTION_GFLOPS,
    "efficientnet_lite0": lambda size, *_: efficientnet_gflops(size),
    "dinov2_vitb14": lambda size, *_: _dinov2_gflops(size),
    "self": lambda _, image_size, classes: _own_gflops(min(image_size, _OWN_SIDE), classes),
}
