"""Public layouts of SiT's weights in our names, and ours in theirs: SiT (Ma et al. 2024), REPA (Yu et al. 2025), SRA.

All three are DiT's modules. REPA and SRA count time as we do. In SiT t = 1 is data and the velocity points to it, so
that ours is v(z, t) = -v_SiT(z, 1 - t). Both fold into the weights: cos w(1 - t) and sin w(1 - t) are sums of cos wt
and sin wt, which the first layer of the time takes, and the final layer changes its sign.
Shapes: D latent channels, p side of a patch, K width, T sinusoids of the time.
"""

import math
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .choices import PublicSit
from .sit import sincos_positions, time_frequencies
from .sizes import MLP_RATIO, SIT_SIZES, TIMESTEP_CHANNELS

Shapes = dict[str, tuple[int, ...]]

_ENDS = {
    "x_embedder.proj": "embed",
    "t_embedder.mlp.0": "time_in",
    "t_embedder.mlp.2": "time_out",
    "y_embedder.embedding_table": "label_embed",
    "final_layer.adaLN_modulation.1": "final_modulation",
    "final_layer.linear": "final_layer",
}
_IN_A_BLOCK = {
    "attn.qkv": "qkv",
    "attn.q_norm": "q_norm",
    "attn.k_norm": "k_norm",
    "attn.proj": "attention_out",
    "mlp.fc1": "mlp_in",
    "mlp.fc2": "mlp_out",
    "adaLN_modulation.1": "modulation",
}
_OF_TRAINING: dict[PublicSit, tuple[str, ...]] = {"sit": (), "repa": ("projectors.",), "sra": ("ap_head.",)}
_HEADS = {width: heads for width, _, heads in SIT_SIZES.values()}
_DECODER = re.compile(r"decoder_blocks\.(\d+)\.")  # REPA's earlier files: those behind the aligned block
_POSITIONS = "pos_embed"
# A moving average of 0.9999 in fp32 takes its frozen positions along and comes to lie up to 2e-4 beside them.
_POSITION_TOLERANCE = 1e-3
_REPA_HIDDEN, _REPA_FEATURES = 2048, 768  # of the projector of its public setting, DINOv2-B


def public_network(theirs: Mapping[str, Tensor], heads: int | None = None) -> dict[str, Any]:
    """The arguments of `sit.SiT` for a state dict of any of the layouts, by its shapes.

    Args:
        theirs: the state dict.
        heads: attention heads. None: by the norms of queries, if there are any, else those of SiT's size of this width.

    Raises:
        ValueError: a tensor that tells a size is missing or of another rank, or no SiT has the width.
    """
    theirs = _in_one_row(theirs)
    width, latent_dim, patch_size, _ = _shape(theirs, "x_embedder.proj.weight", 4)
    tokens = _shape(theirs, _POSITIONS, 3)[1]
    rows = _shape(theirs, "y_embedder.embedding_table.weight", 2)[0]
    qk_norm = "blocks.0.attn.q_norm.weight" in theirs
    if heads is None:
        of_a_head = _shape(theirs, "blocks.0.attn.q_norm.weight", 1)[0] if qk_norm else 0
        heads = width // of_a_head if qk_norm else _HEADS.get(width, 0)
    if not heads:
        raise ValueError(f"no SiT is {width} wide, so that its number of heads is not known")
    return {
        "grid": math.isqrt(tokens) * patch_size,
        "latent_dim": latent_dim,
        "classes": rows - 1,
        "width": width,
        "depth": len({name.split(".")[1] for name in theirs if name.startswith("blocks.")}),
        "heads": heads,
        "patch_size": patch_size,
        "qk_norm": qk_norm,
        "time_scale": 1.0,
    }


def _shape(theirs: Mapping[str, Tensor], name: str, rank: int) -> tuple[int, ...]:
    if name not in theirs:
        raise ValueError(f"no weights of a SiT: {name} is missing")
    shape = tuple(theirs[name].shape)
    if len(shape) != rank or not all(shape):
        raise ValueError(f"no weights of a SiT: {name} is {shape}")
    return shape


def public_shapes(kind: PublicSit, network: Mapping[str, Any]) -> Shapes:
    """Names and shapes of a layout's tensors, but for those that it has for training alone.

    `network`: the arguments of `sit.SiT`. The output of SiT has variances beside the velocity, twice the channels.
    """
    width, dim, patch = network["width"], network["latent_dim"], network["patch_size"]
    outputs = patch**2 * dim * (2 if kind == "sit" else 1)
    shapes: Shapes = {_POSITIONS: (1, (network["grid"] // patch) ** 2, width)}
    shapes |= {"x_embedder.proj.weight": (width, dim, patch, patch), "x_embedder.proj.bias": (width,)}
    shapes |= _linear("t_embedder.mlp.0", TIMESTEP_CHANNELS, width) | _linear("t_embedder.mlp.2", width, width)
    shapes |= {"y_embedder.embedding_table.weight": (network["classes"] + 1, width)}
    for number in range(network["depth"]):
        block = f"blocks.{number}"
        shapes |= _linear(f"{block}.attn.qkv", width, 3 * width)
        for norm in ("q_norm", "k_norm") if network["qk_norm"] else ():
            shapes |= {f"{block}.attn.{norm}.{part}": (width // network["heads"],) for part in ("weight", "bias")}
        shapes |= _linear(f"{block}.attn.proj", width, width)
        shapes |= _linear(f"{block}.mlp.fc1", width, MLP_RATIO * width)
        shapes |= _linear(f"{block}.mlp.fc2", MLP_RATIO * width, width)
        shapes |= _linear(f"{block}.adaLN_modulation.1", width, 6 * width)
    return (
        shapes
        | _linear("final_layer.linear", width, outputs)
        | _linear("final_layer.adaLN_modulation.1", width, 2 * width)
    )


def _linear(name: str, inputs: int, outputs: int) -> Shapes:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def from_public(theirs: Mapping[str, Tensor], kind: PublicSit, network: Mapping[str, Any]) -> dict[str, Tensor]:
    """The state dict of `sit.SiT` for one of theirs, whose tensors it shares where it can.

    Args:
        theirs: with tensors of the training (REPA's projectors, SRA's head) or without.
        kind: its layout.
        network: the arguments of our network, of `public_network`.

    Raises:
        ValueError: a tensor is missing, unknown or of another shape, or the positions are not those of SiT.
    """
    theirs = _in_one_row(theirs)
    kept = {name: tensor for name, tensor in theirs.items() if not name.startswith(_OF_TRAINING[kind])}
    _check_shapes(kept, kind, network)
    positions_1NK = sincos_positions(network["grid"] // network["patch_size"], network["width"])
    theirs_1NK = kept.pop(_POSITIONS)
    rounding = torch.finfo(theirs_1NK.dtype).eps if theirs_1NK.is_floating_point() else 0.0
    tolerance = _POSITION_TOLERANCE + rounding
    if not torch.allclose(theirs_1NK.float().cpu(), positions_1NK, rtol=0.0, atol=tolerance):
        raise ValueError(f"{_POSITIONS} is not the table of sines and cosines of SiT")
    ours = {_our_name(name): tensor for name, tensor in kept.items()}
    ours["embed.weight"] = ours["embed.weight"].flatten(1)
    cells = network["patch_size"] ** 2
    for part in ("weight", "bias"):  # rows by row, column, channel of a patch there; by channel, row, column here
        head = ours[f"final_layer.{part}"]
        rows = head.reshape(cells, -1, *head.shape[1:])[:, : network["latent_dim"]]
        ours[f"final_layer.{part}"] = rows.transpose(0, 1).flatten(0, 1)
    return _reversed(ours) if kind == "sit" else ours


def to_public(ours: Mapping[str, Tensor], kind: PublicSit, network: Mapping[str, Any]) -> dict[str, Tensor]:
    """The inverse of `from_public`: a state dict that the public code of this kind loads, with all that it asks for.

    What we have not is zero there: SiT's variances, REPA's projector, SRA's head.

    Raises:
        ValueError: the layout has no place for what this network has.
    """
    if network["time_scale"] != 1.0:
        raise ValueError(f"time_scale is {network['time_scale']:g}, and {kind} embeds t itself")
    if network["qk_norm"] and kind == "sit":
        raise ValueError("qk_norm is on, and sit has no norms of queries and keys")
    turned = _reversed(ours) if kind == "sit" else ours
    theirs: dict[str, Tensor] = {}
    for name, shape in public_shapes(kind, network).items():
        if name == _POSITIONS:
            theirs[name] = sincos_positions(network["grid"] // network["patch_size"], network["width"])
        elif name.startswith("final_layer.linear."):
            head = turned[_our_name(name)]
            rows = head.reshape(network["latent_dim"], -1, *head.shape[1:]).transpose(0, 1)
            padding = torch.zeros_like(rows) if kind == "sit" else rows[:, :0]
            theirs[name] = torch.cat([rows, padding], dim=1).flatten(0, 1)
        else:
            theirs[name] = turned[_our_name(name)].reshape(shape)
    return theirs | {name: torch.zeros(shape) for name, shape in _training_shapes(kind, network["width"]).items()}


def _reversed(ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of -v(z, 1 - t) for those of v(z, t), in fp32 where they are not the same. Its own inverse."""
    weight_KT = ours["time_in.weight"].double()
    of_cos, of_sin = weight_KT.chunk(2, dim=1)
    frequency = time_frequencies(weight_KT.device).double()
    cos, sin = frequency.cos(), frequency.sin()
    turned_KT = torch.cat([of_cos * cos + of_sin * sin, of_cos * sin - of_sin * cos], dim=1)
    signs = {name: -ours[name] for name in ("final_layer.weight", "final_layer.bias")}
    return {**ours, "time_in.weight": turned_KT.float(), **signs}


def _training_shapes(kind: PublicSit, width: int) -> Shapes:
    """What the public code has in its module for training, as its public settings build it."""
    if kind == "repa":
        first = _linear("projectors.0.0", width, _REPA_HIDDEN)
        second = _linear("projectors.0.2", _REPA_HIDDEN, _REPA_HIDDEN)
        return first | second | _linear("projectors.0.4", _REPA_HIDDEN, _REPA_FEATURES)
    if kind == "sra":
        return _linear("ap_head.linear1", width, 2 * width) | _linear("ap_head.linear2", 2 * width, width)
    return {}


def _check_shapes(found: Mapping[str, Tensor], kind: PublicSit, network: Mapping[str, Any]) -> None:
    """ValueError for the first tensor that a layout does not have so, in the network's order."""
    expected = public_shapes(kind, network)
    for name, shape in expected.items():
        if name not in found:
            raise ValueError(f"{name} {shape} is missing, which a {kind} of this size has")
        if tuple(found[name].shape) != shape:
            raise ValueError(f"{name} is {tuple(found[name].shape)}, not {shape} as in a {kind} of this size")
    for name in sorted(found.keys() - expected.keys()):
        raise ValueError(f"it has a tensor {name} {tuple(found[name].shape)}, which a {kind} of this size lacks")


def _in_one_row(theirs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """REPA's `decoder_blocks` of earlier files as the blocks behind `blocks`, as in its files of today."""
    first = len({name.split(".")[1] for name in theirs if name.startswith("blocks.")})
    return {
        _DECODER.sub(lambda found: f"blocks.{first + int(found[1])}.", name, count=1): tensor
        for name, tensor in theirs.items()
    }


def _our_name(name: str) -> str:
    """For a name of `public_shapes`, without the positions."""
    stem, _, part = name.rpartition(".")
    if stem in _ENDS:
        return f"{_ENDS[stem]}.{part}"
    _, number, stem = stem.split(".", 2)
    return f"blocks.{number}.{_IN_A_BLOCK[stem]}.{part}"
