"""Building blocks of config sections: a strict base class, shared field types, and fields added after a release."""

import re
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic_core import to_jsonable_python

from models.choices import Precision
from pipeline.config.checks import model_name


def _without(signs: str, hint: str) -> AfterValidator:
    """Refuses s3:// URIs with these signs, at which most programs end a path: they would take another folder for it."""

    def check(uri: str) -> str:
        if uri.lower().startswith("s3://") and (found := [sign for sign in signs if sign in uri]):
            raise ValueError(f"'{uri}' contains {found[0]}, where most programs take the path to end; {hint}")
        return uri

    return AfterValidator(check)


RootUri = Annotated[str, _without("?#", "choose another prefix")]
SourceUri = Annotated[
    str,
    _without(
        "#", "rename it, or write a glob in which ? stands for it, such as photos?1/* for the classes of photos#1"
    ),
]
Share = Annotated[float, Field(ge=0.0, le=1.0)]
Seed = Annotated[int, Field(ge=0, lt=2**31)]
Decay = Annotated[float, Field(ge=0.0, lt=1.0)]
Tolerance = Annotated[float, Field(gt=0.0, lt=1.0)]
Shuffle = Literal["full", "window"]
Split = Literal["train", "validation"]
ModelName = Annotated[str, AfterValidator(model_name)]


class Section(BaseModel):
    """A section of the config: frozen, unknown keys are errors, numbers are finite, booleans are not numbers."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _reject_boolean(cls, value: Any, about: ValidationInfo) -> Any:
        if isinstance(value, bool) and about.field_name and not _takes_boolean(cls.model_fields[about.field_name]):
            raise ValueError("a boolean (true, false, yes, no) is not valid for this field")
        return value


def _takes_boolean(field: FieldInfo) -> bool:
    return field.annotation is bool or any(value is True for value in get_args(field.annotation))


def added_field(since: str, as_before: Any, description: str, **limits: Any) -> Any:
    """A field added after a release, `since` that version. Its default `as_before` is the behaviour without the field.

    With that value it is omitted from fingerprints, so that an upgrade still finds earlier artifacts.
    """
    extra = {"since": since, "as_before": to_jsonable_python(as_before)}
    return Field(as_before, description=description, json_schema_extra=extra, **limits)


def value_as_before(section: type[BaseModel], name: str) -> tuple[Any] | None:
    """(value,) as JSON: the `as_before` of a field added after a release; None for other fields."""
    extra = section.model_fields[name].json_schema_extra
    return (extra["as_before"],) if isinstance(extra, dict) and "as_before" in extra else None


class WeightFile(Section):
    """Third-party pretrained weights in one safetensors file: a name of weights.yaml, or a place and a hash."""

    name: str | None = Field(None, description="Name in weights.yaml or in the catalogue, which gives the rest.")
    uri: str | None = Field(None, description="file:// or s3:// URI of the file.")
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None = Field(
        None, description="Its sha256, verified before a run starts."
    )

    @model_validator(mode="after")
    def _fits(self) -> "WeightFile":
        if self.name is None and (self.uri is None or self.sha256 is None):
            raise ValueError("write the name of weights (`python -m pipeline weights list`), or both uri and sha256")
        return self


def _named(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


Weights = Annotated[WeightFile, BeforeValidator(_named, json_schema_input_type=str | WeightFile)]
"""Weights as a config writes them: `vgg16`, or {uri: s3://..., sha256: ...}."""


Steps = Annotated[int, Field(ge=1, description="Optimizer steps.")]
BatchSize = Annotated[int, Field(ge=1, description="Examples per step, over all workers.")]
LearningRate = Annotated[float, Field(gt=0, description="Peak learning rate of AdamW.")]
Betas = Annotated[tuple[Decay, Decay], Field(description="AdamW's betas, for all trained networks.")]
WeightDecay = Annotated[
    float,
    Field(
        ge=0,
        description="AdamW's decoupled weight decay, of matrices and kernels alone: not of norms, biases, embeddings.",
    ),
]
Warmup = Annotated[Share, Field(description="Share of the steps with linear warm-up of the learning rate.")]
Schedule = Annotated[
    Literal["constant", "cosine"],
    Field(description="Learning rate after the warm-up, of all trained networks: constant, or a cosine to 0."),
]
Clip = Annotated[float, Field(gt=0, description="Maximum norm of the gradient.")]


def _start(given: Any) -> Any:
    """ValueError for what names no artifact."""
    if isinstance(given, (int, float)):
        raise ValueError("it was read as a number; write it in quotes")
    if isinstance(given, str) and not re.fullmatch(r"[0-9a-f]{4,64}|models:/[^/@]+@[^/@]+", given):
        raise ValueError("write a fingerprint, of which 4 hex digits may do, or models:/NAME@ALIAS")
    return given


StartFrom = Annotated[str | None, BeforeValidator(_start)]
EmaDecay = Annotated[Decay, Field(description="Decay of the weights' moving average, per step.")]


class TrainerConfig(Section):
    """The settings of both trainers; each has its own defaults."""

    steps: Steps
    batch_size: BatchSize
    learning_rate: LearningRate = 1e-4
    betas: Betas
    weight_decay: WeightDecay
    warmup: Warmup
    decay: Schedule
    clip: Clip
    ema_decay: EmaDecay
    start_from: StartFrom = added_field(  # not counted without a start, so that trainings without one stay as they are
        "0.1.0",
        None,
        "Artifact whose weights the training starts from, with a new optimizer: its fingerprint, as many digits of it "
        "as tell it from others at the root, or models:/NAME@ALIAS. None: random weights.",
    )
    seed: Seed | None = added_field(  # not counted where it is that of the whole, which counts
        "0.1.0", None, "Seed of the training: weights, order of data, noise. None: `seed`."
    )
    precision: Precision = Field("bf16", description="Autocast of the forward pass; master weights are fp32.")
    checkpoint_every: int = Field(5000, ge=1, description="Steps between checkpoints.")
    log_every: int = Field(100, ge=1, description="Steps between lines of the history.")
