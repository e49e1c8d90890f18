"""The section `tokenizer`: the autoencoder, its regularizer, the terms of its objective, and its training."""

import math
from typing import Annotated, Any, get_args

from pydantic import Field, field_validator, model_validator

from models.choices import (
    DEFAULT_KEEP,
    DEFAULT_MASK,
    LEVELS,
    PERCEPTUAL_WEIGHTS,
    TOP_LEVEL,
    UNIFORM,
    Mask,
    Perceptual,
    RegularizerKind,
    TokenizerKind,
)
from pipeline.config.fields import (
    BatchSize,
    Betas,
    Clip,
    EmaDecay,
    Schedule,
    Share,
    Steps,
    TrainerConfig,
    Warmup,
    WeightDecay,
    Weights,
)
from pipeline.config.kinds import check_kind, network_of

_OF_REGULARIZERS: dict[str, RegularizerKind] = {  # fields that one regularizer alone uses
    "level_probabilities": "spectral",
    "level_per_sample": "spectral",
    "scale_weight": "scale",
    "spectrum_weight": "spectrum_prior",
    "spectrum_delta": "spectrum_prior",
}


class TokenizerConfig(TrainerConfig):
    """The autoencoder, its regularizer and its training. The terms' weights are DeTok's, for images in [0, 1]."""

    kind: TokenizerKind = Field(
        "vit", description="Network: the paper's vit, diffusers' AutoencoderKL sd-vae, or its AutoencoderDC dc-ae."
    )
    imported: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None = Field(
        None, description="Fingerprint of a tokenizer from `import tokenizer`, used as it is. None: one is trained."
    )

    steps: Steps = 500_000
    batch_size: BatchSize = 512
    betas: Betas = (0.9, 0.95)
    weight_decay: WeightDecay = 1e-4
    warmup: Warmup = 0.25
    decay: Schedule = "cosine"
    clip: Clip = 3.0
    ema_decay: EmaDecay = 0.999
    patch_size: int = Field(16, ge=1, description="Spatial downsampling factor f; of a ViT the side of a patch.")
    latent_dim: int = Field(16, ge=1, description="Latent channels d.")
    width: int | None = Field(None, ge=8, description="vit: channels of a transformer block. None: 768.")
    depth: int | None = Field(None, ge=1, description="vit: blocks in the encoder, and in the decoder. None: 12.")
    heads: int | None = Field(None, ge=1, description="vit: attention heads. None: 12.")
    hidden: int | None = Field(None, ge=1, description="vit: hidden width of the SwiGLU feed-forward. None: 2048.")
    block_out_channels: Annotated[tuple[int, ...], Field(min_length=2, max_length=8)] | None = Field(
        None, description="sd-vae: channels of each resolution; their number determines f. None: 128, 256, 512, 512."
    )
    layers_per_block: int | None = Field(
        None, ge=1, description="sd-vae: residual blocks of a resolution in the encoder. None: 2."
    )
    norm_num_groups: int | None = Field(None, ge=1, description="sd-vae: groups of every GroupNorm. None: 32.")
    regularizer: RegularizerKind = Field(
        "spectral",
        description="Regularizer of the latent; spectral: MLSR, equivariance: EQ-VAE, scale: scale equivariance, "
        "matching and spectrum_prior: spectrum matching by shared masks, or by a prior.",
    )
    mask: Mask = Field(DEFAULT_MASK, description="Interpretation of M_l in Eq. 3.")
    keep: Annotated[float, Field(gt=0.0, lt=1.0)] = Field(
        DEFAULT_KEEP, description="Share of frequencies that M_l leaves unchanged at every level."
    )
    level_probabilities: tuple[Share, Share, Share, Share] = Field(
        UNIFORM,
        description="For regularizer spectral: probabilities of levels 0 to 3, which sum to 1; uniform in Eq. 1.",
    )
    level_per_sample: bool = Field(
        False, description="For regularizer spectral: draw the level per sample instead of per step (Eq. 1)."
    )
    mse_weight: float = Field(1.0, ge=0, description="Weight of the mean squared difference of images in [0, 1].")
    l1_weight: float = Field(0.0, ge=0, description="Weight of their mean absolute difference, as in SD-VAE.")
    kl_weight: float = Field(1e-6, ge=0, description="Weight of KL (summed over a latent, mean over images).")
    perceptual: Perceptual = Field(
        "lpips+convnext", description="The perceptual term; lpips+convnext is (LPIPS + 0.1 ConvNeXt-S) / 1.1."
    )
    perceptual_weight: float = Field(1.0, gt=0, description="Weight of the perceptual term.")
    lpips: Weights | None = Field(None, description="VGG-16's weights for LPIPS. None: vgg16, where the term has it.")
    convnext: Weights | None = Field(
        None, description="ConvNeXt-S's weights. None: convnext-small, where the term has it."
    )
    efficientnet: Weights | None = Field(
        None, description="EfficientNet-Lite0's weights. None: efficientnet-lite0, where the term has it."
    )
    adversarial_weight: float = Field(0.1, ge=0, description="Weight of the PatchGAN term; 0: D is not trained.")
    scale_weight: float = Field(
        0.25, gt=0, description="Weight of the scaled latent's reconstruction, for regularizer scale."
    )
    spectrum_weight: float = Field(
        0.01,
        gt=0,
        description="Weight of KL between the spectra of image and latent in nats, for regularizer spectrum_prior.",
    )
    spectrum_delta: float = Field(
        1.0, ge=0, description="Power of the frequency that flattens the image's spectrum there; 0: as it is."
    )
    discriminator_width: int = Field(64, ge=1, description="Channels of D's first layer.")
    discriminator_layers: int = Field(3, ge=1, le=10, description="Strided layers of D.")
    discriminator_learning_rate: float = Field(
        1e-4, gt=0, description="Peak of D's learning rate, on the tokenizer's schedule."
    )
    discriminator_start: Share = Field(0.5, description="Share of the steps after which D trains.")
    adversarial_start: Share = Field(
        0.5,
        description="Share of the steps after which the adversarial term is used; DeTok uses it from D's start, half "
        "way in its 200 epochs and at once in its fine-tuning of the decoder.",
    )

    @field_validator("level_probabilities", mode="before")
    @classmethod
    def _of_each_level(cls, given: Any) -> Any:
        if not isinstance(given, (list, tuple)) or len(given) != LEVELS:
            raise ValueError(f"it needs {LEVELS} probabilities, those of levels 0 to {TOP_LEVEL}")
        return given

    @model_validator(mode="after")
    def _fits(self) -> "TokenizerConfig":
        check_kind(self.kind, self.imported, self._fields_of_kinds, self.patch_size)
        if not math.isclose(total := sum(self.level_probabilities), 1.0, abs_tol=1e-6):
            raise ValueError(f"level_probabilities must sum to 1, not {total:g}")
        if self.adversarial_start < self.discriminator_start:
            raise ValueError("adversarial_start must not be less than discriminator_start")
        return self

    @model_validator(mode="after")
    def _uses_its_regularizers_fields(self) -> "TokenizerConfig":
        for field, owner in _OF_REGULARIZERS.items():
            if self.regularizer != owner and getattr(self, field) != type(self).model_fields[field].default:
                raise ValueError(f"{field} is of regularizer {owner}, and regularizer is {self.regularizer}")
        return self

    @model_validator(mode="before")
    @classmethod
    def _name_weights(cls, given: Any) -> Any:
        """The weights that the perceptual term needs by their names in the catalogue, where no others are given.

        A tokenizer that is imported is not trained and needs none.
        """
        if not isinstance(given, dict) or given.get("imported") is not None:
            return given
        term = given.get("perceptual", cls.model_fields["perceptual"].default)
        if term not in get_args(Perceptual):  # which the field itself refuses
            return given
        return {**given, **{field: given.get(field) or name for field, name in PERCEPTUAL_WEIGHTS[term].items()}}

    @model_validator(mode="after")
    def _uses_its_weights(self) -> "TokenizerConfig":
        for field in ("lpips", "convnext", "efficientnet"):
            if getattr(self, field) is not None and field not in PERCEPTUAL_WEIGHTS[self.perceptual]:
                raise ValueError(f"{field} is given, and perceptual {self.perceptual} does not use it")
        return self

    @property
    def _fields_of_kinds(self) -> dict[str, Any]:
        return {
            "width": self.width,
            "depth": self.depth,
            "heads": self.heads,
            "hidden": self.hidden,
            "block_out_channels": self.block_out_channels,
            "layers_per_block": self.layers_per_block,
            "norm_num_groups": self.norm_num_groups,
        }

    def as_it_is(self, fingerprint: str) -> "TokenizerConfig":
        """The section that uses the artifact of such a training in the place of a training."""
        known = dict.fromkeys(self._fields_of_kinds)  # from the artifact
        return self.model_copy(update={"imported": fingerprint, "start_from": None, **known})

    def network(self, image_size: int) -> dict[str, Any]:
        """The arguments of `models.tokenizers.build`, as stored in the manifest.

        Of an imported tokenizer its manifest has them; these are then those of its kind's public weights.
        """
        return network_of(self.kind, self._fields_of_kinds, image_size, self.patch_size, self.latent_dim)
