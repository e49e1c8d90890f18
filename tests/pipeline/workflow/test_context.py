"""The tasks of a stage, interrupted: the next attempt makes what is missing, and nothing twice."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from pipeline import cluster
from pipeline.artifacts import Manifest
from pipeline.config import Config
from pipeline.stages import sample
from pipeline.workflow import StageContext
from tests.support.artifacts import encoded, prepared, put
from tests.support.contexts import committed, local_context, untrained_generator, untrained_tokenizer
from tests.support.trainers import small_config

SHARDS = ["sample.count=50", "sample.batch_size=10", "sample.steps=2", "sample.guidance=1"]


class Tasks:
    """In the place of Ray: in this process, in another order than asked for. It remembers what was done."""

    def __init__(self, most: int | None = None) -> None:
        self.most = most  # tasks, after which the driver is interrupted
        self.done: list[Any] = []

    def __call__(
        self, function: Callable[[Any], Any], specs: Sequence[Any], *_: Any, **__: Any
    ) -> Iterator[tuple[int, Any]]:
        for index in reversed(range(len(specs))):
            if len(self.done) == self.most:
                raise KeyboardInterrupt
            result = function(specs[index])
            self.done.append(getattr(specs[index], "start", "grid"))
            yield index, result


def given(config: Config, scratch: Path) -> dict[str, Manifest]:
    """What `sample` reads, of random weights."""
    prepare = put(config, prepared(config))
    tokenizer = untrained_tokenizer(config, prepare, scratch)
    latents = put(config, encoded(config, {"prepare": prepare, "train-tokenizer": tokenizer}, scratch))
    inputs = {"train-tokenizer": tokenizer, "encode": latents}
    return {**inputs, "train-sit": untrained_generator(config, inputs, scratch)}


def context_of(config: Config, inputs: dict[str, Manifest], scratch: Path) -> StageContext:
    """One that runs its tasks as a cluster's does."""
    return StageContext(**vars(local_context(config, "sample", inputs, scratch)))


def test_an_interrupted_sample_draws_each_shard_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And ends with the files of one that was not interrupted, in their order."""

    def run(root: Path, *interrupted: int) -> tuple[Manifest, list[Tasks], list[tuple[int, int]]]:
        config = small_config(root, *SHARDS)
        inputs, attempts, bar = given(config, root / "scratch"), list[Tasks](), list[tuple[int, int]]()

        def progress(done: int, total: int, unit: str) -> None:
            if unit == "images":
                bar.append((done, total))

        for most in (*interrupted, None):
            context, tasks = context_of(config, inputs, root / "scratch"), Tasks(most)
            context.progress = progress
            monkeypatch.setattr(cluster, "run_tasks", tasks)
            attempts.append(tasks)
            if most is None:
                return committed(context, sample.run(context)), attempts, bar
            with pytest.raises(KeyboardInterrupt):
                sample.run(context)
        raise AssertionError

    at_once, _, _ = run(tmp_path / "once")
    cut, attempts, bar = run(tmp_path / "cut", 2, 0, 1)
    assert [tasks.done for tasks in attempts] == [[40, 30], [], [20], [10, 0, "grid"]]
    assert bar == [(done, 50) for done in (0, 10, 20, 20, 20, 30, 30, 40, 50)]
    assert cut.files == at_once.files
    assert cut.details["shards"] == [{"path": f"images/{start:06d}.npz", "rows": 10} for start in range(0, 50, 10)]
