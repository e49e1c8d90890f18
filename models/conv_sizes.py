"""Closed forms for the convolutional tokenizers, diffusers' AutoencoderKL and AutoencoderDC. No torch, no diffusers.

The functions take the arguments of their network, by diffusers' names, and `image_size`. What is counted, and how, is
described in `sizes.py`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

# f8d4 of Rombach et al. 2022.
SD_VAE: dict[str, Any] = {
    "block_out_channels": [128, 256, 512, 512],
    "layers_per_block": 2,
    "latent_channels": 4,
    "norm_num_groups": 32,
}
# f32c32 of Chen et al. 2025 as Sana takes it (dc-ae-f32c32-sana-1.1), by diffusers' names: 312.25M parameters. That for
# ImageNet alone (dc-ae-f32c32-in-1.0) has another layout, with 323.36M, which the paper's Table 3 prints as 323M.
DC_AE: dict[str, Any] = {
    "latent_channels": 32,
    "encoder_block_types": ["ResBlock"] * 3 + ["EfficientViTBlock"] * 3,
    "decoder_block_types": ["ResBlock"] * 3 + ["EfficientViTBlock"] * 3,
    "encoder_block_out_channels": [128, 256, 512, 512, 1024, 1024],
    "decoder_block_out_channels": [128, 256, 512, 512, 1024, 1024],
    "encoder_layers_per_block": [2, 2, 2, 3, 3, 3],
    "decoder_layers_per_block": [3, 3, 3, 3, 3, 3],
    "encoder_qkv_multiscales": [[], [], [], [5], [5], [5]],
    "decoder_qkv_multiscales": [[], [], [], [5], [5], [5]],
    "downsample_block_type": "conv",
    "upsample_block_type": "interpolate",
}

_RGB = 3
_GLU_RATIO = 4  # of EfficientViT's feed-forward


class TokenizerSizes(NamedTuple):
    """Of a tokenizer: its parameters, and GFLOPs of one image's forward pass."""

    parameters: int
    encode_gflops: float
    decode_gflops: float

    @property
    def gflops(self) -> float:
        """Of both halves."""
        return self.encode_gflops + self.decode_gflops

    @property
    def gmacs(self) -> float:
        """The multiply-adds of both halves, in 1e9: half of `gflops`."""
        return self.gflops / 2


@dataclass
class _Half:
    """Adds up the layers that an image passes through, on its way at `side` pixels."""

    side: int
    parameters: int = 0
    macs: int = 0

    def conv(self, inputs: int, outputs: int, kernel: int = 3, groups: int = 1, bias: bool = True) -> None:
        weights = outputs * inputs // groups * kernel**2
        self.parameters += weights + outputs * bias
        self.macs += weights * self.side**2

    def linear(self, inputs: int, outputs: int, bias: bool = True) -> None:
        self.conv(inputs, outputs, kernel=1, bias=bias)

    def norm(self, channels: int) -> None:
        self.parameters += 2 * channels


def _sizes(encoder: _Half, decoder: _Half) -> TokenizerSizes:
    return TokenizerSizes(encoder.parameters + decoder.parameters, 2 * encoder.macs / 1e9, 2 * decoder.macs / 1e9)


# --- AutoencoderKL ---


def kl_autoencoder_sizes(
    *,
    image_size: int,
    block_out_channels: Sequence[int],
    layers_per_block: int,
    latent_channels: int,
    norm_num_groups: int = 32,  # noqa: ARG001
    act_fn: str = "silu",  # noqa: ARG001
    use_quant_conv: bool = True,
    use_post_quant_conv: bool = True,
    mid_block_add_attention: bool = True,
    attention: bool = False,
) -> TokenizerSizes:
    """The sizes of `models.tokenizers.sd_vae.KLAutoencoder`.

    SD-VAE at 256 x 256 takes 135.287 + 310.020 = 445.307 GMACs, which the paper's Table 1 prints as 445 GFLOPs: there
    one multiply-add of the convolutions and linear layers is one operation, whereas in its figures of ViTs (87.6) it
    is two. In one counting, this one, SD-VAE takes 890.6 GFLOPs, 10.2 times as many as the ViT of f16 d32.
    """
    widths, last = list(block_out_channels), block_out_channels[-1]
    encoder, decoder = _Half(image_size), _Half(image_size >> (len(widths) - 1))
    encoder.conv(_RGB, widths[0])
    inputs = widths[0]
    for i, outputs in enumerate(widths):
        _residual_blocks(encoder, inputs, outputs, layers_per_block)
        inputs = outputs
        if i < len(widths) - 1:
            encoder.side //= 2
            encoder.conv(outputs, outputs)
    _middle(encoder, last, mid_block_add_attention, attention)
    encoder.norm(last)
    encoder.conv(last, 2 * latent_channels)
    if use_quant_conv:
        encoder.linear(2 * latent_channels, 2 * latent_channels)
    if use_post_quant_conv:
        decoder.linear(latent_channels, latent_channels)
    decoder.conv(latent_channels, last)
    _middle(decoder, last, mid_block_add_attention, attention)
    for i, outputs in reversed(list(enumerate(widths))):
        _residual_blocks(decoder, inputs, outputs, layers_per_block + 1)
        inputs = outputs
        if i > 0:
            decoder.side *= 2
            decoder.conv(outputs, outputs)
    decoder.norm(inputs)
    decoder.conv(inputs, _RGB)
    return _sizes(encoder, decoder)


def _residual_blocks(half: _Half, inputs: int, outputs: int, count: int) -> None:
    for _ in range(count):
        half.norm(inputs)
        half.conv(inputs, outputs)
        half.norm(outputs)
        half.conv(outputs, outputs)
        if inputs != outputs:
            half.linear(inputs, outputs)
        inputs = outputs


def _middle(half: _Half, width: int, has_attention: bool, attention: bool) -> None:
    _residual_blocks(half, width, width, 2)
    if not has_attention:
        return
    half.norm(width)
    for _ in range(4):
        half.linear(width, width)
    if attention:
        half.macs += 2 * half.side**4 * width


# --- AutoencoderDC ---


def dc_autoencoder_sizes(
    *,
    image_size: int,
    latent_channels: int,
    attention_head_dim: int = 32,
    encoder_block_types: str | Sequence[str] = "ResBlock",
    decoder_block_types: str | Sequence[str] = "ResBlock",
    encoder_block_out_channels: Sequence[int],
    decoder_block_out_channels: Sequence[int],
    encoder_layers_per_block: Sequence[int],
    decoder_layers_per_block: Sequence[int],
    encoder_qkv_multiscales: Sequence[Sequence[int]],
    decoder_qkv_multiscales: Sequence[Sequence[int]],
    upsample_block_type: str = "pixel_shuffle",
    downsample_block_type: str = "pixel_unshuffle",
    attention: bool = False,
    **_without_influence: Any,
) -> TokenizerSizes:
    """The sizes of `models.tokenizers.dc_ae.DCAutoencoder`: at 256 x 256, 422.7 GMACs of Sana's f32c32, 606.6 of
    ImageNet's.
    """
    encoder, decoder = _Half(image_size), _Half(image_size >> (len(decoder_block_out_channels) - 1))
    stages = _Stages(encoder, encoder_block_types, encoder_qkv_multiscales, attention_head_dim, attention)
    widths, layers = encoder_block_out_channels, encoder_layers_per_block
    shuffles = downsample_block_type == "pixel_unshuffle"
    if layers[0] > 0:
        encoder.conv(_RGB, widths[0])
    else:
        _halve(encoder, _RGB, widths[1], shuffles)
    for i, width in enumerate(widths):
        stages.add(i, width, layers[i])
        if i < len(widths) - 1 and layers[i] > 0:
            _halve(encoder, width, widths[i + 1], shuffles)
    encoder.conv(widths[-1], latent_channels)

    stages = _Stages(decoder, decoder_block_types, decoder_qkv_multiscales, attention_head_dim, attention)
    widths, layers = decoder_block_out_channels, decoder_layers_per_block
    shuffles = upsample_block_type != "interpolate"
    decoder.conv(latent_channels, widths[-1])
    for i, width in reversed(list(enumerate(widths))):
        if i < len(widths) - 1 and layers[i] > 0:
            _double(decoder, widths[i + 1], width, shuffles)
        stages.add(i, width, layers[i])
    width = widths[0] if layers[0] > 0 else widths[1]
    decoder.norm(width)
    if layers[0] > 0:
        decoder.conv(width, _RGB)
    else:
        _double(decoder, width, _RGB, shuffles)
    return _sizes(encoder, decoder)


def _halve(half: _Half, inputs: int, outputs: int, shuffles: bool) -> None:
    if shuffles:
        half.conv(inputs, outputs // 4)
        half.side //= 2
    else:
        half.side //= 2
        half.conv(inputs, outputs)


def _double(half: _Half, inputs: int, outputs: int, shuffles: bool) -> None:
    if shuffles:
        half.conv(inputs, 4 * outputs)
        half.side *= 2
    else:
        half.side *= 2
        half.conv(inputs, outputs)


@dataclass
class _Stages:
    """The blocks of one half's stages."""

    half: _Half
    types: str | Sequence[str]
    scales: Sequence[Sequence[int]]
    head: int
    attention: bool

    def add(self, stage: int, width: int, layers: int) -> None:
        kind = self.types if isinstance(self.types, str) else self.types[stage]
        for _ in range(layers):
            if kind == "ResBlock":
                self.half.conv(width, width)
                self.half.conv(width, width, bias=False)
                self.half.norm(width)
            else:
                self._attention(width, self.scales[stage])
                self._feed_forward(width)

    def _attention(self, width: int, scales: Sequence[int]) -> None:
        half, heads = self.half, width // self.head
        inner = heads * self.head
        for _ in range(3):
            half.linear(width, inner, bias=False)
        for kernel in scales:
            half.conv(3 * inner, 3 * inner, kernel, groups=3 * inner, bias=False)
            half.conv(3 * inner, 3 * inner, kernel=1, groups=3 * heads, bias=False)
        half.linear(inner * (1 + len(scales)), width, bias=False)
        half.norm(width)
        if self.attention:
            tokens, products = half.side**2, heads * (1 + len(scales))
            is_linear = tokens > self.head  # else of all pairs of tokens
            each = tokens * self.head * (self.head + 1) if is_linear else tokens**2 * self.head
            half.macs += 2 * products * each

    def _feed_forward(self, width: int) -> None:
        hidden = 2 * _GLU_RATIO * width
        self.half.linear(width, hidden)
        self.half.conv(hidden, hidden, groups=hidden)
        self.half.linear(hidden // 2, width, bias=False)
        self.half.norm(width)
