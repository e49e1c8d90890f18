"""Public weights of DeTok (Yang et al. 2025) in our names: `vit.py` has its layout, without the mask token.

Shapes: D latent channels, K width, P pixels of a patch, p a patch's side.
"""

import math
import re
from collections.abc import Mapping

from torch import Tensor

_HEADS = {512: 8, 768: 12, 1024: 16, 1152: 16, 1280: 16}  # by width: small, base, large, xl, huge
_CONVERTED = (
    "decoder.ffn.1.weight", "decoder.ffn.1.bias", "encoder.patch_embed.0.weight", "decoder.conv_out.weight",
)  # fmt: skip
_UNUSED = "decoder.mask_token"  # for what DeTok masks in training
_ENDS = {
    "encoder.patch_embed.0": "patch_embed",
    "encoder.positional_embedding": "encoder_positions",
    "encoder.ln_pre": "encoder_input_norm",
    "encoder.ln_post": "encoder_norm",
    "encoder.latent_head": "moments_head",
    "decoder.decoder_embed": "latent_embed",
    "decoder.positional_embedding": "decoder_positions",
    "decoder.ln_pre": "decoder_input_norm",
    "decoder.ln_post": "decoder_norm",
    "decoder.ffn.1": "pixel_head",
    "decoder.conv_out": "pixel_conv",
}
_IN_A_BLOCK = {
    "norm1": "attention_norm",
    "norm2": "mlp_norm",
    "attn.qkv": "qkv",
    "attn.proj": "attention_out",
    "mlp.w12": "mlp_in",
    "mlp.w3": "mlp_out",
}
_BLOCK = re.compile(r"(encoder|decoder)\.transformer\.(\d+)\.(\w+(?:\.[a-z]\w+)?)\.(weight|bias)")


def from_detok(theirs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of `vit.Tokenizer` for a state dict of DeTok, whose tensors it shares where it can.

    Two layers are convolutions there and Linear here: the patch embedding, and the pixel head, whose outputs are
    ordered by row, column and channel of a patch there and by channel, row and column here.

    Raises:
        ValueError: a tensor has a name that DeTok does not know, or one that is converted is missing.
    """
    for name in _CONVERTED:
        if name not in theirs:
            raise ValueError(f"no DeTok state dict: {name} is missing")
    head = theirs["decoder.ffn.1.weight"]
    ours = {_our_name(name): tensor for name, tensor in theirs.items() if name != _UNUSED}
    ours["patch_embed.weight"] = ours["patch_embed.weight"].flatten(1)
    channels = ours["pixel_conv.weight"].shape[0]
    for part in ("weight", "bias"):
        rows_first_PK = ours[f"pixel_head.{part}"].reshape(-1, channels, *head.shape[1:2] * (part == "weight"))
        ours[f"pixel_head.{part}"] = rows_first_PK.transpose(0, 1).flatten(0, 1)
    return ours


def _our_name(name: str) -> str:
    stem, _, part = name.rpartition(".")
    if name in _ENDS:
        return _ENDS[name]
    if stem in _ENDS:
        return f"{_ENDS[stem]}.{part}"
    block = _BLOCK.fullmatch(name)
    if block is None or block[3] not in _IN_A_BLOCK:
        raise ValueError(f"no DeTok state dict: it has a tensor named {name}")
    return f"{block[1]}_blocks.{block[2]}.{_IN_A_BLOCK[block[3]]}.{block[4]}"


def detok_network(ours: Mapping[str, Tensor]) -> dict[str, int]:
    """The arguments of `vit.Tokenizer` for a state dict from `from_detok`. Heads, which no shape tells, by the width.

    Raises:
        ValueError: a tensor that tells a size is missing, or no DeTok has the width.
    """
    try:
        width, values = ours["patch_embed.weight"].shape
        tokens = ours["encoder_positions"].shape[1]
        latent_dim = ours["latent_embed.weight"].shape[1]
        hidden = ours["encoder_blocks.0.mlp_out.weight"].shape[1]
    except (KeyError, IndexError, ValueError) as error:
        raise ValueError(f"no DeTok state dict: {error} is missing or of another shape") from error
    if width not in _HEADS:
        raise ValueError(f"no DeTok is {width} wide: they are {', '.join(map(str, _HEADS))}")
    patch_size = math.isqrt(values // 3)
    return {
        "image_size": math.isqrt(tokens) * patch_size,
        "patch_size": patch_size,
        "latent_dim": latent_dim,
        "width": width,
        "depth": sum(bool(re.fullmatch(r"encoder_blocks\.\d+\.qkv\.weight", name)) for name in ours),
        "heads": _HEADS[width],
        "hidden": hidden,
    }
