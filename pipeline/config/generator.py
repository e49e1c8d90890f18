"""The sections of the generator: `sit`, its network, alignment and training, and `sample`, how it is drawn from."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated, Literal

from pydantic import Field, model_validator

from models.choices import (
    ALIGNMENT_DEFAULTS,
    MINIMUM_STEPS,
    SRA_BLOCKS,
    TOP_LEVEL,
    AlignmentDefaults,
    AlignmentHead,
    AlignmentKind,
    AlignmentSchedule,
    FeatureLoss,
    PathKind,
    Precision,
    Prediction,
    SamplerMethod,
    TimeDistribution,
)
from models.sizes import SIT_SIZES
from pipeline.config.fields import (
    BatchSize,
    Betas,
    Clip,
    Decay,
    EmaDecay,
    Schedule,
    Section,
    Share,
    Steps,
    Tolerance,
    TrainerConfig,
    Warmup,
    WeightDecay,
)


class SitConfig(TrainerConfig):
    """The generator, the alignment of its features, and its training."""

    imported: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None = Field(
        None,
        description="Fingerprint of a generator from `import sit`, used as it is, without this section's other fields "
        "but level, that of its latents. None: one is trained.",
    )

    steps: Steps = 400_000
    batch_size: BatchSize = 256
    betas: Betas = (0.9, 0.999)
    weight_decay: WeightDecay = 0.0
    warmup: Warmup = 0.0
    decay: Schedule = "constant"
    clip: Clip = 1.0
    ema_decay: EmaDecay = 0.9999
    ema_decays: tuple[Decay, ...] = Field(
        (), description="Decays of more averages, kept beside that of ema_decay, which is alignment's teacher."
    )
    milestones: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        (), description="Steps, rising, whose averages stay in the artifact, for curves over the training."
    )
    keep_state: bool = Field(
        False,
        description="Keep the last state of the training in the artifact, 16 bytes a parameter with one average, for "
        "more steps after the last one.",
    )
    size: Literal["S", "B", "L", "XL", "custom"] = Field(
        "XL", description="SiT size; custom uses width, depth and heads."
    )
    width: int | None = Field(None, ge=8, description="Channels of a block, for size custom.")
    depth: int | None = Field(None, ge=1, description="Blocks, for size custom.")
    heads: int | None = Field(None, ge=1, description="Attention heads, for size custom.")
    patch_size: int = Field(1, ge=1, description="Side of a patch of the latent in cells, a token each.")
    qk_norm: bool = Field(False, description="LayerNorm of each head's queries and keys.")
    time_scale: float = Field(1.0, gt=0, description="t enters the network times this; 1 in SiT, REPA and SRA.")
    level: int = Field(2, ge=0, le=TOP_LEVEL, description="Denoising level l of the generator's latents.")
    path: PathKind = Field(
        "linear", description="Between data and noise: vp is Eq. 5's, with prediction noise; cosine is SiT's GVP."
    )
    times: TimeDistribution = Field("uniform", description="Distribution of the times t of training.")
    prediction: Prediction = Field("velocity", description="What the network predicts.")
    alignment: AlignmentKind = Field("fda", description="Alignment of features (Eq. 7).")
    alignment_levels: Literal["fixed", "random"] = Field(
        "fixed", description="FDA's pair of levels: (level, 3), or random with hi > lo."
    )
    alignment_weight: float | None = Field(
        None, ge=0, description="Mean of lambda(t) in Eq. 8. None: .25 for fda, SRA's .2 for sra."
    )
    alignment_schedule: AlignmentSchedule | None = Field(
        None,
        description="Shape of lambda(t): linear is 2 t lambda0. None: linear for fda, constant for sra.",
    )
    alignment_loss: FeatureLoss | None = Field(
        None, description="Distance between features. None: cosine for fda, SRA's smooth_l1 for sra."
    )
    alignment_head: AlignmentHead = Field(
        "mlp", description="Projection of the student's features; none, with loss l2: Eq. 7 to the letter."
    )
    student_block: int | None = Field(
        None,
        ge=1,
        description="Aligned student block. None: SRA's 8 of XL, 4 of S and B; else 8/28 of depth.",
    )
    teacher_block: int | None = Field(
        None,
        ge=1,
        description="Aligned teacher block. None: SRA's 20 of XL, 8 of S and B; else 20/28 of depth.",
    )
    label_dropout: Share = Field(0.1, description="Share of labels replaced by the null label.")

    @model_validator(mode="after")
    def _fits(self) -> "SitConfig":
        given = (self.width, self.depth, self.heads)
        if (self.size == "custom") != all(value is not None for value in given):
            raise ValueError("width, depth and heads must be set for size custom, and only then")
        if self.width is not None and self.heads is not None and self.width % (4 * self.heads):
            raise ValueError(f"width {self.width} must be a multiple of 4 x heads ({4 * self.heads})")
        if self.alignment == "fda" and self.level >= TOP_LEVEL:
            raise ValueError(f"alignment fda needs a level above sit.level; level {TOP_LEVEL} has none")
        if len(set(self.averages)) < len(self.averages):
            raise ValueError(f"ema_decays: ema_decay and these have one decay twice: {_listed(self.averages)}")
        if any(later <= earlier for earlier, later in pairwise(self.milestones)):
            raise ValueError(f"milestones must rise: {_listed(self.milestones)}")
        if self.milestones and self.milestones[-1] > self.steps:
            raise ValueError(f"milestones: {self.milestones[-1]} is beyond the last step, {self.steps}")
        for name, block in (("student_block", self.student_block), ("teacher_block", self.teacher_block)):
            if block is not None and block > self.shape[1]:
                raise ValueError(f"{name} {block} exceeds the number of blocks, {self.shape[1]}")
        return self

    def as_it_is(self, fingerprint: str) -> "SitConfig":
        """The section that uses the artifact of such a training in the place of a training."""
        return self.model_copy(update={"imported": fingerprint, "start_from": None})

    @property
    def averages(self) -> tuple[float, ...]:
        """The decays of all averages of the weights, ema_decay first."""
        return (self.ema_decay, *self.ema_decays)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Width, depth and heads."""
        if self.size == "custom":
            assert self.width is not None
            assert self.depth is not None
            assert self.heads is not None
            return self.width, self.depth, self.heads
        return SIT_SIZES[self.size]

    @property
    def aligned_blocks(self) -> tuple[int, int]:
        """Student's and teacher's block, counted from 1."""
        depth = self.shape[1]
        student, teacher = SRA_BLOCKS.get(self.size, (max(1, round(depth * 8 / 28)), round(depth * 20 / 28)))
        student = self.student_block or student
        return student, self.teacher_block or max(student, teacher)

    @property
    def alignment_settings(self) -> AlignmentDefaults:
        """Weight, schedule and loss: as set, else the alignment's own."""
        own = ALIGNMENT_DEFAULTS[self.alignment]
        return AlignmentDefaults(
            own.weight if self.alignment_weight is None else self.alignment_weight,
            self.alignment_schedule or own.schedule,
            self.alignment_loss or own.loss,
        )


class SampleConfig(Section):
    count: int = Field(50_000, ge=1, description="Number of images, with class labels in turn.")
    batch_size: int = Field(125, ge=1, description="Images per forward pass and per task.")
    method: SamplerMethod = Field("sde", description="euler, heun, dopri5: ODE; ddim; sde: Euler-Maruyama.")
    steps: int = Field(
        250,
        ge=MINIMUM_STEPS,
        description="Points in time from noise to data, both included, as SiT counts; dopri5 chooses its own.",
    )
    last_step: float = Field(0.04, gt=0, lt=1, description="Length of the last step of sde, which adds no noise.")
    tolerances: tuple[Tolerance, Tolerance] = Field((1e-6, 1e-3), description="Of dopri5, absolute and relative.")
    guidance: float = Field(1.8, ge=1.0, description="Scale of classifier-free guidance; 1: no guidance.")
    guidance_interval: tuple[Share, Share] = Field((0.0, 0.7), description="Interval of times t with guidance.")
    seed: Annotated[int, Field(ge=0)] | None = Field(
        None, description="Image i starts from the noise of (seed, i). None: `seed` of the whole."
    )
    precision: Precision = Field("bf16", description="Autocast of the generator.")
    ema_decay: Decay | None = Field(
        None, description="Which average of the weights: sit.ema_decay or one of sit.ema_decays. None: the first."
    )

    @model_validator(mode="after")
    def _fits(self) -> "SampleConfig":
        if self.guidance_interval[0] > self.guidance_interval[1]:
            raise ValueError(f"guidance_interval must not begin after its end: {_listed(self.guidance_interval)}")
        return self


class ConvergenceConfig(Section):
    """How the milestones of a training are compared with real images, in stage `convergence`."""

    images: int = Field(5000, ge=2, description="Samples of each milestone.")


def check_average(sit: SitConfig, sample: SampleConfig) -> None:
    """ValueError if samples are to be drawn from an average that is not kept."""
    if sample.ema_decay not in (None, *sit.averages):
        raise ValueError(
            f"sample.ema_decay {sample.ema_decay:g} is none of sit's averages, {_listed(sit.averages)}; add it to "
            "sit.ema_decays"
        )


def _listed(numbers: Sequence[float]) -> str:
    return ", ".join(map(str, numbers))
