"""Closed forms of parameters and GFLOPs, so that planning needs no torch. Tests compare them with the modules.

Those of the convolutional tokenizers are in `conv_sizes.py`; `tokenizer_sizes` is of all kinds. Those of the
networks that evaluation reads images with are in `feature_sizes.py`.

GFLOPs count 2 x MAC of every Linear and Conv for one image; with `attention=True` also the two attention products of
each block, as for MFU. Norms and activations are never counted.

The functions take all arguments of their network, as manifests hold them, including those without influence.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from itertools import accumulate
from typing import Any

from .choices import LEVELS, Mask, RegularizerKind, TokenizerKind
from .conv_sizes import TokenizerSizes, dc_autoencoder_sizes, kl_autoencoder_sizes

# Name: (width, depth, heads). SiT, Table 1 of Ma et al. 2024.
SIT_SIZES = {"S": (384, 12, 6), "B": (768, 12, 12), "L": (1024, 24, 16), "XL": (1152, 28, 16)}

TIMESTEP_CHANNELS = 256  # sines and cosines of t
MLP_RATIO = 4


def smallest_discriminator_image(layers: int) -> int:
    """Side in pixels of the smallest image for a PatchGAN with `layers` strided layers."""
    return 3 << layers


_COARSE_GRID = 16  # on larger grids, the shells are fine enough for a distinct mask at every level


def check_mask(grid: int, mask: Mask, keep: float) -> None:
    """ValueError if a latent grid is too small for the masks of S_l (`spectral.LatentFilter`).

    That is: it has no frequencies, the share that passes excludes even the mean, or two levels of `remove` are equal.
    """
    if grid < 2:
        raise ValueError(f"a {grid} x {grid} latent has no frequencies to attenuate")
    shares = (1.0, 0.75, 0.5, 0.25) if mask == "remove" else (keep,)
    if min(shares) * grid**2 < 1.0:  # less than the constant
        raise ValueError(f"keep {keep:g} leaves no frequency of a {grid} x {grid} latent")
    if mask != "remove" or grid > _COARSE_GRID:
        return
    side = [min(i, grid - i) for i in range(grid)]
    shells = Counter(a * a + b * b for a in side for b in side)
    sums = list(accumulate(bins for _, bins in sorted(shells.items())))
    kept = {sum(total <= share * grid**2 + 1e-9 for total in sums) for share in shares}
    if len(kept) < len(shares):
        raise ValueError(f"mask remove: on a {grid} x {grid} latent two levels have the same mask")


LARGEST_FILTER = 10**9  # bytes: the matrices of an 88 x 88 latent fit


def filter_bytes(grid: int) -> int:
    """Bytes of the matrices of `spectral.LatentFilter`: fp32, N x N for each level, N = grid^2."""
    return LEVELS * 4 * grid**4


def level_sums_bytes(grid: int, latent_dim: int) -> int:
    """Bytes of the largest sums of `spectral.level_sums`: fp64, N x N for each of the latent's channels."""
    return latent_dim * 8 * grid**4


def check_filter_size(grid: int) -> None:
    """ValueError if the matrices of S_l (`spectral.LatentFilter`) would be larger than LARGEST_FILTER."""
    if filter_bytes(grid) > LARGEST_FILTER:
        raise ValueError(
            f"the matrices of S_l on a {grid} x {grid} latent are {filter_bytes(grid) / 1e9:.1f} GB, more than "
            f"{LARGEST_FILTER / 1e9:g} GB"
        )


MATCHED_BLOCK = 8  # cells or pixels: the side of the blocks whose DCT spectrum matching masks
_SCALES = (2, 4)  # divisors of scale equivariance


def check_matching(grid: int) -> None:
    """ValueError if a latent is not made of whole blocks of spectrum matching (`regularizers.MatchingRegularizer`)."""
    if grid % MATCHED_BLOCK:
        raise ValueError(f"a {grid} x {grid} latent is not made of whole blocks of {MATCHED_BLOCK} x {MATCHED_BLOCK}")


def scaled_sides(grid: int, smallest: int = 1) -> tuple[int, ...]:
    """The sides to which scale equivariance scales a latent: a half and a quarter, if whole and not below `smallest`.

    All in latent cells. Empty if none is left.
    """
    return tuple(grid // scale for scale in _SCALES if grid % scale == 0 and grid // scale >= smallest)


EQUIVARIANT_SHARE, SMALL_SHARE = 1 / 2, 1 / 8  # EQ-VAE's shares of the steps with a scaled latent, or a small image


def equivariant_sides(grid: int, smallest: int = 1) -> range:
    """The sides to which EQ-VAE scales a latent: from a quarter of it, or `smallest`, to all but one cell.

    All in latent cells. Empty if none is left.
    """
    return range(max(smallest, -(-grid // 4)), grid)


def expected_passes(
    regularizer: RegularizerKind, grid: int, smallest_side: int = 1, smallest_perceptual_side: int = 1
) -> tuple[dict[int, float], dict[int, float]]:
    """How many latents of each side, in cells, a step encodes and decodes for an image, expected over its draws.

    The smallest sides are those of `regularizers.RegularizerOptions`.
    """
    encoded, decoded = {grid: 1.0}, {grid: 1.0}
    if regularizer == "scale":
        sides = scaled_sides(grid, smallest_perceptual_side)
        decoded |= {side: 1 / len(sides) for side in sides}
    elif regularizer == "equivariance":
        scaled = equivariant_sides(grid, smallest_side)
        encoded = {grid: 1 - SMALL_SHARE, **{side: SMALL_SHARE / len(scaled) for side in scaled}}
        share = EQUIVARIANT_SHARE + SMALL_SHARE
        decoded = {grid: 1 - share, **{side: share / len(scaled) for side in scaled}}
    return encoded, decoded


def _linear(inputs: int, outputs: int) -> int:
    return inputs * outputs + outputs


def _attention_macs(tokens: int, width: int) -> int:
    """Multiply-adds of Q K^T and of the product with V, over all heads."""
    return 2 * tokens * tokens * width


def tokenizer_parameters(
    *,
    image_size: int,
    patch_size: int,
    latent_dim: int,
    width: int,
    depth: int,
    hidden: int,
    heads: int = 1,  # noqa: ARG001
    channels: int = 3,
) -> int:
    """Parameters of `models.tokenizers.vit.Tokenizer` with `depth` blocks in each half; all are trained."""
    tokens = (image_size // patch_size) ** 2
    patch = channels * patch_size**2
    block = 2 * width + _linear(width, 3 * width) + _linear(width, width)
    block += _linear(width, 2 * hidden) + _linear(hidden, width)
    ends = _linear(patch, width) + _linear(width, 2 * latent_dim) + _linear(latent_dim, width) + _linear(width, patch)
    smoothing = 9 * channels * channels + channels
    return 2 * depth * block + ends + smoothing + 2 * tokens * width + 4 * width


def tokenizer_gflops(**network: Any) -> float:
    """GFLOPs of `vit.Tokenizer` to encode and decode one image, with its arguments and `attention`; forward pass."""
    return vit_sizes(**network).gflops


def vit_sizes(
    *,
    image_size: int,
    patch_size: int,
    latent_dim: int,
    width: int,
    depth: int,
    hidden: int,
    heads: int = 1,
    channels: int = 3,
    attention: bool = False,
) -> TokenizerSizes:
    """The sizes of `models.tokenizers.vit.Tokenizer`."""
    tokens = (image_size // patch_size) ** 2
    patch = channels * patch_size**2
    block = tokens * (4 * width * width + 3 * width * hidden)
    if attention:
        block += _attention_macs(tokens, width)
    smoothing = 9 * channels * channels * image_size**2
    encoder = depth * block + tokens * (patch * width + 2 * latent_dim * width)
    decoder = depth * block + tokens * (latent_dim * width + patch * width) + smoothing
    parameters = tokenizer_parameters(
        image_size=image_size,
        patch_size=patch_size,
        latent_dim=latent_dim,
        width=width,
        depth=depth,
        hidden=hidden,
        heads=heads,
        channels=channels,
    )
    return TokenizerSizes(parameters, 2 * encoder / 1e9, 2 * decoder / 1e9)


_SIZES: dict[TokenizerKind, Callable[..., TokenizerSizes]] = {
    "vit": vit_sizes,
    "sd-vae": kl_autoencoder_sizes,
    "dc-ae": dc_autoencoder_sizes,
}


def tokenizer_sizes(kind: TokenizerKind, network: Mapping[str, Any], attention: bool = False) -> TokenizerSizes:
    """The sizes of a tokenizer of this kind with these arguments, as manifests hold them."""
    return _SIZES[kind](**network, attention=attention)


def tokenizer_shape(kind: TokenizerKind, network: Mapping[str, Any]) -> tuple[int, int]:
    """Its factor f, by which it reduces each side of an image, and its latent channels d."""
    if kind == "vit":
        return network["patch_size"], network["latent_dim"]
    widths = network["block_out_channels" if kind == "sd-vae" else "encoder_block_out_channels"]
    return 1 << (len(widths) - 1), network["latent_channels"]


def sit_parameters(
    *,
    grid: int,
    latent_dim: int,
    classes: int,
    width: int,
    depth: int,
    heads: int = 1,
    patch_size: int = 1,
    qk_norm: bool = False,
    time_scale: float = 1.0,  # noqa: ARG001
) -> int:
    """Trained parameters of `models.sit.SiT`. Its frozen positions are a buffer and are not counted.

    Raises ValueError if `patch_size` does not divide `grid`.
    """
    _tokens(grid, patch_size)
    patch = latent_dim * patch_size**2
    block = _linear(width, 3 * width) + _linear(width, width) + _linear(width, 6 * width)
    block += _linear(width, MLP_RATIO * width) + _linear(MLP_RATIO * width, width)
    block += 4 * (width // heads) if qk_norm else 0
    condition = _linear(TIMESTEP_CHANNELS, width) + _linear(width, width) + (classes + 1) * width
    last = _linear(width, 2 * width) + _linear(width, patch)
    return depth * block + condition + _linear(patch, width) + last


def sit_gflops(
    *,
    grid: int,
    latent_dim: int,
    width: int,
    depth: int,
    heads: int = 1,  # noqa: ARG001
    classes: int = 1,  # noqa: ARG001
    patch_size: int = 1,
    qk_norm: bool = False,  # noqa: ARG001
    time_scale: float = 1.0,  # noqa: ARG001
    attention: bool = False,
) -> float:
    """GFLOPs of one forward pass of one latent. The conditioning layers act on one vector, not on every token.

    Raises ValueError if `patch_size` does not divide `grid`.
    """
    tokens = _tokens(grid, patch_size)
    patch = latent_dim * patch_size**2
    block = tokens * (4 + 2 * MLP_RATIO) * width * width + 6 * width * width
    if attention:
        block += _attention_macs(tokens, width)
    condition = TIMESTEP_CHANNELS * width + width * width
    last = 2 * width * width + tokens * patch * width
    return 2 * (depth * block + condition + tokens * patch * width + last) / 1e9


def _tokens(grid: int, patch_size: int) -> int:
    if grid % patch_size:
        raise ValueError(f"patch_size {patch_size} does not divide the grid {grid}")
    return (grid // patch_size) ** 2
