"""The trainee of the tokenizer (Eq. 2): networks, EMA, optimizers, draws, one step. The objective is in `models`.

Shapes: B batch, C channels, H W pixels, D latent channels, h w latent grid.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from models.compiling import compile_blocks
from models.discriminator import PatchDiscriminator
from models.ema import EMA
from models.metrics import from_uint8
from models.optimizer import adamw, clip_gradient, step_if
from models.perceptual import (
    CONVNEXT_WEIGHT,
    LPIPS,
    ConvNeXtLogits,
    EfficientNetDistance,
    PerceptualLoss,
)
from models.reconstruction import LossWeights, TokenizerDraws, TokenizerObjective, discriminator_loss
from models.regularizers import REGULARIZERS, RegularizerOptions
from models.schedule import learning_rate
from models.tokenizers import build
from pipeline.artifacts import Manifest
from pipeline.config import Config, WeightFile
from pipeline.data import ImageLoader
from pipeline.storage import Storage
from pipeline.training.accumulation import accumulate
from pipeline.training.compiling import compiles
from pipeline.training.examples import Mirrored, reading_plan, training_images
from pipeline.training.optimizer import (
    Module,
    autocast,
    generator,
    seeded,
    set_learning_rate,
)
from pipeline.training.prefetch import Tensors, on_device
from pipeline.training.restore import load_start
from pipeline.training.trainee import Batches
from pipeline.training.world import World
from pipeline.weights import fetch_weights
from pipeline.workflow import tokenizer_step_gflops

Images = tuple[Tensor, Tensor]
"""G_l(x), the discriminator's real images, and detached reconstructions, its fake ones: (B, C, H, W) each."""


class TokenizerTrainee:
    """Tokenizer, discriminator, their optimizers and the tokenizer's EMA. A `Trainee`."""

    def __init__(
        self,
        config: Config,
        storage: Storage,
        inputs: dict[str, Manifest],
        world: World,
        mirrored: Mirrored | None = None,
    ) -> None:
        own = self.config = config.tokenizer
        self.seed, self.world, self.data = config.tokenizer_seed, world, config.data
        self.loader_threads, self.parts = config.cluster.loader_threads, config.cluster.accumulate
        self.store = training_images(storage, inputs["prepare"], config, mirrored)
        self.plan = reading_plan(config, self.seed, own.batch_size, config.data.shard_rows, world)
        self.tokenizer = self._seeded(lambda: build(own.kind, config.tokenizer_network), "tokenizer")
        self.discriminator = self._seeded(
            lambda: PatchDiscriminator(3, own.discriminator_width, own.discriminator_layers), "discriminator"
        )
        self.ema = EMA(self.tokenizer, own.ema_decay)
        self.tokenizer.recomputes = config.cluster.checkpoint_activations
        if compiles(config.cluster, world.device):
            compile_blocks(self.tokenizer)
        self.parallel_tokenizer = world.parallel(self.tokenizer)
        self.parallel_discriminator = world.parallel(self.discriminator)
        self.objective = self._objective(config)
        self.optimizer = adamw(self.tokenizer, own.learning_rate, own.betas, own.weight_decay)
        self.discriminator_optimizer = adamw(
            self.discriminator, own.discriminator_learning_rate, own.betas, own.weight_decay
        )
        self.flops_per_step = 3e9 * own.batch_size * tokenizer_step_gflops(config, attention=True)

    def _seeded(self, build: Callable[[], Module], purpose: str) -> Module:
        return seeded(build, self.seed, purpose, self.world.device)

    def _objective(self, config: Config) -> TokenizerObjective:
        own = self.config
        options = RegularizerOptions(
            config.grid,
            mask=own.mask,
            keep=own.keep,
            per_sample=own.level_per_sample,
            probabilities=own.level_probabilities,
            smallest_side=config.smallest_side,
            smallest_perceptual_side=config.smallest_perceptual_side,
            spectrum_delta=own.spectrum_delta,
        )
        weights = LossWeights(
            mse=own.mse_weight,
            l1=own.l1_weight,
            perceptual=own.perceptual_weight,
            kl=own.kl_weight,
            adversarial=own.adversarial_weight,
            scale=own.scale_weight,
            spectrum=own.spectrum_weight,
        )
        regularizer = REGULARIZERS[own.regularizer](options).to(self.world.device)
        return TokenizerObjective(self.parallel_tokenizer, regularizer, weights, self._perceptual(), self.discriminator)

    def _perceptual(self) -> nn.Module | None:
        own = self.config
        if own.perceptual == "none":
            return None
        networks: tuple[tuple[WeightFile | None, Callable[[str], nn.Module], float], ...] = (
            (own.lpips, LPIPS, 1.0),
            (own.convnext, ConvNeXtLogits, CONVNEXT_WEIGHT),
            (own.efficientnet, EfficientNetDistance, 1.0),
        )
        used = [(build(str(fetch_weights(file))), weight) for file, build, weight in networks if file is not None]
        return PerceptualLoss(used).to(self.world.device)

    def states(self) -> dict[str, Any]:
        return {
            "tokenizer": self.tokenizer,
            "discriminator": self.discriminator,
            "ema": self.ema,
            "optimizer": self.optimizer,
            "discriminator_optimizer": self.discriminator_optimizer,
        }

    def start_from(self, weights: dict[float, dict[str, Tensor]], start: str) -> None:
        """The discriminator, which no artifact has, is new as well."""
        for network in (self.tokenizer, self.ema.model):
            load_start(network, weights[self.ema.decay], start)

    def weights(self) -> dict[float, dict[str, Tensor]]:
        return {self.ema.decay: self.ema.state_dict()}

    def batches(self, start: int, stop: int) -> Batches[Tensors]:
        loader = ImageLoader(
            self.store,
            self.plan,
            image_size=self.data.image_size,
            center_crop=self.data.center_crop,
            horizontal_flip=self.data.horizontal_flip,
            start_step=start,
            stop_step=stop,
            threads=self.loader_threads,
        )
        return on_device(loader, self.world.device)

    def draws(self, step: int) -> TokenizerDraws:
        """This rank's part of the random draws of a step."""
        own, device = self.config, self.world.device
        shape = (own.batch_size, *self.tokenizer.latent_shape)
        noise = torch.randn(shape, device=device, generator=generator(self.seed, step, "noise", device))
        source = generator(self.seed, step, "regularizer", torch.device("cpu"))
        rows = own.batch_size // self.world.size
        drawn = self.objective.regularizer.draw(source, own.batch_size)
        return TokenizerDraws(
            self.world.slice(noise), drawn.slice(self.world.rank * rows, (self.world.rank + 1) * rows)
        )

    def step(self, batch: Tensors, step: int) -> dict[str, Tensor]:
        """`batch`: images (B, 3, H, W) in uint8, and labels, which are not used."""
        own = self.config
        draws, shown = self.draws(step), list[Images]()

        def losses_of(rows: slice) -> dict[str, Tensor]:
            with autocast(own.precision, self.world.device):
                terms, target_BCHW, output_BCHW = self.objective(
                    from_uint8(batch[0][rows]),
                    draws.part(rows),
                    uses_discriminator=self._has_begun(own.adversarial_start, step),
                )
            shown.append((target_BCHW, output_BCHW.detach()))
            return {"loss" if name == "total" else name: term for name, term in terms.items()}

        losses = accumulate(self.parallel_tokenizer, len(batch[0]), self.parts, losses_of)
        made = clip_gradient(list(self.tokenizer.parameters()), own.clip)
        if self._has_begun(own.discriminator_start, step):
            losses["discriminator"] = self._discriminator_gradient(shown)
            made = made & clip_gradient(list(self.discriminator.parameters()), own.clip)
            self._set_rate(self.discriminator_optimizer, own.discriminator_learning_rate, step)
            step_if(made, self.discriminator_optimizer)
        self._set_rate(self.optimizer, own.learning_rate, step)
        step_if(made, self.optimizer)
        self.ema.update(self.tokenizer, made)
        losses["loss"] = torch.where(made, losses["loss"], torch.nan)
        return losses

    def _has_begun(self, start: float, step: int) -> bool:
        """Whether D is past this share of the steps; never where it has no weight."""
        return self.config.adversarial_weight > 0 and step >= start * self.config.steps

    def _set_rate(self, optimizer: torch.optim.Optimizer, peak: float, step: int) -> None:
        """Both networks follow one schedule, as DeTok's do."""
        own = self.config
        set_learning_rate(optimizer, learning_rate(step, own.steps, peak, own.warmup, own.decay))

    def _discriminator_gradient(self, shown: list[Images]) -> Tensor:
        """D's gradient on targets and reconstructions; returns its loss."""
        parts = iter(shown)

        def losses_of(_: slice) -> dict[str, Tensor]:
            with autocast(self.config.precision, self.world.device):
                return {"loss": discriminator_loss(self.parallel_discriminator, *next(parts))}

        rows = sum(len(target_BCHW) for target_BCHW, _ in shown)
        return accumulate(self.parallel_discriminator, rows, self.parts, losses_of)["loss"]

    def warm_up_ddp(self, batch: Tensors) -> None:
        x_BCHW = from_uint8(batch[0])
        with autocast(self.config.precision, self.world.device):
            output_BCHW, posterior = self.parallel_tokenizer(x_BCHW, self.draws(0).noise_BDhw, lambda z: z)
            logits = self.parallel_discriminator(torch.cat([x_BCHW, x_BCHW]))
        torch.autograd.backward(output_BCHW.float().mean() + posterior.kl().mean())
        torch.autograd.backward(logits.float().mean())
        self.optimizer.zero_grad(set_to_none=True)
        self.discriminator_optimizer.zero_grad(set_to_none=True)
