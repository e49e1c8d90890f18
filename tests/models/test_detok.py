"""DeTok's layout, written down here from its description, and our network with the same weights."""

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from models.tokenizers.detok import from_detok
from models.tokenizers.vit import Tokenizer

Weights = dict[str, Tensor]


def detok_weights(size: int, patch: int, dim: int, width: int, depth: int, hidden: int) -> Weights:
    """Random weights under the names and in the shapes of DeTok's checkpoints."""
    torch.manual_seed(0)
    tokens = (size // patch) ** 2
    shapes: dict[str, tuple[int, ...]] = {
        "encoder.patch_embed.0.weight": (width, 3, patch, patch), "encoder.patch_embed.0.bias": (width,),
        "encoder.positional_embedding": (1, tokens, width), "encoder.latent_head.weight": (2 * dim, width),
        "encoder.latent_head.bias": (2 * dim,), "decoder.decoder_embed.weight": (width, dim),
        "decoder.decoder_embed.bias": (width,), "decoder.positional_embedding": (1, tokens, width),
        "decoder.mask_token": (1, 1, width), "decoder.ffn.1.weight": (3 * patch * patch, width, 1, 1),
        "decoder.ffn.1.bias": (3 * patch * patch,), "decoder.conv_out.weight": (3, 3, 3, 3),
        "decoder.conv_out.bias": (3,),
    }  # fmt: skip
    for half in ("encoder", "decoder"):
        shapes |= {f"{half}.ln_pre.weight": (width,), f"{half}.ln_post.weight": (width,)}
        for i in range(depth):
            block = f"{half}.transformer.{i}"
            shapes |= {f"{block}.norm1.weight": (width,), f"{block}.norm2.weight": (width,)}
            for name, rows, columns in (("attn.qkv", 3 * width, width), ("attn.proj", width, width),
                                        ("mlp.w12", 2 * hidden, width), ("mlp.w3", width, hidden)):  # fmt: skip
                shapes |= {f"{block}.{name}.weight": (rows, columns), f"{block}.{name}.bias": (rows,)}
    return {name: torch.randn(shape) / math.sqrt(max(1, math.prod(shape[1:]))) for name, shape in shapes.items()}


def detok_rope(side: int, head: int) -> tuple[Tensor, Tensor]:
    turns = torch.tensor([7.0 * 1e-4 ** (i / (head // 4 - 1)) for i in range(head // 4)] * 2)
    angles = torch.zeros(side, side, head)
    for row in range(side):
        for column in range(side):
            angles[row, column, : head // 2] = 2 * math.pi * turns * row / (side - 1)
            angles[row, column, head // 2 :] = 2 * math.pi * turns * column / (side - 1)
    return angles.flatten(0, 1).cos(), angles.flatten(0, 1).sin()


def rms(x: Tensor, gain: Tensor) -> Tensor:
    return x / torch.sqrt((x * x).mean(-1, keepdim=True) + 1e-6) * gain


def detok_blocks(weights: Weights, half: str, x: Tensor, heads: int, depth: int) -> Tensor:
    cos, sin = detok_rope(math.isqrt(x.shape[1]), x.shape[2] // heads)
    x = rms(x + weights[f"{half}.positional_embedding"], weights[f"{half}.ln_pre.weight"])

    def turned(v: Tensor) -> Tensor:
        swapped = torch.empty_like(v)
        swapped[..., ::2], swapped[..., 1::2] = -v[..., 1::2], v[..., ::2]
        return v * cos + swapped * sin

    for i in range(depth):
        block = f"{half}.transformer.{i}"

        def layer(name: str, v: Tensor, block: str = block) -> Tensor:
            return F.linear(v, weights[f"{block}.{name}.weight"], weights[f"{block}.{name}.bias"])

        B, N, K = x.shape
        qkv = layer("attn.qkv", rms(x, weights[f"{block}.norm1.weight"])).view(B, N, 3, heads, K // heads)
        q, k, v = (part.transpose(1, 2) for part in qkv.unbind(2))
        scores = (turned(q) @ turned(k).mT / math.sqrt(K // heads)).softmax(-1)
        x = x + layer("attn.proj", (scores @ v).transpose(1, 2).reshape(B, N, K))
        gate, value = layer("mlp.w12", rms(x, weights[f"{block}.norm2.weight"])).chunk(2, -1)
        x = x + layer("mlp.w3", gate * torch.sigmoid(gate) * value)
    return rms(x, weights[f"{half}.ln_post.weight"])


def detok(weights: Weights, x: Tensor, patch: int, heads: int, depth: int) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, log-variance and the image decoded from the mean."""
    tokens = F.conv2d(x, weights["encoder.patch_embed.0.weight"], weights["encoder.patch_embed.0.bias"], stride=patch)
    side = tokens.shape[-1]
    tokens = detok_blocks(weights, "encoder", tokens.flatten(2).mT, heads, depth)
    moments = F.linear(tokens, weights["encoder.latent_head.weight"], weights["encoder.latent_head.bias"])
    mean, logvar = moments.chunk(2, -1)
    tokens = F.linear(mean, weights["decoder.decoder_embed.weight"], weights["decoder.decoder_embed.bias"])
    tokens = detok_blocks(weights, "decoder", tokens, heads, depth)
    kernel = weights["decoder.ffn.1.weight"].flatten(1)
    patches = F.linear(tokens, kernel, weights["decoder.ffn.1.bias"]).view(-1, side, side, patch, patch, 3)
    image = patches.permute(0, 5, 1, 3, 2, 4).reshape(x.shape)
    image = F.conv2d(image, weights["decoder.conv_out.weight"], weights["decoder.conv_out.bias"], padding=1)

    def grid(v: Tensor) -> Tensor:
        return v.mT.reshape(v.shape[0], v.shape[2], side, side)

    return grid(mean), grid(logvar), image


def ours(weights: Weights, **sizes: int) -> Tokenizer:
    network = Tokenizer(**sizes)
    network.load_state_dict(from_detok(weights))
    return network


SMALL = {"patch": 4, "dim": 5, "width": 32, "depth": 2, "hidden": 48}


@pytest.mark.parametrize("size", [32, 64])
def test_the_same_weights_give_the_same_outputs(size: int) -> None:
    weights = detok_weights(size, **SMALL)
    network = ours(weights, image_size=size, patch_size=4, latent_dim=5, width=32, depth=2, heads=2, hidden=48)
    x = torch.rand(2, 3, size, size) * 2 - 1
    mean, logvar, image = detok(weights, x, 4, 2, 2)
    posterior = network.encode(x)
    torch.testing.assert_close(posterior.mean_BDhw, mean, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(posterior.logvar_BDhw, logvar.clamp(-30, 20), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(network.decode(posterior.mean_BDhw), image, atol=1e-5, rtol=1e-5)


@pytest.mark.slow
def test_at_full_size() -> None:
    """DeTok-BB: 171,712,628 parameters, 768 of them its mask token's."""
    weights = detok_weights(256, 16, 16, 768, 12, 2048)
    assert sum(tensor.numel() for tensor in weights.values()) == 171_712_628
    network = ours(weights, image_size=256, patch_size=16, latent_dim=16, width=768, depth=12, heads=12, hidden=2048)
    assert sum(parameter.numel() for parameter in network.parameters()) == 171_712_628 - 768
    x = torch.rand(1, 3, 256, 256) * 2 - 1
    mean, _, image = detok(weights, x, 16, 12, 12)
    posterior = network.encode(x)
    torch.testing.assert_close(posterior.mean_BDhw, mean, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(network.decode(posterior.mean_BDhw), image, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda weights: weights.pop("decoder.ffn.1.weight"), "decoder.ffn.1.weight is missing"),
        (lambda weights: weights.update(other=torch.zeros(1)), "a tensor named other"),
        (lambda weights: weights.update({"encoder.transformer.0.attn.q.weight": torch.zeros(1)}), "attn.q.weight"),
    ],
)
def test_what_is_no_detok_is_refused(spoil: Callable[[Weights], None], said: str) -> None:
    weights = detok_weights(16, **SMALL)
    spoil(weights)
    with pytest.raises(ValueError, match=said):
        from_detok(weights)
