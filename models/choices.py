"""The names of all alternatives, and their properties that need no torch. A new one is named here and added to the
dict of its kind (`REGULARIZERS`, `ALIGNMENTS`, `SAMPLERS`, ...); a test compares the two.
"""

from typing import Literal

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
DEFAULT_KEEP = 0.5  # share of frequencies that it leaves unchanged at every level

Perceptual = Literal["none", "lpips", "lpips+convnext", "efficientnet_lite0"]
PERCEPTUAL_WEIGHTS: dict[Perceptual, dict[str, str]] = {  # field of the tokenizer -> name in the catalogue
    "none": {},
    "lpips": {"lpips": "vgg16"},
    "lpips+convnext": {"lpips": "vgg16", "convnext": "convnext-small"},
    "efficientnet_lite0": {"efficientnet": "efficientnet-lite0"},
}

Prediction = Literal["velocity", "noise", "data"]

AlignmentKind = Literal["none", "sra", "fda"]
AlignmentSchedule = Literal["linear", "constant", "step", "low_noise"]
AlignmentHead = Literal["mlp", "none"]
FeatureLoss = Literal["cosine", "l2", "smooth_l1"]

SamplerMethod = Literal["euler", "heun", "sde"]
MINIMUM_STEPS: dict[SamplerMethod, int] = {"euler": 1, "heun": 1, "sde": 2}  # the last step of the SDE adds no noise
EVALUATIONS_PER_STEP: dict[SamplerMethod, int] = {"euler": 1, "heun": 2, "sde": 1}

FeatureNetwork = Literal["inception", "efficientnet_lite0"]
Precision = Literal["fp32", "bf16"]
EvaluationPrecision = Literal["fp32", "tf32", "bf16"]
