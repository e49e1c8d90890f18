"""What every section of the configuration is made of: a strict base, named kinds of values, and how a field is added
after a release.
"""

from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
)
from pydantic_core import to_jsonable_python

from models.choices import Precision

Share = Annotated[float, Field(ge=0.0, le=1.0)]
Decay = Annotated[float, Field(ge=0.0, lt=1.0)]
Shuffle = Literal["full", "window"]


class Section(BaseModel):
    """A part of the tree: frozen, and strict about names. Numbers are finite, and true and false are not numbers."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_number(cls, value: Any, about: ValidationInfo) -> Any:
        if isinstance(value, bool) and about.field_name and cls.model_fields[about.field_name].annotation is not bool:
            raise ValueError("true and false (yes and no) are not values of this field")
        return value


def added_field(since: str, as_before: Any, description: str, **limits: Any) -> Any:
    """A field that came after a release, `since` that version. Its default is `as_before`: what was done without it.

    At that value it is not counted in fingerprints, so that an upgrade finds everything that was made before it.
    """
    extra = {"since": since, "as_before": to_jsonable_python(as_before)}
    return Field(as_before, description=description, json_schema_extra=extra, **limits)


def value_as_before(section: type[BaseModel], name: str) -> tuple[Any] | None:
    """(value,), as JSON has it, of a field that came after a release; None for one that has always been there."""
    extra = section.model_fields[name].json_schema_extra
    return (extra["as_before"],) if isinstance(extra, dict) and "as_before" in extra else None


class WeightFile(Section):
    """Pretrained weights that are not ours: where they lie, and what they must hash to."""

    uri: str = Field(description="file:// or s3:// URI of the weight file.")
    sha256: str = Field(pattern="^[0-9a-f]{64}$", description="Its sha256; another one is refused before a run starts.")


Steps = Annotated[int, Field(ge=1, description="Optimizer steps.")]
BatchSize = Annotated[int, Field(ge=1, description="Examples a step, over all workers.")]
LearningRate = Annotated[float, Field(gt=0, description="Peak learning rate of AdamW.")]
Betas = Annotated[tuple[Decay, Decay], Field(description="AdamW's betas, for all that is trained.")]
WeightDecay = Annotated[float, Field(ge=0, description="AdamW's decoupled weight decay.")]
Warmup = Annotated[Share, Field(description="Share of the steps with a rising learning rate.")]
Clip = Annotated[float, Field(gt=0, description="Largest norm of the gradient.")]
EmaDecay = Annotated[Decay, Field(description="Decay of the weights' moving average, per step.")]


class TrainerConfig(Section):
    """What both trainers are told; each has its own defaults."""

    steps: Steps
    batch_size: BatchSize
    learning_rate: LearningRate = 1e-4
    betas: Betas
    weight_decay: WeightDecay
    warmup: Warmup
    clip: Clip
    ema_decay: EmaDecay
    precision: Precision = Field("bf16", description="Autocast of the forward pass; master weights are fp32.")
    checkpoint_every: int = Field(5000, ge=1, description="Steps between checkpoints.")
    log_every: int = Field(100, ge=1, description="Steps between lines of the history.")
