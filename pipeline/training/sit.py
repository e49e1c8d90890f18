"""The trainee of SiT (Eq. 5 to 8): network, EMA, optimizer, random draws, one step. The objective is in `models`.

Shapes: B batch, D latent channels, h w latent grid.
"""

from typing import Any

import torch
from torch import Tensor

from models.alignment import ALIGNMENTS, AlignedSiT, Alignment
from models.choices import TOP_LEVEL
from models.compiling import compile_blocks
from models.ema import EMA
from models.generator import LatentStatistics
from models.objective import SitBatch, SitDraws, SitObjective
from models.optimizer import adamw, clip_gradient, step_if
from models.paths import PATHS
from models.schedule import learning_rate
from models.sit import SiT
from models.spectral import LatentFilter
from models.tokenizers import DiagonalGaussian
from pipeline.artifacts import Manifest
from pipeline.config import Config
from pipeline.data import LatentLoader
from pipeline.errors import ContractError
from pipeline.storage import Storage
from pipeline.training.accumulation import accumulate
from pipeline.training.compiling import compiles
from pipeline.training.examples import Mirrored, reading_plan, training_latents
from pipeline.training.optimizer import (
    autocast,
    generator,
    seeded,
    set_learning_rate,
)
from pipeline.training.prefetch import Tensors, on_device
from pipeline.training.restore import load_start
from pipeline.training.trainee import Batches
from pipeline.training.world import World
from pipeline.workflow import sit_gflops


def alignment_of(config: Config) -> Alignment:
    own = config.sit
    student, teacher = own.aligned_blocks
    settings = own.alignment_settings
    return ALIGNMENTS[own.alignment](
        student,
        teacher,
        weight=settings.weight,
        schedule=settings.schedule,
        loss=settings.loss,
        head=own.alignment_head,
        levels=(own.level, TOP_LEVEL),
        random_levels=own.alignment_levels == "random",
    )


def check_contract(config: Config, inputs: dict[str, Manifest]) -> None:
    """ContractError if the latents have another tokenizer or shape, or lack statistics of the level."""
    encode, tokenizer = inputs["encode"], inputs["train-tokenizer"]
    if encode.inputs["train-tokenizer"] != tokenizer.fingerprint:
        raise ContractError("the latents were encoded by another tokenizer", "Run the encode stage again.")
    shape = [config.tokenizer.latent_dim, config.grid, config.grid]
    if encode.details["latent_shape"] != shape:
        raise ContractError(
            f"the latents have shape {encode.details['latent_shape']}, not {shape}", "Run encode again."
        )
    if str(config.sit.level) not in encode.details["statistics"]:
        raise ContractError(f"the latents have no statistics of level {config.sit.level}", "Run encode again.")


class SitTrainee:
    """SiT with the alignment head, its optimizer and its EMAs, of which the first is the teacher. A `Trainee`."""

    def __init__(
        self,
        config: Config,
        storage: Storage,
        inputs: dict[str, Manifest],
        world: World,
        mirrored: Mirrored | None = None,
    ) -> None:
        own = self.config = config.sit
        self.seed, self.world, self.parts = config.sit_seed, world, config.cluster.accumulate
        encode, tokenizer = inputs["encode"], inputs["train-tokenizer"]
        self.store = training_latents(storage, encode, config, mirrored)
        self.plan = reading_plan(config, self.seed, own.batch_size, config.encode.shard_rows, world)
        alignment = alignment_of(config)
        self.model = seeded(lambda: AlignedSiT(SiT(**config.sit_network), alignment), self.seed, "sit", world.device)
        self.averages = [EMA(self.model.sit, decay) for decay in own.averages]
        self.ema = self.averages[0]
        self.model.sit.recomputes = config.cluster.checkpoint_activations
        if compiles(config.cluster, world.device):
            compile_blocks(self.model)
            compile_blocks(self.ema.model)  # the teacher
        self.parallel = world.parallel(self.model)
        self.objective = SitObjective(
            self.parallel,
            self.ema.model,
            alignment,
            LatentFilter(config.grid, **tokenizer.details["filter"]).to(world.device),
            LatentStatistics(**encode.details["statistics"][str(own.level)]).to(world.device),
            path=PATHS[own.path],
            times=own.times,
            prediction=own.prediction,
            label_dropout=own.label_dropout,
            null_label=config.data.class_count,
        )
        self.trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.optimizer = adamw(self.model, own.learning_rate, own.betas, own.weight_decay)
        # Forward and backward pass of the student, forward pass of the teacher's blocks.
        teacher = alignment.teacher_block / own.shape[1] if alignment.aligns else 0.0
        self.flops_per_step = (3.0 + teacher) * 1e9 * own.batch_size * sit_gflops(config, attention=True)

    def states(self) -> dict[str, Any]:
        more = {f"ema{average.decay}": average for average in self.averages[1:]}
        return {"model": self.model, "ema": self.ema, **more, "optimizer": self.optimizer}

    def start_from(self, weights: dict[float, dict[str, Tensor]], start: str) -> None:
        """The alignment head, which no artifact has, is new as well."""
        load_start(self.model.sit, weights[self.ema.decay], start)
        for average in self.averages:
            load_start(average.model, weights[average.decay], start)

    def weights(self) -> dict[float, dict[str, Tensor]]:
        return {average.decay: average.state_dict() for average in self.averages}

    def batches(self, start: int, stop: int) -> Batches[Tensors]:
        return on_device(LatentLoader(self.store, self.plan, start_step=start, stop_step=stop), self.world.device)

    def _draw(self, step: int, purpose: str, *shape: int, normal: bool = False) -> Tensor:
        """This rank's part of a global draw, uniform in [0, 1) or standard normal."""
        source = generator(self.seed, step, purpose, self.world.device)
        draw = torch.randn if normal else torch.rand
        values = draw((self.config.batch_size, *shape), device=self.world.device, generator=source)
        return self.world.slice(values)

    def draws(self, step: int) -> SitDraws:
        """This rank's part of the random draws of a step."""
        return SitDraws(
            levels=self.objective.alignment.draw_levels(generator(self.seed, step, "levels", torch.device("cpu"))),
            posterior_BDhw=self._draw(step, "posterior", *self.store.shape, normal=True),
            noise_BDhw=self._draw(step, "noise", *self.store.shape, normal=True),
            t_B=self._draw(step, "t"),
            label_dropout_B=self._draw(step, "label_dropout"),
            teacher_t_B=self._draw(step, "teacher_t"),
        )

    def step(self, batch: Tensors, step: int) -> dict[str, Tensor]:
        """`batch`: mean and log-variance (B, D, h, w) in fp16, labels (B,) in int64."""
        own, draws = self.config, self.draws(step)

        def losses_of(rows: slice) -> dict[str, Tensor]:
            with autocast(own.precision, self.world.device):
                return self.objective(_sit_batch(tuple(part[rows] for part in batch)), draws.part(rows))

        losses = accumulate(self.parallel, len(batch[0]), self.parts, losses_of)
        set_learning_rate(self.optimizer, learning_rate(step, own.steps, own.learning_rate, own.warmup, own.decay))
        made = clip_gradient(self.trained, own.clip)
        step_if(made, self.optimizer)
        for average in self.averages:
            average.update(self.model.sit, made)
        return {**losses, "loss": torch.where(made, losses["loss"], torch.nan)}

    def warm_up_ddp(self, batch: Tensors) -> None:
        mean_BDhw, _, label_B = batch
        z_BDhw = mean_BDhw.float()
        t_B = torch.full((z_BDhw.shape[0],), 0.5, device=self.world.device)
        with autocast(self.config.precision, self.world.device):
            predicted_BDhw, projected_BNK = self.parallel(z_BDhw, t_B, label_B)
        loss = predicted_BDhw.float().mean()
        if projected_BNK is not None:
            loss = loss + projected_BNK.float().mean()
        torch.autograd.backward(loss)
        self.optimizer.zero_grad(set_to_none=True)


def _sit_batch(batch: Tensors) -> SitBatch:
    mean_BDhw, logvar_BDhw, label_B = batch
    return SitBatch(DiagonalGaussian(mean_BDhw.float(), logvar_BDhw.float()), label_B)
