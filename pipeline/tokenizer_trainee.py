"""One step of the tokenizer (Eq. 2): reconstruction through S_l against G_l(x), KL, perceptual, and PatchGAN.

Called by the loop of `training.py`; the objective's terms are `models.reconstruction`'s.
Shapes: B batch, C channels, H W pixels, D latent channels, h w latent grid.
"""

from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from models import sizes
from models.discriminator import PatchDiscriminator, discriminator_hinge
from models.ema import EMA
from models.metrics import from_uint8
from models.perceptual import LPIPS, ConvNeXtLogits, PerceptualLoss
from models.reconstruction import LossWeights, make_regularizer, reconstruction_terms
from models.tokenizer import Tokenizer
from pipeline.artifacts import Manifest
from pipeline.config import Config
from pipeline.data.loader import ImageLoader
from pipeline.mirroring import reading_plan, training_images
from pipeline.networks import fetch_weights
from pipeline.storage import Storage
from pipeline.training import World, clipped_step, generator, learning_rate, set_learning_rate


def network_arguments(config: Config) -> dict[str, Any]:
    """The arguments of `Tokenizer`, as they go into the manifest."""
    own = config.tokenizer
    return {
        "image_size": config.data.image_size,
        "patch_size": own.patch_size,
        "latent_dim": own.latent_dim,
        "width": own.width,
        "depth": own.depth,
        "heads": own.heads,
        "hidden": own.hidden,
    }


class TokenizerTrainee:
    """Tokenizer, discriminator, their optimizers and the average: a `training.Trainee`."""

    def __init__(self, config: Config, storage: Storage, inputs: dict[str, Manifest], world: World) -> None:
        own = self.config = config.tokenizer
        self.seed, self.world, self.data = config.seed, world, config.data
        self.loader_threads = config.cluster.loader_threads
        self.store = training_images(storage, inputs["prepare"], config)
        self.plan = reading_plan(config, own.batch_size, config.data.shard_rows, world.rank, world.size)
        self.tokenizer = self._built(lambda: Tokenizer(**network_arguments(config)), "tokenizer")
        self.discriminator = self._built(
            lambda: PatchDiscriminator(3, own.discriminator_width, own.discriminator_layers), "discriminator"
        )
        self.regularizer = make_regularizer(
            own.regularizer,
            config.grid,
            mask=own.mask,
            keep=own.keep,
            per_sample=own.level_per_sample,
            smallest_side=-(-self.discriminator.smallest_image // own.patch_size),
        ).to(world.device)
        self.perceptual = self._perceptual()
        self.weights_of_terms = LossWeights(
            perceptual=own.perceptual_weight, kl=own.kl_weight, adversarial=own.adversarial_weight
        )
        self.ema = EMA(self.tokenizer, own.ema_decay)
        if config.cluster.compile:
            compile_blocks(self.tokenizer)
        self.parallel_tokenizer = world.parallel(self.tokenizer)
        self.parallel_discriminator = world.parallel(self.discriminator)
        fused = world.device.type == "cuda"
        self.optimizer = torch.optim.AdamW(
            self.tokenizer.parameters(), own.learning_rate, own.betas, weight_decay=own.weight_decay, fused=fused
        )
        self.discriminator_optimizer = torch.optim.AdamW(
            self.discriminator.parameters(),
            own.discriminator_learning_rate,
            own.betas,
            weight_decay=own.weight_decay,
            fused=fused,
        )
        network = network_arguments(config)
        network.pop("heads")
        self.flops_per_step = 3e9 * own.batch_size * sizes.tokenizer_gflops(**network, attention=True)

    def _built(self, build: Any, purpose: str) -> Any:
        """A module with the same initial weights on every rank and in every attempt."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(generator(self.seed, 0, purpose, torch.device("cpu")).initial_seed())
            module: nn.Module = build()
        return module.to(self.world.device)

    def _perceptual(self) -> nn.Module | None:
        lpips = LPIPS(str(fetch_weights(self.config.lpips))) if self.config.lpips else None
        convnext = ConvNeXtLogits(str(fetch_weights(self.config.convnext))) if self.config.convnext else None
        if lpips is None and convnext is None:
            return None
        return PerceptualLoss(lpips, convnext).to(self.world.device)

    def states(self) -> dict[str, Any]:
        return {
            "tokenizer": self.tokenizer,
            "discriminator": self.discriminator,
            "ema": self.ema,
            "optimizer": self.optimizer,
            "discriminator_optimizer": self.discriminator_optimizer,
        }

    def weights(self) -> dict[str, Tensor]:
        return self.ema.state_dict()

    def batches(self, start: int, stop: int) -> ImageLoader:
        return ImageLoader(
            self.store,
            self.plan,
            image_size=self.data.image_size,
            center_crop=self.data.center_crop,
            horizontal_flip=self.data.horizontal_flip,
            start_step=start,
            stop_step=stop,
            threads=self.loader_threads,
        )

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.world.device.type, dtype=torch.bfloat16, enabled=self.config.precision == "bf16")

    def _images(self, batch: tuple[np.ndarray, np.ndarray]) -> Tensor:
        """This rank's images, (B, 3, H, W) fp32 in [-1, 1]."""
        return from_uint8(torch.from_numpy(batch[0]).to(self.world.device, non_blocking=True))

    def _noise(self, step: int) -> Tensor:
        """This rank's part of the posterior's noise, (B, D, h, w)."""
        shape = (self.config.batch_size, *self.tokenizer.latent_shape)
        device = self.world.device
        return self.world.slice(
            torch.randn(shape, device=device, generator=generator(self.seed, step, "noise", device))
        )

    def step(self, batch: tuple[np.ndarray, np.ndarray], step: int) -> dict[str, Tensor]:
        own = self.config
        x_BCHW = self._images(batch)
        rows = own.batch_size // self.world.size
        draw = self.regularizer.draw(generator(self.seed, step, "regularizer", torch.device("cpu")), own.batch_size)
        draw = draw.slice(self.world.rank * rows, (self.world.rank + 1) * rows)
        target_BCHW = self.regularizer.image(x_BCHW, draw)
        judged = step >= own.discriminator_start * own.steps
        opposed = step >= own.adversarial_start * own.steps
        with self._autocast():
            reconstruction_BCHW, posterior = self.parallel_tokenizer(
                x_BCHW, self._noise(step), partial(self.regularizer.latent, draw=draw)
            )
            self.discriminator.requires_grad_(False)
            terms = reconstruction_terms(
                reconstruction_BCHW,
                target_BCHW,
                posterior,
                weights=self.weights_of_terms,
                perceptual=self.perceptual,
                fake_logits=self.discriminator(reconstruction_BCHW) if opposed else None,
            )
            self.discriminator.requires_grad_(True)
        losses = {name: term.detach() for name, term in terms.items() if name != "total"}
        losses["loss"] = terms["total"].detach()
        torch.autograd.backward(terms["total"])
        set_learning_rate(self.optimizer, learning_rate(step, own.steps, own.learning_rate, own.warmup, "cosine"))
        if not clipped_step(self.optimizer, list(self.tokenizer.parameters()), own.clip):
            return {**losses, "loss": torch.full_like(losses["loss"], torch.nan)}
        self.ema.update(self.tokenizer)
        if judged:
            losses["discriminator"] = self._discriminate(target_BCHW, reconstruction_BCHW.detach())
        return losses

    def _discriminate(self, real_BCHW: Tensor, fake_BCHW: Tensor) -> Tensor:
        """One step of D; the real image is G_l(x). A gradient that is not finite leaves it as it was."""
        with self._autocast():
            logits = self.parallel_discriminator(torch.cat([real_BCHW, fake_BCHW]))
        real_logits, fake_logits = logits.float().chunk(2)
        loss = discriminator_hinge(real_logits, fake_logits)
        torch.autograd.backward(loss)
        clipped_step(self.discriminator_optimizer, list(self.discriminator.parameters()), self.config.clip)
        return loss.detach()

    def rehearse(self, batch: tuple[np.ndarray, np.ndarray]) -> None:
        x_BCHW = self._images(batch)
        with self._autocast():
            reconstruction_BCHW, posterior = self.parallel_tokenizer(x_BCHW, self._noise(0), lambda z: z)
            logits = self.parallel_discriminator(torch.cat([x_BCHW, x_BCHW]))
        torch.autograd.backward(reconstruction_BCHW.float().mean() + posterior.kl().mean())
        torch.autograd.backward(logits.float().mean())
        self.optimizer.zero_grad(set_to_none=True)
        self.discriminator_optimizer.zero_grad(set_to_none=True)


def compile_blocks(network: nn.Module) -> None:
    """torch.compile each transformer block by itself: one small graph, compiled once for all of them."""
    for module in network.modules():
        if type(module).__name__ == "Block":
            module.compile()
