"""SiT's objective: the diffusion loss of Eq. 5 on denoised latents, with feature alignment (Eq. 6-8).

The random draws of a step are arguments. Shapes: B batch, D latent channels, h w latent grid, N tokens, K width.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from .alignment import Alignment, Student, alignment_loss_B
from .choices import Prediction, TimeDistribution
from .generator import LatentStatistics
from .paths import TIMES, Path, diffusion_loss_B, drop_labels, interpolate, t_bin_means, target
from .sit import SiT
from .spectral import LatentFilter
from .tokenizers import DiagonalGaussian


class SitBatch(NamedTuple):
    """Stored moments, raw (neither filtered nor normalised), fp32, and labels (B,) long."""

    posterior: DiagonalGaussian
    label_B: Tensor


class SitDraws(NamedTuple):
    """The random draws of one step, for this rank's part of the batch."""

    levels: tuple[int, int]
    """`Alignment.draw_levels`."""
    posterior_BDhw: Tensor
    """Standard normal: the noise of the posterior sample."""
    noise_BDhw: Tensor
    """Standard normal: the noise of the diffusion."""
    t_B: Tensor
    """Uniform in [0, 1): of times, by their distribution."""
    label_dropout_B: Tensor
    """Uniform in [0, 1): labels are dropped where it is below `label_dropout`."""
    teacher_t_B: Tensor
    """Uniform in [0, 1): the time of SRA's teacher."""

    def part(self, rows: slice) -> "SitDraws":
        """Those of some rows of this part of the batch."""
        levels, *values_B = self
        return SitDraws(levels, *(value_B[rows] for value_B in values_B))


class SitObjective:
    """The loss of a batch of latents, as a function of (batch, draws).

    Args:
        model: an `AlignedSiT`, possibly wrapped in DDP.
        teacher: the moving average of its SiT.
        alignment: of their features.
        latent_filter: S_l.
        statistics: of latents at the alignment's lower level. They normalise both: the normalisation commutes with S_l,
            so the teacher's latent differs from the student's only in its high frequencies.
        path: between data and noise.
        times: their distribution.
        prediction: what the network predicts.
        label_dropout: share of labels replaced by `null_label`.
    """

    def __init__(
        self,
        model: nn.Module,
        teacher: SiT,
        alignment: Alignment,
        latent_filter: LatentFilter,
        statistics: LatentStatistics,
        *,
        path: Path,
        times: TimeDistribution,
        prediction: Prediction,
        label_dropout: float,
        null_label: int,
    ) -> None:
        self.model, self.teacher, self.alignment = model, teacher, alignment
        self.latent_filter, self.statistics = latent_filter, statistics
        self.path, self.times, self.prediction = path, times, prediction
        self.label_dropout, self.null_label = label_dropout, null_label

    def __call__(self, batch: SitBatch, draws: SitDraws) -> dict[str, Tensor]:
        """Eq. 5 and 8, term by term. Call it under autocast; the terms are fp32 in any case.

        Returns:
            `loss` (to differentiate) and, detached, `diffusion` and (if used) `alignment`, means over the batch, and
            `diffusion_t0` to `diffusion_t3`, the diffusion loss in the quarters of t as (sum, count).
        """
        student = self._student(batch, draws)
        zt_BDhw = interpolate(self.path, student.z_lo_BDhw, student.noise_BDhw, student.t_B)
        predicted_BDhw, projected_BNK = self.model(zt_BDhw, student.t_B, student.label_B)
        target_BDhw = target(self.path, student.z_lo_BDhw, student.noise_BDhw, student.t_B, self.prediction)
        diffusion_B = loss_B = diffusion_loss_B(predicted_BDhw, target_BDhw)
        terms = {"diffusion": diffusion_B.detach().mean()}
        if projected_BNK is not None:
            aligned_B = alignment_loss_B(self.alignment, self.path, self.teacher, projected_BNK, student)
            loss_B = loss_B + aligned_B
            terms["alignment"] = aligned_B.detach().mean()
        sums, counts = t_bin_means(diffusion_B, student.t_B)
        terms |= {f"diffusion_t{index}": torch.stack(pair) for index, pair in enumerate(zip(sums, counts, strict=True))}
        return {**terms, "loss": loss_B.mean()}

    def _student(self, batch: SitBatch, draws: SitDraws) -> Student:
        z_BDhw = batch.posterior.sample(draws.posterior_BDhw)
        lo_BDhw, hi_BDhw = (self.statistics.normalise(self.latent_filter(z_BDhw, level)) for level in draws.levels)
        label_B = drop_labels(batch.label_B, draws.label_dropout_B, self.label_dropout, self.null_label)
        t_B = TIMES[self.times](draws.t_B)
        return Student(lo_BDhw, hi_BDhw, draws.noise_BDhw, t_B, label_B, draws.teacher_t_B)
