"""Alignment of SiT's features with those of its moving average: SRA, and the paper's FDA (Eq. 6-8).

Where the paper does not specify FDA, SRA's settings are used. What each takes by default is in `choices`.
Shapes: B batch, D latent channels, h w latent grid, N tokens, K width.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .choices import LEVELS, TOP_LEVEL, AlignmentHead, AlignmentKind, AlignmentSchedule, FeatureLoss
from .paths import Path, interpolate
from .sit import SiT

_SMOOTH_L1_BETA = 0.05
_SRA_SPAN = 0.2  # SRA's teacher input has up to this much less noise


class Student(NamedTuple):
    """The student's inputs in a step, and the same latents at FDA's higher level."""

    z_lo_BDhw: Tensor
    """Normalised latents at the student's level."""
    z_hi_BDhw: Tensor
    """Normalised latents at FDA's higher level."""
    noise_BDhw: Tensor
    t_B: Tensor
    label_B: Tensor
    """After label dropout."""
    uniform_B: Tensor
    """Uniform in [0, 1), for SRA."""


@dataclass(frozen=True)
class Alignment:
    """No alignment; also the base class with the settings of all kinds. Blocks count from 1.

    Args:
        student_block, teacher_block: the blocks whose outputs are compared (8 and 20 for SiT-XL).
        weight: lambda0, the mean of lambda(t) over uniform t.
        schedule: lambda(t): `linear` lambda0 2 t, `constant` lambda0, `step` 2 lambda0 from t = 1/2 on,
            `low_noise` lambda0 2 (1 - t).
        loss: `cosine` 2 - 2 cos over the feature axis (the squared L2 distance of normalised tokens), `l2` squared
            difference, `smooth_l1` with beta .05; each the mean over tokens, the latter two over features too.
        head: the student's projection, `mlp`, or `none`; with `none` and the loss `l2` it is Eq. 7 to the letter.
        levels: (lo, hi): the level of the generator's latents, and FDA's higher one, from 0.
        random_levels: FDA draws its pair of levels in each step.

    Raises:
        ValueError: a block below 1, or levels that the kind cannot use.
    """

    student_block: int = 8
    teacher_block: int = 20
    weight: float = 0.25
    schedule: AlignmentSchedule = "linear"
    loss: FeatureLoss = "cosine"
    head: AlignmentHead = "mlp"
    levels: tuple[int, int] = (2, TOP_LEVEL)
    random_levels: bool = False

    aligns = False
    """Whether this kind aligns features."""

    def draw_levels(self, generator: torch.Generator) -> tuple[int, int]:  # noqa: ARG002
        """(lo, hi) of this step from a CPU generator: the diffusion loss uses z^(lo), FDA's teacher z^(hi)."""
        return self.levels[0], self.levels[0]

    def teacher_input(self, student: Student, path: Path) -> tuple[Tensor, Tensor]:  # noqa: ARG002
        """(z_BDhw, t_B): the teacher's input."""
        raise ValueError("alignment none has no teacher")


@dataclass(frozen=True)
class SelfRepresentation(Alignment):
    """SRA (Jiang et al. 2025): both get the same latent, the teacher at the earlier time max(t - .2 u, 0)."""

    aligns = True

    def __post_init__(self) -> None:
        _check_blocks(self)

    def teacher_input(self, student: Student, path: Path) -> tuple[Tensor, Tensor]:
        """The student's latent at its earlier time."""
        t_B = (student.t_B - _SRA_SPAN * student.uniform_B).clamp(min=0)
        return interpolate(path, student.z_lo_BDhw, student.noise_BDhw, t_B), t_B


@dataclass(frozen=True)
class FrequencyAware(Alignment):
    """FDA (Eq. 6-8): the teacher gets the spectrally simpler latent z^(hi), without noise at t = 0."""

    aligns = True

    def __post_init__(self) -> None:
        _check_blocks(self)
        low, high = self.levels
        if not 0 <= low < high < LEVELS:
            raise ValueError(f"fda needs levels 0 <= lo < hi < {LEVELS}; given {self.levels}")

    def draw_levels(self, generator: torch.Generator) -> tuple[int, int]:
        """The pair of `levels`; with `random_levels` uniform over the six pairs with hi > lo."""
        if not self.random_levels:
            return self.levels
        pairs = [(lo, hi) for hi in range(LEVELS) for lo in range(hi)]
        return pairs[int(torch.randint(len(pairs), (), generator=generator))]

    def teacher_input(self, student: Student, path: Path) -> tuple[Tensor, Tensor]:  # noqa: ARG002
        """z^(hi) at t = 0."""
        return student.z_hi_BDhw, torch.zeros_like(student.t_B)


def _check_blocks(alignment: Alignment) -> None:
    if min(alignment.student_block, alignment.teacher_block) < 1:
        raise ValueError(
            f"alignment blocks count from 1; given {alignment.student_block} and {alignment.teacher_block}"
        )


ALIGNMENTS: dict[AlignmentKind, type[Alignment]] = {
    "none": Alignment,
    "sra": SelfRepresentation,
    "fda": FrequencyAware,
}


class AlignedSiT(nn.Module):
    """SiT and the student's projection head in one module, for DDP. The head is used in training only.

    Raises:
        ValueError: the SiT has fewer blocks than the alignment requires.
    """

    def __init__(self, sit: SiT, alignment: Alignment) -> None:
        super().__init__()
        depth, width = len(sit.blocks), sit.embed.out_features
        if alignment.aligns and max(alignment.student_block, alignment.teacher_block) > depth:
            raise ValueError(
                f"alignment of blocks {alignment.student_block} and {alignment.teacher_block} in a SiT of {depth}"
            )
        self.sit = sit
        self.feature_block = alignment.student_block if alignment.aligns else None
        self.head: nn.Module = nn.Identity()
        if alignment.aligns and alignment.head == "mlp":
            self.head = nn.Sequential(nn.Linear(width, 2 * width), nn.SiLU(), nn.Linear(2 * width, width))

    def forward(self, zt_BDhw: Tensor, t_B: Tensor, label_B: Tensor) -> tuple[Tensor, Tensor | None]:
        """(prediction_BDhw fp32, head(features)_BNK or None without alignment); arguments as in `SiT.forward`."""
        if self.feature_block is None:
            return self.sit(zt_BDhw, t_B, label_B), None
        velocity_BDhw, features_BNK = self.sit(zt_BDhw, t_B, label_B, self.feature_block)
        return velocity_BDhw, self.head(features_BNK)


SCHEDULES: dict[AlignmentSchedule, Callable[[float, Tensor], Tensor]] = {
    "linear": lambda weight, t: 2 * weight * t,
    "low_noise": lambda weight, t: 2 * weight * (1 - t),
    "step": lambda weight, t: 2 * weight * (t >= 0.5).float(),
    "constant": lambda weight, t: torch.full_like(t, weight),
}


def alignment_weight_B(alignment: Alignment, t_B: Tensor) -> Tensor:
    """lambda(t) of Eq. 8 at the student's t: (B,) fp32, mean `weight` over uniform t for every schedule."""
    return SCHEDULES[alignment.schedule](alignment.weight, t_B.float())


FEATURE_LOSSES: dict[FeatureLoss, Callable[[Tensor, Tensor], Tensor]] = {
    "cosine": lambda a_BNK, b_BNK: (2 - 2 * F.cosine_similarity(a_BNK, b_BNK, dim=-1)).mean(1),
    "l2": lambda a_BNK, b_BNK: (a_BNK - b_BNK).square().mean((1, 2)),
    "smooth_l1": lambda a_BNK, b_BNK: F.smooth_l1_loss(a_BNK, b_BNK, reduction="none", beta=_SMOOTH_L1_BETA).mean(
        (1, 2)
    ),
}


def feature_loss_B(student_BNK: Tensor, teacher_BNK: Tensor, loss: FeatureLoss) -> Tensor:
    """Distance between features per sample, (B,) fp32, as described in `Alignment`; no gradient for the teacher."""
    with torch.autocast(student_BNK.device.type, enabled=False):
        return FEATURE_LOSSES[loss](student_BNK.float(), teacher_BNK.detach().float())


def alignment_loss_B(alignment: Alignment, path: Path, teacher: SiT, projected_BNK: Tensor, student: Student) -> Tensor:
    """lambda(t) L_align of Eq. 7-8 for each sample, to be added to the diffusion loss: (B,) fp32.

    Args:
        alignment: a kind with `aligns`.
        path: the student's.
        teacher: the moving average of the student's SiT, in eval mode; it runs without gradient and stops at its block.
        projected_BNK: the output of `AlignedSiT` at interpolate(z_lo, noise, t).
        student: the inputs of that call.

    Raises:
        ValueError: the kind is `none`.
    """
    z_BDhw, t_B = alignment.teacher_input(student, path)
    with torch.no_grad():
        teacher_BNK = teacher.features(z_BDhw, t_B, student.label_B, alignment.teacher_block)
    return alignment_weight_B(alignment, student.t_B) * feature_loss_B(projected_BNK, teacher_BNK, alignment.loss)
