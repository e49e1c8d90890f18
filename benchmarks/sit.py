"""What does alignment add to a step of SiT, and what do guidance and an SDE's noise add to a sample?

Run: python -m benchmarks.sit [--set a.b=c]...
Three parts, each of sides that alternate in one run, at width 256 and depth 14 on the quickstart's latents:
* a step with no alignment, SRA and FDA: against the same step written plainly (`train_step.PlainSit`, which computes
  the same losses) and against that with none. The floor of what alignment adds, by FLOPs, is the teacher's blocks,
  forward, and the student's head, forward and backward. SRA's public code runs all of the teacher's blocks: a side too;
* images a second without guidance, with it at every time, and within [0, .7];
* images a second of the SDE with its noise drawn ahead in a thread, and drawn when it is needed.
"""

import argparse
import tempfile
from collections.abc import Callable, Generator
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from benchmarks.common import RESULTS, alternate, median_ratio, medians, save, seconds
from benchmarks.train_step import Pair, inputs_of, make_pair
from models import generator
from models.choices import EVALUATIONS, AlignmentKind
from models.generator import ImageGenerator, LatentStatistics, Sampling
from models.sit import SiT
from models.tokenizers import build
from pipeline import cluster
from pipeline.config import Config
from pipeline.workflow import sit_gflops
from tests.support.artifacts import config_at

SIZE = ("sit.width=256", "sit.depth=14", "sit.heads=4", "sit.student_block=4", "sit.teacher_block=10")
INTERVAL = (0.0, 0.7)
_KINDS: tuple[AlignmentKind, ...] = ("none", "sra", "fda")


def floor(config: Config) -> float:
    """What alignment adds at least, as a share of a step without: FLOPs of the teacher's blocks and the head."""
    width, depth, _ = config.sit.shape
    tokens = (config.grid // config.sit.patch_size) ** 2
    head = 2e-9 * tokens * 4 * width * width
    forward = sit_gflops(config, attention=True)
    return (config.sit.aligned_blocks[1] / depth * forward + 3 * head) / (3 * forward)


def run_all_blocks(teacher: SiT) -> None:
    """Make a teacher run the blocks beyond the aligned one and its head, as SRA's public code does."""

    def features(z_BDhw: Tensor, t_B: Tensor, label_B: Tensor, block: int) -> Tensor:
        features_BNK: Tensor = teacher(z_BDhw, t_B, label_B, block)[1]
        return features_BNK

    teacher.features = features  # type: ignore[method-assign]


def measure_alignments(root: Path, sets: list[str], rounds: int, batches: int) -> dict[str, dict[str, float]]:
    """A step's time by alignment, its ratios, and the floor of what the alignment adds."""
    inputs = inputs_of(config_at(root, "quickstart", *SIZE, *sets), "train-sit", root)

    def pair_of(kind: AlignmentKind) -> tuple[Config, Pair]:
        config = config_at(root, "quickstart", *SIZE, f"sit.alignment={kind}", *sets)
        pair = make_pair(config, root, "sit", "cpu", batches, inputs)
        pair.losses()
        return config, pair

    configs, pairs = dict[str, Config](), dict[str, Pair]()
    for kind in _KINDS:
        configs[kind], pairs[kind] = pair_of(kind)
    _, public = pair_of("sra")
    run_all_blocks(public.trainee.objective.teacher)
    sides = {f"{kind}, {name}": side for kind, pair in pairs.items() for name, side in pair.sides().items()}
    sides["sra, all blocks"] = public.sides()["ours"]
    measured = alternate(sides, rounds)
    middle = medians(measured)
    rows = {
        kind: {
            "ms": 1e3 * middle[f"{kind}, ours"],
            "ratio_to_plain": median_ratio(measured[f"{kind}, ours"], measured[f"{kind}, plain"]),
            "ratio_to_none": median_ratio(measured[f"{kind}, ours"], measured["none, ours"]),
            "floor": 1 + (floor(configs[kind]) if kind != "none" else 0.0),
        }
        for kind in pairs
    }
    rows["sra"]["all_blocks_to_ours"] = median_ratio(measured["sra, all blocks"], measured["sra, ours"])
    return rows


def image_generator(config: Config) -> ImageGenerator:
    """Of random weights: a sample takes as long as with others."""
    torch.manual_seed(0)
    tokenizer = build(config.tokenizer.kind, config.tokenizer_network)
    sit = SiT(**config.sit_network)
    for parameter in sit.parameters():
        nn.init.normal_(parameter, std=0.02)
    ones = [1.0] * config.tokenizer.latent_dim
    return ImageGenerator(tokenizer, sit, LatentStatistics([0.0] * len(ones), ones), "velocity").eval()


def seconds_of(images: ImageGenerator, count: int, sampling: Sampling) -> float:
    return seconds(lambda: images.draw(torch.arange(count) % 10, range(count), sampling))


def measure_guidance(images: ImageGenerator, count: int, steps: int, rounds: int) -> dict[str, float]:
    """Images a second of Euler's method, by where guidance acts."""
    asked = {
        "unguided": Sampling("euler", steps),
        "guided": Sampling("euler", steps, guidance=1.8),
        "interval": Sampling("euler", steps, guidance=1.8, guidance_interval=INTERVAL),
    }
    sides: dict[str, Callable[[], float]] = {
        name: partial(seconds_of, images, count, sampling) for name, sampling in asked.items()
    }
    measured = alternate(sides, rounds)
    rates = {f"images_per_second_{name}": count / value for name, value in medians(measured).items()}
    ratios = {f"{name}_to_unguided": median_ratio(measured[name], measured["unguided"]) for name in asked}
    return {**rates, **ratios, "evaluations": float(EVALUATIONS["euler"](steps))}


def when_needed(draw: Callable[[int], Tensor], streams: range) -> Generator[Tensor, None, None]:
    """In the place of `generator.drawn_ahead`."""
    yield from map(draw, streams)


def measure_noise(images: ImageGenerator, count: int, steps: int, rounds: int) -> dict[str, float]:
    """Seconds of the SDE with its noise drawn ahead and when needed, and the share of a sample that drawing takes."""
    sampling = Sampling("sde", steps)
    ahead = partial(seconds_of, images, count, sampling)

    def needed() -> float:
        with mock.patch.object(generator, "drawn_ahead", when_needed):
            return ahead()

    def drawing() -> float:
        shape = images.tokenizer.latent_shape
        return seconds(lambda: [generator.image_noise(0, range(count), shape, "cpu", i) for i in range(steps)])

    measured = alternate({"ahead": ahead, "when_needed": needed, "drawing": drawing}, rounds)
    middle = medians(measured)
    return {
        "images_per_second": count / middle["ahead"],
        "ratio_to_when_needed": median_ratio(measured["ahead"], measured["when_needed"]),
        "drawing_of_when_needed": median_ratio(measured["drawing"], measured["when_needed"]),
    }


def main(arguments: list[str] | None = None, folder: Path = RESULTS) -> Path:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", action="append", default=[], dest="sets", help="of the quickstart")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batches", type=int, default=4, help="steps in a round")
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--steps", type=int, default=21, help="of a sample")
    given = parser.parse_args(arguments)
    cluster.set_environment()
    result: dict[str, Any] = {"sets": [*SIZE, *given.sets]}
    with tempfile.TemporaryDirectory() as root:
        rows = result["alignments"] = measure_alignments(Path(root), given.sets, given.rounds, given.batches)
        for kind, row in rows.items():
            ratios = (
                f"{row['ratio_to_plain']:.3f} of plain, {row['ratio_to_none']:.3f} of none, floor {row['floor']:.3f}"
            )
            print(f"{kind:6}{row['ms']:8.1f} ms  {ratios}", flush=True)
        print(f"sra with all of the teacher's blocks: {rows['sra']['all_blocks_to_ours']:.3f} of ours")
        images = image_generator(config_at(Path(root), "quickstart", *SIZE, *given.sets, "data.classes=10"))
    guidance = result["guidance"] = measure_guidance(images, given.images, given.steps, given.rounds)
    rates = {name: f"{guidance[f'images_per_second_{name}']:.2f}" for name in ("unguided", "guided", "interval")}
    print(f"images a second: {rates['unguided']} unguided, {rates['guided']} guided, {rates['interval']} on {INTERVAL}")
    noise = result["noise"] = measure_noise(images, given.images, given.steps, given.rounds)
    shares = (
        f"{noise['ratio_to_when_needed']:.3f} of when needed, of which drawing is {noise['drawing_of_when_needed']:.2%}"
    )
    print(f"an SDE's noise drawn ahead: {shares}")
    path = save("sit", result, folder=folder)
    print(path.name)
    return path


if __name__ == "__main__":
    main()
