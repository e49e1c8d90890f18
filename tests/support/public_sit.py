"""The public layouts of SiT, written down from their description: random weights, and the forward pass."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from models.choices import PublicSit

Weights = dict[str, Tensor]

SMALL = {"grid": 8, "dim": 4, "classes": 5, "width": 24, "depth": 3, "patch": 2}
HEADS = 2


def public_weights(
    kind: PublicSit, qk_norm: bool = False, /, *, grid: int, dim: int, classes: int, width: int, depth: int, patch: int
) -> Weights:
    """Random weights, none of them zero, under the names and in the shapes of the public files, with all they hold."""
    generator = torch.Generator().manual_seed(0)
    outputs = patch**2 * dim * (2 if kind == "sit" else 1)
    linears = {
        "t_embedder.mlp.0": (256, width), "t_embedder.mlp.2": (width, width),
        "final_layer.linear": (width, outputs), "final_layer.adaLN_modulation.1": (width, 2 * width),
    }  # fmt: skip
    for i in range(depth):
        linears |= {
            f"blocks.{i}.attn.qkv": (width, 3 * width), f"blocks.{i}.attn.proj": (width, width),
            f"blocks.{i}.mlp.fc1": (width, 4 * width), f"blocks.{i}.mlp.fc2": (4 * width, width),
            f"blocks.{i}.adaLN_modulation.1": (width, 6 * width),
        }  # fmt: skip
    if kind == "repa":
        linears |= {"projectors.0.0": (width, 2048), "projectors.0.2": (2048, 2048), "projectors.0.4": (2048, 768)}
    if kind == "sra":
        linears |= {"ap_head.linear1": (width, 2 * width), "ap_head.linear2": (2 * width, width)}
    shapes: dict[str, tuple[int, ...]] = {
        "x_embedder.proj.weight": (width, dim, patch, patch), "x_embedder.proj.bias": (width,),
        "y_embedder.embedding_table.weight": (classes + 1, width),
    }  # fmt: skip
    for name, (inputs, rows) in linears.items():
        shapes |= {f"{name}.weight": (rows, inputs), f"{name}.bias": (rows,)}
    for i in range(depth if qk_norm else 0):
        for norm in ("q_norm", "k_norm"):
            shapes |= {f"blocks.{i}.attn.{norm}.{part}": (width // HEADS,) for part in ("weight", "bias")}
    weights = {
        name: torch.randn(shape, generator=generator) / math.sqrt(max(1, math.prod(shape[1:])))
        for name, shape in shapes.items()
    }
    return {"pos_embed": public_positions(grid // patch, width), **weights}


def public_positions(side: int, width: int) -> Tensor:
    """(1, N, K): for the column, then for the row, sines of every frequency, then cosines."""
    table = torch.zeros(side * side, width, dtype=torch.float64)
    quarter = width // 4
    for row in range(side):
        for column in range(side):
            for i in range(quarter):
                rate = 10_000 ** (-i / quarter)
                table[row * side + column, i] = math.sin(column * rate)
                table[row * side + column, quarter + i] = math.cos(column * rate)
                table[row * side + column, 2 * quarter + i] = math.sin(row * rate)
                table[row * side + column, 3 * quarter + i] = math.cos(row * rate)
    return table[None].float()


def public_sit(weights: Weights, z: Tensor, t: Tensor, label: Tensor, heads: int = HEADS) -> Tensor:
    """The velocity in the layout's own sense of time; of SiT's twice the channels, the first half."""

    def layer(name: str, x: Tensor) -> Tensor:
        return F.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])

    def norm(x: Tensor) -> Tensor:
        return (x - x.mean(-1, keepdim=True)) / torch.sqrt(x.var(-1, keepdim=True, unbiased=False) + 1e-6)

    def scaled_norm(name: str, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"])

    kernel = weights["x_embedder.proj.weight"]
    patch = kernel.shape[-1]
    x = F.conv2d(z, kernel, weights["x_embedder.proj.bias"], stride=patch)
    side = x.shape[-1]
    x = x.flatten(2).mT + weights["pos_embed"]
    angle = t[:, None] * torch.tensor([10_000 ** (-i / 128) for i in range(128)])
    time = torch.cat([angle.cos(), angle.sin()], -1)
    time = layer("t_embedder.mlp.2", F.silu(layer("t_embedder.mlp.0", time)))
    condition = F.silu(time + weights["y_embedder.embedding_table.weight"][label])
    depth = sum(name.endswith("attn.qkv.weight") for name in weights)
    for i in range(depth):
        block = f"blocks.{i}"
        parts = layer(f"{block}.adaLN_modulation.1", condition)[:, None].chunk(6, -1)
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = parts
        B, N, K = x.shape
        qkv = layer(f"{block}.attn.qkv", norm(x) * (1 + scale_a) + shift_a).reshape(B, N, 3, heads, K // heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        if f"{block}.attn.q_norm.weight" in weights:
            q = scaled_norm(f"{block}.attn.q_norm", q)
            k = scaled_norm(f"{block}.attn.k_norm", k)
        attended = (q @ k.mT / math.sqrt(K // heads)).softmax(-1) @ v
        x = x + gate_a * layer(f"{block}.attn.proj", attended.transpose(1, 2).reshape(B, N, K))
        hidden = F.gelu(layer(f"{block}.mlp.fc1", norm(x) * (1 + scale_m) + shift_m), approximate="tanh")
        x = x + gate_m * layer(f"{block}.mlp.fc2", hidden)
    shift, scale = layer("final_layer.adaLN_modulation.1", condition)[:, None].chunk(2, -1)
    x = layer("final_layer.linear", norm(x) * (1 + scale) + shift).reshape(len(z), side, side, patch, patch, -1)
    return torch.einsum("nhwpqc->nchpwq", x).reshape(len(z), -1, side * patch, side * patch)[:, : z.shape[1]]
