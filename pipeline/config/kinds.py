"""The kinds of tokenizers: which fields only one of them has, and the network that they describe. No schema types."""

from collections.abc import Mapping
from typing import Any

from models.choices import TokenizerKind
from models.conv_sizes import DC_AE, SD_VAE

# The fields of the tokenizer's section that only one kind has, and their values there unless set.
KIND_FIELDS: dict[TokenizerKind, dict[str, Any]] = {
    "vit": {"width": 768, "depth": 12, "heads": 12, "hidden": 2048},
    "sd-vae": {name: SD_VAE[name] for name in ("block_out_channels", "layers_per_block", "norm_num_groups")},
    "dc-ae": {},
}

# The fields that say what an imported tokenizer is; all others of the section are of training.
OF_IMPORTED = {"kind", "imported", "patch_size", "latent_dim", "mask", "keep"} | {
    name for own in KIND_FIELDS.values() for name in own
}

Fields = Mapping[str, Any]
"""The values of all fields in KIND_FIELDS, by name; None: not set."""


def check_kind(kind: TokenizerKind, imported: str | None, fields: Fields, factor: int) -> None:
    """ValueError if a field belongs to another kind, or those of this one make no network."""
    for owner, own in KIND_FIELDS.items():
        given = [name for name in own if fields[name] is not None]
        if given and owner != kind:
            raise ValueError(
                f"{' and '.join(given)}: of kind {owner} alone, and kind is {kind}; leave out, or set null"
            )
        if given and imported is not None:
            raise ValueError(f"{' and '.join(given)}: known from what was imported; leave out, or set null")
    if imported is not None:
        return
    if kind == "dc-ae":
        raise ValueError(
            "kind dc-ae is not trained here; set imported, as `python -m pipeline import tokenizer dc-ae URI` prints it"
        )
    _check_network(kind, _own_fields(kind, fields), factor)


def _check_network(kind: TokenizerKind, own: Fields, factor: int) -> None:
    if kind == "vit":
        if own["width"] % (4 * own["heads"]):
            raise ValueError(f"width {own['width']} must be a multiple of 4 x heads ({4 * own['heads']}) for 2-D RoPE")
        return
    widths, groups = own["block_out_channels"], own["norm_num_groups"]
    if factor != 1 << (len(widths) - 1):
        raise ValueError(
            f"patch_size {factor} is not the factor of {len(widths)} block_out_channels, {1 << (len(widths) - 1)}"
        )
    if odd := [width for width in widths if width % groups]:
        raise ValueError(f"norm_num_groups {groups} does not divide {odd[0]} of block_out_channels")


def network_of(kind: TokenizerKind, fields: Fields, image_size: int, factor: int, channels: int) -> dict[str, Any]:
    """The arguments of `models.tokenizers.build`, as stored in the manifest; of a dc-ae those of the public f32c32."""
    own = _own_fields(kind, fields)
    if kind == "vit":
        return {"image_size": image_size, "patch_size": factor, "latent_dim": channels, **own}
    public = SD_VAE if kind == "sd-vae" else DC_AE
    return {"image_size": image_size, **public, **own, "latent_channels": channels}


def _own_fields(kind: TokenizerKind, fields: Fields) -> dict[str, Any]:
    return {name: default if fields[name] is None else fields[name] for name, default in KIND_FIELDS[kind].items()}
