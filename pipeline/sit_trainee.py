"""One step of SiT on denoised latents (Eq. 5) with feature alignment (Eq. 6-8).

Called by the loop of `training.py`; path, loss and alignment are those of `models`.
Shapes: B batch, D latent channels, h w latent grid.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from models import sizes
from models.alignment import AlignedSiT, Alignment, alignment_loss_B, make_alignment
from models.diffusion import diffusion_loss_B, drop_labels, interpolate, t_bin_means, target
from models.ema import EMA
from models.generator import LatentStatistics
from models.sit import SiT
from models.spectral import LatentFilter
from models.tokenizer import DiagonalGaussian
from pipeline.artifacts import Manifest
from pipeline.config import Config
from pipeline.data.loader import LatentLoader
from pipeline.errors import ContractError
from pipeline.mirroring import reading_plan, training_latents
from pipeline.storage import Storage
from pipeline.tokenizer_trainee import compile_blocks
from pipeline.training import World, clipped_step, generator, learning_rate, set_learning_rate


def network_arguments(config: Config) -> dict[str, Any]:
    """The arguments of `SiT`, as they go into the manifest."""
    width, depth, heads = config.sit.shape
    return {
        "grid": config.grid,
        "latent_dim": config.tokenizer.latent_dim,
        "classes": config.data.class_count,
        "width": width,
        "depth": depth,
        "heads": heads,
    }


def alignment_of(config: Config) -> Alignment:
    own = config.sit
    student, teacher = own.aligned_blocks
    return make_alignment(
        own.alignment,
        student,
        teacher,
        weight=own.alignment_weight,
        schedule=own.alignment_schedule,
        loss=own.alignment_loss,
        head=own.alignment_head,
        levels=(own.level, 3),
        random_levels=own.alignment_levels == "random",
    )


def check_contract(config: Config, inputs: dict[str, Manifest]) -> None:
    """Refuse latents of another tokenizer or shape, or without statistics of the level. ContractError."""
    encode, tokenizer = inputs["encode"], inputs["train-tokenizer"]
    if encode.inputs["train-tokenizer"] != tokenizer.fingerprint:
        raise ContractError("these latents were made by another tokenizer", "Run the encode stage again.")
    shape = [config.tokenizer.latent_dim, config.grid, config.grid]
    if encode.details["latent_shape"] != shape:
        raise ContractError(f"these latents are {encode.details['latent_shape']}, not {shape}", "Run encode again.")
    if str(config.sit.level) not in encode.details["statistics"]:
        raise ContractError(f"these latents have no statistics of level {config.sit.level}", "Run encode again.")


class SitTrainee:
    """SiT with the alignment's head, its optimizer and the average (the teacher): a `training.Trainee`."""

    def __init__(self, config: Config, storage: Storage, inputs: dict[str, Manifest], world: World) -> None:
        own = self.config = config.sit
        self.seed, self.world, self.data = config.seed, world, config.data
        encode, tokenizer = inputs["encode"], inputs["train-tokenizer"]
        self.store = training_latents(storage, encode, config)
        self.plan = reading_plan(config, own.batch_size, config.encode.shard_rows, world.rank, world.size)
        self.latent_filter = LatentFilter(config.grid, **tokenizer.details["filter"]).to(world.device)
        self.statistics = LatentStatistics(**encode.details["statistics"][str(own.level)]).to(world.device)
        self.alignment = alignment_of(config)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(generator(self.seed, 0, "sit", torch.device("cpu")).initial_seed())
            self.model = AlignedSiT(SiT(**network_arguments(config)), self.alignment)
        self.model.to(world.device)
        self.ema = EMA(self.model.sit, own.ema_decay)
        if config.cluster.compile:
            compile_blocks(self.model)
        self.parallel = world.parallel(self.model)
        self.trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(
            self.trained,
            own.learning_rate,
            own.betas,
            weight_decay=own.weight_decay,
            fused=world.device.type == "cuda",
        )
        self.flops_per_step = self._flops(config)

    def _flops(self, config: Config) -> float:
        """Forward and backward of the student, and the teacher's blocks forward."""
        network = network_arguments(config)
        network = {name: network[name] for name in ("grid", "latent_dim", "width", "depth")}
        forward = sizes.sit_gflops(**network, attention=True)
        share = self.alignment.teacher_block / network["depth"] if self.alignment.kind != "none" else 0.0
        return 1e9 * config.sit.batch_size * forward * (3.0 + share)

    def states(self) -> dict[str, Any]:
        return {"model": self.model, "ema": self.ema, "optimizer": self.optimizer}

    def weights(self) -> dict[str, Tensor]:
        return self.ema.state_dict()

    def batches(self, start: int, stop: int) -> LatentLoader:
        return LatentLoader(self.store, self.plan, start_step=start, stop_step=stop)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.world.device.type, dtype=torch.bfloat16, enabled=self.config.precision == "bf16")

    def _draw(self, step: int, purpose: str, shape: tuple[int, ...], normal: bool = True) -> Tensor:
        """This rank's part of a global draw, standard normal or uniform in [0, 1)."""
        source = generator(self.seed, step, purpose, self.world.device)
        draw = torch.randn if normal else torch.rand
        whole = draw((self.config.batch_size, *shape), device=self.world.device, generator=source)
        return self.world.slice(whole)

    def _latents(self, batch: tuple[np.ndarray, np.ndarray, np.ndarray], step: int) -> Tensor:
        """Raw latents drawn from their posterior, (B, D, h, w) fp32."""
        mean, logvar = (torch.from_numpy(part).to(self.world.device).float() for part in batch[:2])
        return DiagonalGaussian(mean, logvar).sample(self._draw(step, "posterior", tuple(mean.shape[1:])))

    def step(self, batch: tuple[np.ndarray, np.ndarray, np.ndarray], step: int) -> dict[str, Tensor]:
        own = self.config
        low, high = self.alignment.draw_levels(generator(self.seed, step, "levels", torch.device("cpu")))
        z_BDhw = self._latents(batch, step)
        # One normalisation for both levels, that of sit.level: it commutes with S_l, so that the teacher sees the
        # student's latent with less of its high frequencies and nothing else changed.
        lo_BDhw = self.statistics.normalise(self.latent_filter(z_BDhw, low))
        hi_BDhw = self.statistics.normalise(self.latent_filter(z_BDhw, high))
        shape = tuple(z_BDhw.shape[1:])
        noise_BDhw = self._draw(step, "noise", shape)
        t_B = self._draw(step, "t", (), normal=False)
        label_B = torch.from_numpy(batch[2]).to(self.world.device)
        dropped = self._draw(step, "label_dropout", (), normal=False)
        label_B = drop_labels(label_B, dropped, own.label_dropout, self.data.class_count)
        with self._autocast():
            predicted_BDhw, projected_BNK = self.parallel(interpolate(lo_BDhw, noise_BDhw, t_B), t_B, label_B)
            diffusion_B = diffusion_loss_B(predicted_BDhw, target(lo_BDhw, noise_BDhw, own.prediction))
            loss_B = diffusion_B
            losses = {"diffusion": diffusion_B.detach().mean()}
            if projected_BNK is not None:
                uniform_B = self._draw(step, "teacher_t", (), normal=False)
                aligned_B = alignment_loss_B(
                    self.alignment,
                    self.ema.model,
                    projected_BNK,
                    lo_BDhw,
                    hi_BDhw,
                    noise_BDhw,
                    t_B,
                    label_B,
                    uniform_B,
                )
                loss_B = loss_B + aligned_B
                losses["alignment"] = aligned_B.detach().mean()
        losses.update(_by_time(diffusion_B, t_B))
        loss = loss_B.mean()
        losses["loss"] = loss.detach()
        torch.autograd.backward(loss)
        set_learning_rate(self.optimizer, learning_rate(step, own.steps, own.learning_rate, own.warmup, own.decay))
        if not clipped_step(self.optimizer, self.trained, own.clip):
            return {**losses, "loss": torch.full_like(losses["loss"], torch.nan)}
        self.ema.update(self.model.sit)
        return losses

    def rehearse(self, batch: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
        z_BDhw = self._latents(batch, 0)
        t_B = torch.full((z_BDhw.shape[0],), 0.5, device=self.world.device)
        label_B = torch.from_numpy(batch[2]).to(self.world.device)
        with self._autocast():
            predicted_BDhw, projected_BNK = self.parallel(z_BDhw, t_B, label_B)
        loss = predicted_BDhw.float().mean()
        if projected_BNK is not None:
            loss = loss + projected_BNK.float().mean()
        torch.autograd.backward(loss)
        self.optimizer.zero_grad(set_to_none=True)


def _by_time(loss_B: Tensor, t_B: Tensor) -> dict[str, Tensor]:
    """The diffusion loss in the four quarters of t, as (sum, count)."""
    sums, counts = t_bin_means(loss_B, t_B)
    return {f"diffusion_t{index}": torch.stack([sums[index], counts[index]]) for index in range(len(sums))}
