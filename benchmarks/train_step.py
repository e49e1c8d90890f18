"""How long is a training step: against the machine's matmul peak, a plain loop, and the same loop without Ray?

Run: python -m benchmarks.train_step [--preset quickstart] [--set a.b=c]... [--device cpu] [--threads N] [--no-ray]
The data are the digits, brought to the preset's size, and random latents: a step's time does not depend on them. All
sides of a comparison alternate in one run, and a ratio is the median of the rounds' ratios. MFU counts the model's
FLOPs as the trainer does (attention products in, the discriminator's not), over the peak measured in the same round.
"""

import argparse
import copy
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.common import alternate, median_ratio, medians, save
from models.alignment import Student, alignment_loss_B
from models.discriminator import discriminator_hinge
from models.paths import drop_labels
from pipeline import cluster
from pipeline.config import Config
from pipeline.storage import open_storage
from pipeline.tracking.outbox import OUTBOX
from pipeline.training.history import History
from pipeline.training.loop import global_means
from pipeline.training.on_ray import fit
from pipeline.training.optimizer import autocast, generator
from pipeline.training.sit import SitTrainee
from pipeline.training.tokenizer import TokenizerTrainee
from pipeline.training.worker import measured_peak, set_up_cuda, train_as
from pipeline.training.world import World
from tests.support.artifacts import config_at, trainer_inputs
from tests.support.trainers import job_of, put_lease

Draws = dict[str, Tensor]


def average(averages: nn.Module, weights: nn.Module, decay: float) -> None:
    with torch.no_grad():
        for old, new in zip(averages.parameters(), weights.parameters(), strict=True):
            old.mul_(decay).add_(new, alpha=1 - decay)


def optimize(loss: Tensor, optimizer: torch.optim.Optimizer, clip: float) -> None:
    torch.autograd.backward(loss)
    nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], clip)
    optimizer.step()
    optimizer.zero_grad()


class PlainTokenizer:
    """The tokenizer's step as one would write it down first, on a trainee's modules and optimizers."""

    def __init__(self, trainee: TokenizerTrainee, adversarial: bool) -> None:
        self.parts, self.adversarial = trainee, adversarial
        self.source = torch.Generator(trainee.world.device).manual_seed(0)

    def draws(self, step: int | None) -> Draws:
        """The trainee's own of that step; None takes the next ones of a plain generator."""
        own, device = self.parts, self.parts.world.device
        shape = (own.config.batch_size, *own.tokenizer.latent_shape)
        source = self.source if step is None else generator(own.seed, step, "noise", device)
        return {"noise": torch.randn(shape, generator=source, device=device)}

    def distance(self, made: Tensor, target: Tensor) -> Tensor:
        config, perceptual = self.parts.config, self.parts.objective.perceptual
        difference = (made.float() - target) / 2  # of images in [0, 1]
        distance = config.mse_weight * difference.square().mean() + config.l1_weight * difference.abs().mean()
        return distance if perceptual is None else distance + config.perceptual_weight * perceptual(made, target)

    def __call__(self, batch: Any, draws: Draws, step: int) -> float:
        own, config, regularizer = self.parts, self.parts.config, self.parts.objective.regularizer
        x = batch[0].float() / 127.5 - 1
        draw = regularizer.draw(generator(own.seed, step, "regularizer", torch.device("cpu")), len(x))
        source, target = regularizer.source(x, draw), regularizer.image(x, draw)
        side = own.tokenizer.grid * source.shape[-1] // x.shape[-1]
        noise = draws["noise"][..., :side, :side]
        latents = [partial(regularizer.latent, draw=each) for each in (draw, draw.added) if each is not None]
        with autocast(config.precision, own.world.device):
            made, posterior, *second = own.tokenizer(source, noise, *latents)
            loss = self.distance(made, target) + config.kl_weight * posterior.kl().mean()
            if draw.added is not None:
                loss = loss + config.scale_weight * self.distance(second[0], regularizer.image(x, draw.added))
            for name, term in regularizer.penalties(posterior.sample(noise), source).items():
                loss = loss + getattr(config, f"{name}_weight") * term
            if self.adversarial:
                own.discriminator.requires_grad_(False)
                loss = loss - config.adversarial_weight * own.discriminator(made / 2 + 0.5).float().mean()
                own.discriminator.requires_grad_(True)
        optimize(loss, own.optimizer, config.clip)
        average(own.ema.model, own.tokenizer, config.ema_decay)
        if self.adversarial:
            with autocast(config.precision, own.world.device):
                real, fake = own.discriminator(torch.cat([target, made.detach()]) / 2 + 0.5).float().chunk(2)
            optimize(discriminator_hinge(real, fake), own.discriminator_optimizer, config.clip)
        return float(loss.detach())


class PlainSit:
    """The same for SiT: velocity, and the alignment where the config has one."""

    def __init__(self, trainee: SitTrainee) -> None:
        self.parts = trainee
        self.source = torch.Generator(trainee.world.device).manual_seed(0)

    def draws(self, step: int | None) -> Draws:
        own, device = self.parts, self.parts.world.device
        rows, shape = own.config.batch_size, own.store.shape
        made: Draws = {}
        for name in ("posterior", "noise", "t", "label_dropout", "teacher_t"):
            source = self.source if step is None else generator(own.seed, step, name, device)
            normal = name in ("posterior", "noise")
            draw, size = (torch.randn, (rows, *shape)) if normal else (torch.rand, (rows,))
            made[name] = draw(size, generator=source, device=device)
        return made

    def __call__(self, batch: Any, draws: Draws, step: int) -> float:
        own, config = self.parts, self.parts.config
        mean, logvar = (part.float() for part in batch[:2])
        z = mean + (0.5 * logvar).exp() * draws["posterior"]
        objective = own.objective
        levels = objective.alignment.draw_levels(generator(own.seed, step, "levels", torch.device("cpu")))
        low_z, high_z = (objective.statistics.normalise(objective.latent_filter(z, level)) for level in levels)
        noise, t = draws["noise"], draws["t"]
        labels = drop_labels(batch[2], draws["label_dropout"], config.label_dropout, objective.null_label)
        time_B111 = t[:, None, None, None]
        with autocast(config.precision, own.world.device):
            predicted, projected = own.model((1 - time_B111) * low_z + time_B111 * noise, t, labels)
            loss_B = (predicted.float() - (noise - low_z)).square().mean((1, 2, 3))
            if projected is not None:
                student = Student(low_z, high_z, noise, t, labels, draws["teacher_t"])
                loss_B = loss_B + alignment_loss_B(
                    objective.alignment, objective.path, own.ema.model, projected, student
                )
        loss = loss_B.mean()
        optimize(loss, own.optimizer, config.clip)
        average(own.ema.model, own.model.sit, config.ema_decay)
        return float(loss.detach())


@dataclass
class Pair:
    """A trainee, and a plain step on a twin of it."""

    trainee: Any
    plain: Any
    batches: list[Any]
    steps: Sequence[int]  # that of each batch, again and again: its draws, the schedule, and whether D takes part

    def __post_init__(self) -> None:
        self.history = History(self.trainee.world.device)

    def ours(self, batch: Any, step: int) -> Tensor:
        """A step with what `loop._run_steps` does around each."""
        losses = global_means(self.trainee.step(batch, step), self.trainee.world)
        self.history.add(losses)
        return losses["loss"]

    def losses(self) -> tuple[float, float]:
        """Of both sides in the first step. All different ones are made, from the same state, and compute the same."""
        found, twin = [], self.plain.parts.states()
        for step, batch in dict(zip(self.steps, self.batches, strict=True)).items():
            for name, part in self.trainee.states().items():
                twin[name].load_state_dict(copy.deepcopy(part.state_dict()))
            ours, plain = float(self.ours(batch, step)), self.plain(batch, self.plain.draws(step), step)
            assert abs(ours - plain) <= 1e-4 * abs(ours), f"the plain step computes another loss: {plain}, not {ours}"
            found.append((ours, plain))
        return found[0]

    def sides(self) -> dict[str, Callable[[], float]]:
        """Both, over all batches: seconds a step."""
        device = self.trainee.world.device

        def mean_of(make: Callable[[Any, int], Any]) -> float:
            _wait(device)
            begin = time.perf_counter()
            for batch, step in zip(self.batches, self.steps, strict=True):
                make(batch, step)
            _wait(device)
            return (time.perf_counter() - begin) / len(self.batches)

        return {
            "ours": lambda: mean_of(self.ours),
            "plain": lambda: mean_of(lambda batch, step: self.plain(batch, self.plain.draws(None), step)),
        }

    def measure(self, rounds: int, peak_seconds: float) -> dict[str, Any]:
        ours, plain = self.losses()
        device = self.trainee.world.device
        sides: dict[str, Callable[[], float]] = {**self.sides(), "peak": lambda: measured_peak(device, peak_seconds)}
        for name in sides:
            sides[name]()
        measured = alternate(sides, rounds)
        flops = self.trainee.flops_per_step
        middle = medians(measured)
        return {
            "ms_ours": 1e3 * middle["ours"],
            "ms_plain": 1e3 * middle["plain"],
            "ratio_to_plain": median_ratio(measured["ours"], measured["plain"]),
            "gflops_step": flops / 1e9,
            "peak_gflops_per_s": middle["peak"] / 1e9,
            "mfu": median_ratio([flops / s for s in measured["ours"]], measured["peak"]),
            "first_loss": ours,
            "first_loss_plain": plain,
        }


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def inputs_of(config: Config, stage: str, root: Path) -> dict[str, Any]:
    return trainer_inputs(config, stage, root / "scratch", rows=max(256, config.sit.batch_size))


def make_pair(
    config: Config, root: Path, which: str, device: str, batches: int, inputs: dict[str, Any] | None = None
) -> Pair:
    """`which` is tokenizer, adversarial (the tokenizer once D is at work) or sit. `inputs` are made if not given."""
    stage = "train-sit" if which == "sit" else "train-tokenizer"
    inputs, world = inputs or inputs_of(config, stage, root), World(0, 1, torch.device(device))
    kind: Any = SitTrainee if which == "sit" else TokenizerTrainee
    trainee, twin = (kind(config, open_storage(config.root), inputs, world) for _ in range(2))
    loader = trainee.batches(0, batches)
    made = [copy.deepcopy(batch) for batch in loader]
    loader.close()
    if which == "sit":
        return Pair(trainee, PlainSit(twin), made, batches * [0])
    adversarial = which == "adversarial"
    step = config.tokenizer.steps - 1 if adversarial else 0
    return Pair(trainee, PlainTokenizer(twin, adversarial), made, batches * [step])


def trained_step_seconds(config: Config, root: Path, ray: bool, threads: int) -> float:
    """Median seconds a step over the history's lines but the first two, on Ray or without."""
    job = job_of(config, "train-tokenizer", inputs_of(config, "train-tokenizer", root), threads)
    put_lease(job)
    if ray:
        fit(job)
    else:
        train_as(World.alone(config.cluster.device), job)
    storage = open_storage(config.root)
    assert storage.exists(f"{job.work}/result.json"), "the training did not come to its end"
    events = [
        json.loads(line)
        for entry in storage.list(f"{OUTBOX}/{job.outbox}")
        for line in storage.read(entry.path).splitlines()
    ]
    seconds = [event["values"]["tokenizer/step_seconds"] for event in events]
    return medians({"step": seconds[2:]})["step"]


def measure_ray(preset: str, sets: list[str], steps: int, rounds: int, device: str, threads: int) -> dict[str, float]:
    """What Ray Train adds to a step; one local Ray for all rounds, a fresh root for each training."""
    own = [f"tokenizer.steps={steps}", "tokenizer.checkpoint_every=100000", "tokenizer.log_every=10"]
    own += ["tokenizer.discriminator_start=1.0", "tokenizer.adversarial_start=1.0", f"cluster.device={device}"]
    own.append(f"cluster.cpus_per_worker={threads}")

    def side(ray: bool) -> float:
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder)
            return trained_step_seconds(config_at(root, preset, *sets, *own), root, ray, threads)

    with tempfile.TemporaryDirectory() as folder:
        settings = config_at(Path(folder), preset, *sets, *own).cluster
    torch.set_num_threads(threads)
    cluster.connect(settings)
    try:
        measured = alternate({"without": lambda: side(False), "with": lambda: side(True)}, rounds)
    finally:
        cluster.disconnect()
    middle = medians(measured)
    return {
        "ms_with_ray": 1e3 * middle["with"],
        "ms_without_ray": 1e3 * middle["without"],
        "ratio": median_ratio(measured["with"], measured["without"]),
        "rounds": rounds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="quickstart")
    parser.add_argument("--set", action="append", default=[], dest="sets")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batches", type=int, default=8, help="steps in a round")
    parser.add_argument("--ray-steps", type=int, default=100)
    parser.add_argument("--ray-rounds", type=int, default=2)
    parser.add_argument("--no-ray", action="store_true")
    given = parser.parse_args()
    sets = [*given.sets]
    if given.preset != "quickstart":
        sets = ["data.format=digits", "data.classes=10", *sets]
    cluster.set_environment()
    torch.set_num_threads(given.threads)
    result: dict[str, Any] = {"preset": given.preset, "sets": given.sets, "threads": given.threads, "steps": {}}
    print(f"{'':12}{'ours ms':>10}{'plain ms':>10}{'ratio':>8}{'MFU':>8}")
    with tempfile.TemporaryDirectory() as folder:
        config = config_at(Path(folder), given.preset, *sets)
        if given.device == "cuda":
            set_up_cuda(config.cluster.deterministic)
        for which in ("tokenizer", "adversarial", "sit"):
            pair = make_pair(config, Path(folder), which, given.device, given.batches)
            row = result["steps"][which] = pair.measure(given.rounds, 0.3)
            shown = f"{row['ms_ours']:10.2f}{row['ms_plain']:10.2f}{row['ratio_to_plain']:8.3f}{row['mfu']:8.1%}"
            print(f"{which:12}{shown}", flush=True)
    if not given.no_ray:
        ray = measure_ray(given.preset, sets, given.ray_steps, given.ray_rounds, given.device, given.threads)
        result["ray_train"] = ray
        print(f"Ray Train: {ray['ms_with_ray']:.2f} ms with, {ray['ms_without_ray']:.2f} without: {ray['ratio']:.3f}")
    name = "train_step" if (given.preset, given.device) == ("quickstart", "cpu") else f"train_step-{given.preset}"
    print(save(name if given.device == "cpu" else f"{name}-cuda", result, given.device).name)


if __name__ == "__main__":
    main()
