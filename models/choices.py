"""The names of all alternatives, and their properties that need no torch. A new one is named here and added to the
dict of its kind (`REGULARIZERS`, `ALIGNMENTS`, `SAMPLERS`, ...); a test compares the two.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

LEVELS = 4  # of S_l and G_l, counted from 0
TOP_LEVEL = LEVELS - 1
UNIFORM = (0.25, 0.25, 0.25, 0.25)  # probabilities of the levels in training, Eq. 1

TokenizerKind = Literal["vit", "sd-vae", "dc-ae"]
TOKENIZER_PACKAGES: dict[TokenizerKind, tuple[str, ...]] = {
    "vit": (),
    "sd-vae": ("diffusers",),
    "dc-ae": ("diffusers",),
}

RegularizerKind = Literal["spectral", "equivariance", "scale", "matching", "spectrum_prior", "none"]
Mask = Literal["gain", "remove", "square", "dct"]
DEFAULT_MASK: Mask = "gain"
DEFAULT_KEEP = 0.25  # share of frequencies that it leaves unchanged at every level: docs/mask.md

Perceptual = Literal["none", "lpips", "lpips+convnext", "efficientnet_lite0"]
PERCEPTUAL_WEIGHTS: dict[Perceptual, dict[str, str]] = {  # field of the tokenizer -> name in the catalogue
    "none": {},
    "lpips": {"lpips": "vgg16"},
    "lpips+convnext": {"lpips": "vgg16", "convnext": "convnext-small"},
    "efficientnet_lite0": {"efficientnet": "efficientnet-lite0"},
}

PathKind = Literal["linear", "vp", "cosine"]
TimeDistribution = Literal["uniform", "logit_normal"]
Prediction = Literal["velocity", "noise", "data"]

PublicSit = Literal["sit", "repa", "sra"]  # whose layout of SiT's weights: `public_sit.py`

AlignmentKind = Literal["none", "sra", "fda"]
AlignmentSchedule = Literal["linear", "constant", "step", "low_noise"]
AlignmentHead = Literal["mlp", "none"]
FeatureLoss = Literal["cosine", "l2", "smooth_l1"]


class AlignmentDefaults(NamedTuple):
    """What an alignment takes where nothing is set."""

    weight: float
    schedule: AlignmentSchedule
    loss: FeatureLoss


ALIGNMENT_DEFAULTS: dict[AlignmentKind, AlignmentDefaults] = {
    "none": AlignmentDefaults(0.0, "constant", "l2"),
    "sra": AlignmentDefaults(0.2, "constant", "smooth_l1"),  # SRA's public code
    "fda": AlignmentDefaults(0.25, "linear", "cosine"),
}
SRA_BLOCKS = {"S": (4, 8), "B": (4, 8), "XL": (8, 20)}  # of its public scripts; others in proportion to XL's

SamplerMethod = Literal["euler", "heun", "ddim", "dopri5", "sde"]
MINIMUM_STEPS = 2  # points in time, both ends included
EVALUATIONS: dict[SamplerMethod, Callable[[int], int]] = {  # of the network, by steps
    "euler": lambda steps: steps - 1,
    "heun": lambda steps: 2 * steps - 3,
    "ddim": lambda steps: steps - 1,
    "dopri5": lambda _: 81,  # it chooses them itself: 21 to 81 were measured
    "sde": lambda steps: steps,
}

FeatureNetwork = Literal["inception", "efficientnet_lite0", "dinov2_vitb14", "self"]
FurtherNetwork = Literal["efficientnet_lite0", "self"]  # those that need no file of weights
FEATURE_WEIGHTS = {"inception": "inception", "dinov2_vitb14": "dinov2-vitb14"}
"""Names in the catalogue, of networks whose weights are in no package and not trained here."""
DINOV2_PATCH = 14  # pixels
IMAGENET_CLASSES = 1000
IMAGENET_CLASSIFIERS = {"convnext_small": "convnext-small"}
"""Names in the catalogue, of timm's classifiers of ImageNet; any other's are a file."""
Precision = Literal["fp32", "bf16"]
EvaluationPrecision = Literal["fp32", "tf32", "bf16"]
