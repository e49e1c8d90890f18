"""The names of every alternative, and what is known of each without torch. A new one is named here and entered in the
dict of its kind (`REGULARIZERS`, `ALIGNMENTS`, `SAMPLERS`, ...); a test holds the two against each other.
"""

from typing import Literal

LEVELS = 4  # of S_l and G_l, counted from 0
TOP_LEVEL = LEVELS - 1

RegularizerKind = Literal["spectral", "equivariance", "none"]
Mask = Literal["gain", "remove", "square", "dct"]

Prediction = Literal["velocity", "noise", "data"]

AlignmentKind = Literal["none", "sra", "fda"]
AlignmentSchedule = Literal["linear", "constant", "step", "low_noise"]
AlignmentHead = Literal["mlp", "none"]
FeatureLoss = Literal["cosine", "l2", "smooth_l1"]

SamplerMethod = Literal["euler", "heun", "sde"]
FEWEST_STEPS: dict[SamplerMethod, int] = {"euler": 1, "heun": 1, "sde": 2}  # the last of an SDE is the mean alone
EVALUATIONS_A_STEP: dict[SamplerMethod, int] = {"euler": 1, "heun": 2, "sde": 1}

FeatureNetwork = Literal["inception", "efficientnet_lite0"]
Precision = Literal["fp32", "bf16"]
