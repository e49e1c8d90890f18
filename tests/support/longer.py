"""The stage of a trainer as the runner runs it, without Ray: the workers' training runs in this process."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.artifacts import FileRecord, Manifest
from pipeline.config import Config
from pipeline.stages import train_sit
from pipeline.training import on_ray
from pipeline.training.job import Job
from tests.support.artifacts import put, trainer_inputs
from tests.support.contexts import committed, local_context
from tests.support.trainers import Dies, Ranks, run_ranks, small_config

BASE = ["sit.ema_decay=0.9", "sit.decay=constant", "sit.warmup=0", "sit.checkpoint_every=2", "sit.log_every=3"]


@dataclass
class Trainings:
    """train-sit at one root, with several settings."""

    root: Path
    monkeypatch: pytest.MonkeyPatch
    world: int = 1  # ranks; several do not die on request here
    said: list[str] = field(default_factory=list)
    inputs: dict[str, Manifest] = field(default_factory=dict)

    def config(self, *sets: str) -> Config:
        return small_config(self.root, *BASE, *sets)

    def given(self, config: Config) -> dict[str, Manifest]:
        """The inputs, which no setting of `sit` changes."""
        if not self.inputs:
            self.inputs = trainer_inputs(config, "train-sit", self.root / "scratch")
            for made in self.inputs.values():
                put(config, made)
        return self.inputs

    def attempt(self, config: Config, die_at: int | None = None) -> Manifest | None:
        """One attempt at the stage; None if it dies in front of that step, counted from 0."""
        context = local_context(config, "train-sit", self.given(config), self.root / "scratch")
        context.say = self.said.append
        context.lease = SimpleNamespace(holder=SimpleNamespace(nonce="nonce"))  # type: ignore[assignment]
        with self.monkeypatch.context() as patch:
            patch.setattr(on_ray, "fit", _fit(die_at, self.world))
            patch.setattr(on_ray, "draw_losses", _no_figure)
            try:
                return committed(context, train_sit.run(context))
            except Dies:
                return None

    def train(self, *sets: str, die_at: tuple[int, ...] = ()) -> Manifest:
        """Train to the end, killed on the way at these steps."""
        config = self.config(*sets)
        for step in die_at:
            assert self.attempt(config, step) is None
        made = self.attempt(config)
        assert made is not None
        return made


def _fit(die_at: int | None, world: int) -> Callable[[Job], None]:
    return lambda job: run_ranks(Ranks(job, world, die_at))


def _no_figure(_: Any) -> dict[str, Any]:
    return FileRecord(bytes=0, sha256="0" * 64).model_dump()
