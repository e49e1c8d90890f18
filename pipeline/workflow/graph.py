"""The catalogue of stages: their inputs, and the config fields that determine their results.

It imports no torch, ray or mlflow, so that planning is fast. A stage's body is imported when it runs.
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pipeline.config import Config, SitConfig, TokenizerConfig
from pipeline.errors import ConfigError


def _always(config: Config) -> bool:  # noqa: ARG001
    return True


@dataclass(frozen=True)
class Stage:
    """One pure step from (some config fields, the input artifacts) to one artifact."""

    name: str
    version: int  # raised when the code changes the result for the same config and inputs
    inputs: tuple[str, ...]
    fields: tuple[str, ...]  # sections or single fields that its result depends on
    without: tuple[str, ...] = ()  # fields of these sections that it does not read
    # Fields that it reads, though no example, weight or latent depends on them: tolerances, places, what is only told.
    # The manifest keeps them apart, for a repair.
    uncounted: tuple[str, ...] = ()
    exists: Callable[[Config], bool] = _always  # a stage that a config has no use for is no input of others either

    def inputs_with(self, config: Config) -> tuple[str, ...]:
        """Its inputs that exist with this config."""
        return tuple(name for name in self.inputs if find_stage(name).exists(config))

    @property
    def body(self) -> Callable[..., Any]:
        """`run(context) -> Outcome` of `pipeline.stages.NAME`."""
        module = importlib.import_module(f"pipeline.stages.{self.name.replace('-', '_')}")
        body: Callable[..., Any] = module.run
        return body

    @property
    def salvage(self) -> Callable[..., None] | None:
        """`salvage(storage, manifest, broken, work)` of that module, if the stage can use the whole files of a broken
        artifact: it leaves what a later `run` needs for that in the work folder.
        """
        module = importlib.import_module(f"pipeline.stages.{self.name.replace('-', '_')}")
        salvage: Callable[..., None] | None = getattr(module, "salvage", None)
        return salvage


_READING = ("data.image_size", "data.center_crop")  # how a stored image is converted to the models' input
_ORDER = ("data.shuffle", "data.window_rows", "seed")
# How features are taken.
_FEATURES = (
    "evaluate.network",
    "evaluate.network_weights",
    "evaluate.network_size",
    "evaluate.also",
    "evaluate.precision",
)
_BATCH = ("evaluate.batch_size",)

STAGES: tuple[Stage, ...] = (
    Stage(
        "prepare",
        2,
        (),
        ("data", "seed"),
        without=(*_READING, "data.name", "data.horizontal_flip", "data.shuffle", "data.window_rows"),
        uncounted=("data.uri", "data.validation_uri", "data.quarantine_budget"),  # the revision stands for the URIs
    ),
    Stage(
        "train-tokenizer",
        2,
        ("prepare",),
        (*_READING, *_ORDER, "data.horizontal_flip", "tokenizer"),
        uncounted=("tokenizer.checkpoint_every", "tokenizer.log_every"),
    ),
    Stage(
        "classifier",
        1,
        ("prepare",),
        (*_READING, "data.horizontal_flip", "data.name", "seed"),
        exists=lambda config: "self" in config.evaluate.networks,
    ),
    Stage(
        "evaluate-tokenizer",
        3,
        ("prepare", "train-tokenizer", "classifier"),
        (*_READING, *_FEATURES, "evaluate.images", "evaluate.lpips"),
        uncounted=_BATCH,
    ),
    Stage("analyze", 2, ("prepare", "train-tokenizer"), (*_READING, "evaluate.precision")),
    Stage(
        "encode",
        2,
        ("prepare", "train-tokenizer"),
        (*_READING, "encode"),
        uncounted=("data.quarantine_budget", "encode.batch_size", "encode.canary_margin"),
    ),
    # What samples are measured against comes before the generator: what is missing for it is found before weeks of
    # training, and trainings that share it need not wait for each other.
    Stage(
        "reference",
        1,
        ("prepare", "classifier"),
        (*_READING, *_FEATURES, "evaluate.reference_split", "evaluate.reference_images"),
        uncounted=_BATCH,
    ),
    Stage(
        "floor",
        1,
        ("prepare", "train-tokenizer", "classifier", "reference"),
        (*_READING, *_FEATURES, "sit.level"),
        uncounted=_BATCH,
    ),
    Stage(
        "train-sit",
        2,
        ("train-tokenizer", "encode"),
        (*_ORDER, "data.classes", "sit"),
        uncounted=("sit.checkpoint_every", "sit.log_every", "sit.keep_state"),
    ),
    Stage("sample", 2, ("train-tokenizer", "encode", "train-sit"), ("sample",)),
    Stage(
        "evaluate-samples",
        2,
        ("prepare", "classifier", "reference", "floor", "sample"),
        (*_READING, *_FEATURES, "evaluate.class_accuracy", "evaluate.classifier", "evaluate.classifier_weights"),
        uncounted=_BATCH,
    ),
    Stage(
        "register",
        1,
        ("train-tokenizer", "encode", "train-sit", "evaluate-tokenizer", "evaluate-samples"),
        ("register",),
    ),
)
NAMES = tuple(stage.name for stage in STAGES)
# Stages that `run` makes when they are asked for, and not on the way to a registered model.
REQUESTED: tuple[Stage, ...] = (
    Stage(
        "convergence",
        2,
        ("train-tokenizer", "classifier", "encode", "train-sit", "reference"),
        (*_READING, *_FEATURES, "seed", "convergence", "sample"),
        without=("sample.count",),
        uncounted=_BATCH,
    ),
)
ALL_STAGES = (*STAGES, *REQUESTED)
SECTIONS = {"train-tokenizer": "tokenizer", "train-sit": "sit"}  # a trainer's section, and prefix of its metrics


def find_stage(name: str) -> Stage:
    for stage in ALL_STAGES:
        if stage.name == name:
            return stage
    raise ConfigError(f"unknown stage '{name}'", f"Use one of {', '.join(stage.name for stage in ALL_STAGES)}.")


def check_exists(config: Config, name: str | None) -> None:
    """ConfigError if the config has no such stage; None is the whole run."""
    if name is not None and not find_stage(name).exists(config):
        raise ConfigError(f"{name}: no network of this config is self", "Set evaluate.also=[self], or leave it out.")


def section_of(config: Config, stage: str) -> TokenizerConfig | SitConfig:
    """A trainer's section of the config."""
    section: TokenizerConfig | SitConfig = getattr(config, SECTIONS[stage])
    return section


def stages_until(name: str | None) -> tuple[Stage, ...]:
    """The stages of `run` up to and including `name` (None: all); of one of `REQUESTED`, it and what it needs."""
    if name is None:
        return STAGES
    last = find_stage(name)
    if last in STAGES:
        return STAGES[: NAMES.index(name) + 1]
    needed = {name}
    for stage in reversed(ALL_STAGES):
        needed |= set(stage.inputs) if stage.name in needed else set()
    return tuple(stage for stage in ALL_STAGES if stage.name in needed)
