"""Do bf16 and fp32 train the tokenizer alike? Their loss curves' distance against that of two seeds.

Run: python -m benchmarks.precision [--data FOLDER] [--steps 500] [--seeds 3] [--set a.b=c]...
`--data` (or DVAE_TEST_DATA) holds cifar10-train.parquet; without it the images are the digits. A small tokenizer at 32
pixels, with D and the schedule of the quickstart, is trained by the trainer's loop for each seed in both precisions.
A curve's points are means over 10 steps. For each term of the loss, two medians over all points are compared: of the
relative difference of bf16 to fp32 at the same seed (same weights, images and noise), and of one seed of fp32 to
another. bf16 is within the noise where the first is not larger.
"""

import argparse
import os
import statistics
import tempfile
import time
from itertools import combinations
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import RESULTS, save
from models.choices import Precision
from pipeline import cluster
from pipeline.config import Config
from pipeline.training.worker import train_as
from pipeline.training.world import World
from tests.support.artifacts import config_at, trainer_inputs
from tests.support.trainers import Ranks, history, job_of, put_lease

TERMS = ("loss", "mse", "kl", "adversarial", "discriminator")
_PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16")
_END = 0.2  # share of the points whose mean stands for the end of a curve
_TRIAL = 4  # steps to foresee how long it takes

Curve = list[dict[str, float]]


def source_sets(data: str | None) -> list[str]:
    """CIFAR-10 where it is, as the preset reads it; else the quickstart's digits."""
    if data is None:
        return []
    uri = (Path(data) / "cifar10-train.parquet").resolve().as_uri()
    return ["data.format=parquet", f"data.uri={uri}", "data.validation_share=0.02", "data.classes=10"]


class Trainings:
    """Trainings in this process, of one small tokenizer on one set of images."""

    def __init__(self, root: Path, sets: list[str]) -> None:
        self.root, self.sets = root, sets
        self.inputs = trainer_inputs(self._config(), "train-tokenizer", root / "scratch")

    def _config(self, *sets: str) -> Config:
        return config_at(self.root, "quickstart", *self.sets, *sets)

    def train(self, precision: Precision, seed: int, steps: int) -> Curve:
        """The lines of its history."""
        config = self._config(
            f"seed={seed}",
            f"tokenizer.precision={precision}",
            f"tokenizer.steps={steps}",
            f"tokenizer.checkpoint_every={steps}",
        )
        job = job_of(config, "train-tokenizer", self.inputs, torch.get_num_threads())
        put_lease(job)
        train_as(World.alone(), job)
        return history(Ranks(job))

    def step_seconds(self, precision: Precision) -> float:
        """By the difference of two short trainings, after one that pays for what is done once."""
        self.train(precision, 0, 1)
        times = []
        for steps in (1, 1 + _TRIAL):
            begin = time.perf_counter()
            self.train(precision, 0, steps)
            times.append(time.perf_counter() - begin)
        return (times[1] - times[0]) / _TRIAL


def compare(curves: dict[Precision, list[Curve]]) -> dict[str, dict[str, Any]]:
    """By term: the medians, the ends of the curves by precision and seed, and whether bf16 is within the noise."""
    pairs = list(zip(curves["bf16"], curves["fp32"], strict=True))
    others = list(combinations(curves["fp32"], 2))
    rows = {}
    for term in (name for name in TERMS if name in curves["fp32"][0][-1]):
        of_precision, of_seeds = (
            statistics.median(gap for a, b in found for gap in _gaps(a, b, term)) for found in (pairs, others)
        )
        rows[term] = {
            "precision": of_precision,
            "seeds": of_seeds,
            "within_noise": of_precision <= of_seeds,
            **{f"end_{name}": [_end(curve, term) for curve in found] for name, found in curves.items()},
        }
    return rows


def _gaps(a: Curve, b: Curve, term: str) -> list[float]:
    """Relative differences of two curves, where both have the term."""
    pairs = [(x[term], y[term]) for x, y in zip(a, b, strict=True) if term in x and term in y]
    return [2 * abs(x - y) / max(abs(x) + abs(y), 1e-12) for x, y in pairs]


def _end(curve: Curve, term: str) -> float:
    values = [line[term] for line in curve if term in line]
    return statistics.mean(values[-max(1, round(_END * len(curve))) :])


def main(arguments: list[str] | None = None, folder: Path = RESULTS) -> Path:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=os.environ.get("DVAE_TEST_DATA"), help="the folder of CIFAR-10's Parquet")
    parser.add_argument("--set", action="append", default=[], dest="sets", help="of the quickstart")
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--seeds", type=int, default=3, help="two at least")
    parser.add_argument("--trial", action="store_true", help="only foresee how long it takes")
    given = parser.parse_args(arguments)
    cluster.set_environment()
    sets = [*source_sets(given.data), *given.sets]
    with tempfile.TemporaryDirectory() as root:
        trainings, seconds = Trainings(Path(root), sets), dict[str, float]()
        for name in _PRECISIONS:
            seconds[name] = trainings.step_seconds(name)
            minutes = given.steps * seconds[name] / 60
            print(f"{name}: {1e3 * seconds[name]:.0f} ms a step, {minutes:.1f} min a training", flush=True)
        if given.trial:
            parser.exit()
        curves: dict[Precision, list[Curve]] = {name: [] for name in _PRECISIONS}
        for seed in range(given.seeds):
            for precision, found in curves.items():
                found.append(trainings.train(precision, seed, given.steps))
                print(f"seed {seed}, {precision}: loss {found[-1][-1]['loss']:.4f} at the end", flush=True)
    rows = compare(curves)
    print(f"{'':16}{'bf16 to fp32':>14}{'seed to seed':>14}")
    for term, row in rows.items():
        print(
            f"{term:16}{row['precision']:14.2%}{row['seeds']:14.2%}{'' if row['within_noise'] else '  more than noise'}"
        )
    data = "digits" if given.data is None else "cifar10"
    result = {"data": data, "sets": given.sets, "steps": given.steps, "seconds_a_step": seconds, "terms": rows}
    path = save("precision", {**result, "curves": curves}, folder=folder)
    print(path.name)
    return path


if __name__ == "__main__":
    main()
