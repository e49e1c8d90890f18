"""Alignment of SiT's features with those of its moving average: SRA, and the paper's FDA (Eq. 6-8).

Where the paper is silent on FDA, SRA's own settings hold; kind `sra` is run under the settings given for FDA.
Shapes: B batch, D latent channels, h w latent grid, N tokens, K width.
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.diffusion import interpolate
from models.sit import SiT
from models.spectral import LEVELS

Kind = Literal["none", "sra", "fda"]
Schedule = Literal["linear", "constant", "step", "low_noise"]
FeatureLoss = Literal["cosine", "l2", "smooth_l1"]

_SMOOTH_L1_BETA = 0.05
_SRA_SPAN = 0.2  # SRA's teacher sees up to this much less noise


@dataclass(frozen=True)
class Alignment:
    """How features are aligned; `make_alignment` builds and checks one."""

    kind: Kind
    student_block: int
    teacher_block: int
    weight: float
    schedule: Schedule
    loss: FeatureLoss
    head: Literal["mlp", "none"]
    levels: tuple[int, int]
    random_levels: bool

    def draw_levels(self, generator: torch.Generator) -> tuple[int, int]:
        """(lo, hi) of this step from a CPU generator: the diffusion loss is on z^(lo), FDA's teacher sees z^(hi).

        The pair of `levels`, or, with `random_levels`, uniform over the six pairs with hi > lo.
        """
        if not self.random_levels:
            return self.levels
        pairs = [(lo, hi) for hi in range(LEVELS) for lo in range(hi)]
        return pairs[int(torch.randint(len(pairs), (), generator=generator))]


def make_alignment(
    kind: Kind,
    student_block: int = 8,
    teacher_block: int = 20,
    *,
    weight: float = 0.25,
    schedule: Schedule = "linear",
    loss: FeatureLoss = "cosine",
    head: Literal["mlp", "none"] = "mlp",
    levels: tuple[int, int] = (2, 3),
    random_levels: bool = False,
) -> Alignment:
    """Builds an alignment.

    Args:
        kind: `none`; `sra`, where student and teacher see one latent, the teacher with less noise; `fda`, where the
            teacher sees the spectrally simpler latent, noiseless at t = 0.
        student_block, teacher_block: whose outputs are compared, from 1 (8 and 20 are SiT-XL's).
        weight: lambda0, the mean of lambda(t) over uniform t.
        schedule: lambda(t): `linear` lambda0 2 t, `constant` lambda0, `step` 2 lambda0 from t = 1/2 on,
            `low_noise` lambda0 2 (1 - t).
        loss: `cosine` 2 - 2 cos over the feature axis (the squared L2 distance of normalised tokens), `l2` squared
            difference, `smooth_l1` with beta .05; each the mean over tokens, the latter two over features too.
        head: the student's `mlp`, or `none`, which is Eq. 7 to the letter.
        levels: (lo, hi) when not drawn; for `sra` and `none` only lo counts.
        random_levels: draw FDA's pair by step.

    Raises:
        ValueError: a block below 1, or FDA levels that are not 0 <= lo < hi < 4.
    """
    if kind != "none" and min(student_block, teacher_block) < 1:
        raise ValueError(f"alignment blocks count from 1; given {student_block} and {teacher_block}")
    low, high = levels
    if kind == "fda" and not 0 <= low < high < LEVELS:
        raise ValueError(f"fda needs levels 0 <= lo < hi < {LEVELS}; given {levels}")
    if kind != "fda":
        levels, random_levels = (low, low), False
    return Alignment(kind, student_block, teacher_block, weight, schedule, loss, head, levels, random_levels)


class AlignedSiT(nn.Module):
    """SiT and the student's projection head in one module, which DDP can wrap. The head serves training only.

    Raises:
        ValueError: the SiT has fewer blocks than the alignment names.
    """

    def __init__(self, sit: SiT, alignment: Alignment) -> None:
        super().__init__()
        depth, width = len(sit.blocks), sit.embed.out_features
        if alignment.kind != "none" and max(alignment.student_block, alignment.teacher_block) > depth:
            raise ValueError(
                f"alignment of blocks {alignment.student_block} and {alignment.teacher_block} in a SiT of {depth}"
            )
        self.sit = sit
        self.feature_block = None if alignment.kind == "none" else alignment.student_block
        self.head: nn.Module = nn.Identity()
        if alignment.kind != "none" and alignment.head == "mlp":
            self.head = nn.Sequential(nn.Linear(width, 2 * width), nn.SiLU(), nn.Linear(2 * width, width))

    def forward(self, zt_BDhw: Tensor, t_B: Tensor, label_B: Tensor) -> tuple[Tensor, Tensor | None]:
        """(prediction_BDhw fp32, head(features)_BNK or None without alignment); arguments as in `SiT.forward`."""
        if self.feature_block is None:
            return self.sit(zt_BDhw, t_B, label_B), None
        velocity_BDhw, features_BNK = self.sit(zt_BDhw, t_B, label_B, self.feature_block)
        return velocity_BDhw, self.head(features_BNK)


def alignment_weight_B(alignment: Alignment, t_B: Tensor) -> Tensor:
    """lambda(t) of Eq. 8 at the student's t: (B,) fp32, mean `weight` over uniform t for every schedule."""
    t = t_B.float()
    if alignment.schedule == "linear":
        return 2 * alignment.weight * t
    if alignment.schedule == "low_noise":
        return 2 * alignment.weight * (1 - t)
    if alignment.schedule == "step":
        return 2 * alignment.weight * (t >= 0.5).float()
    return torch.full_like(t, alignment.weight)


def feature_loss_B(student_BNK: Tensor, teacher_BNK: Tensor, loss: FeatureLoss) -> Tensor:
    """Distance of features for each sample, (B,) fp32, as `make_alignment` describes; the teacher gets no gradient."""
    with torch.autocast(student_BNK.device.type, enabled=False):
        student, teacher = student_BNK.float(), teacher_BNK.detach().float()
        if loss == "cosine":
            return (2 - 2 * F.cosine_similarity(student, teacher, dim=-1)).mean(1)
        if loss == "l2":
            return (student - teacher).square().mean((1, 2))
        return F.smooth_l1_loss(student, teacher, reduction="none", beta=_SMOOTH_L1_BETA).mean((1, 2))


def alignment_loss_B(
    alignment: Alignment,
    teacher: SiT,
    projected_BNK: Tensor,
    z_lo_BDhw: Tensor,
    z_hi_BDhw: Tensor,
    noise_BDhw: Tensor,
    t_B: Tensor,
    label_B: Tensor,
    uniform_B: Tensor,
) -> Tensor:
    """lambda(t) L_align of Eq. 7-8 for each sample, to be added to the diffusion loss: (B,) fp32.

    Args:
        alignment: of kind `sra` or `fda`.
        teacher: the moving average of the student's SiT, in eval mode; it runs without gradient and stops at its block.
        projected_BNK: what `AlignedSiT` gave at interpolate(z_lo, noise, t).
        z_lo_BDhw: normalised latents at the student's level (SRA's teacher sees these too).
        z_hi_BDhw: normalised latents at FDA's higher level; SRA does not look at them.
        noise_BDhw, t_B, label_B: the student's, with labels dropped alike.
        uniform_B: (B,) uniform in [0, 1), for SRA's teacher time max(t - .2 u, 0); FDA does not look at it.

    Raises:
        ValueError: the alignment is of kind `none`.
    """
    if alignment.kind == "none":
        raise ValueError("alignment none has no loss")
    if alignment.kind == "fda":
        z_teacher, t_teacher = z_hi_BDhw, torch.zeros_like(t_B)
    else:
        t_teacher = (t_B - _SRA_SPAN * uniform_B).clamp(min=0)
        z_teacher = interpolate(z_lo_BDhw, noise_BDhw, t_teacher)
    with torch.no_grad():
        teacher_BNK = teacher.features(z_teacher, t_teacher, label_B, alignment.teacher_block)
    return alignment_weight_B(alignment, t_B) * feature_loss_B(projected_BNK, teacher_BNK, alignment.loss)
