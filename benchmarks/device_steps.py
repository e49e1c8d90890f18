"""Training steps of both networks for `benchmarks/device.py`, on random data: `models` and torch, nothing else.

They compute what the trainers' steps compute, with the same functions of `models`. All draws are made on the device.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.vgg import RandomLPIPS
from models.alignment import ALIGNMENTS, AlignedSiT
from models.choices import AlignmentKind
from models.compiling import compile_blocks
from models.discriminator import PatchDiscriminator
from models.ema import EMA
from models.generator import LatentStatistics
from models.objective import SitBatch, SitDraws, SitObjective
from models.optimizer import adamw, clip_gradient, step_if
from models.paths import PATHS
from models.perceptual import PerceptualLoss
from models.reconstruction import LossWeights, TokenizerDraws, TokenizerObjective, discriminator_loss
from models.regularizers import SpectralRegularizer
from models.sit import SIT_SIZES, SiT
from models.sizes import sit_gflops, tokenizer_gflops
from models.spectral import LatentFilter
from models.tokenizers import DiagonalGaussian, Tokenizer


@dataclass(frozen=True)
class Sizes:
    """Of the networks and batches."""

    tokenizer: dict[str, int]
    sit: dict[str, Any]
    blocks: tuple[int, int]  # that FDA and SRA align
    tokenizer_batch: int
    sit_batch: int
    encode_batch: int
    discriminator: tuple[int, int]  # width, layers
    vgg: int  # width


def _sit(size: str, grid: int, latent_dim: int) -> dict[str, Any]:
    width, depth, heads = SIT_SIZES[size]
    return {
        "grid": grid,
        "latent_dim": latent_dim,
        "classes": 1000,
        "width": width,
        "depth": depth,
        "heads": heads,
    }


FULL = Sizes(  # the paper's f16d32 at 256 pixels
    tokenizer={
        "image_size": 256, "patch_size": 16, "latent_dim": 32, "width": 768, "depth": 12, "heads": 12, "hidden": 2048,
    },
    sit=_sit("XL", 16, 32),
    blocks=(8, 20),
    tokenizer_batch=64,
    sit_batch=64,
    encode_batch=256,
    discriminator=(64, 3),
    vgg=64,
)  # fmt: skip
TINY = Sizes(
    tokenizer={
        "image_size": 32, "patch_size": 4, "latent_dim": 4, "width": 16, "depth": 1, "heads": 2, "hidden": 24,
    },
    sit={"grid": 8, "latent_dim": 4, "classes": 10, "width": 16, "depth": 2, "heads": 2},
    blocks=(1, 2),
    tokenizer_batch=4,
    sit_batch=4,
    encode_batch=4,
    discriminator=(8, 2),
    vgg=2,
)  # fmt: skip


class Step(ABC):
    """One network's training. `step` is made with the draws of its number, so that it can be made again."""

    batch: int
    flops: float  # of the network's products in a step; those of D, LPIPS and VGG are not among them
    networks: dict[str, Any]  # everything that a step changes

    def __init__(self, device: torch.device) -> None:
        self.device = device

    @abstractmethod
    def __call__(self, number: int) -> Tensor: ...

    @abstractmethod
    def compile(self) -> None: ...

    def source(self, number: int) -> torch.Generator:
        return torch.Generator(self.device).manual_seed(number)

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda")

    def state(self) -> dict[str, Any]:
        """A copy of all states, on the CPU."""
        return {name: _copied(part.state_dict()) for name, part in self.networks.items()}

    def load(self, state: dict[str, Any]) -> None:
        for name, part in self.networks.items():
            part.load_state_dict(state[name])


def _copied(state: Any) -> Any:
    if isinstance(state, Tensor):
        return state.detach().to("cpu", copy=True)
    if isinstance(state, dict):
        return {key: _copied(value) for key, value in state.items()}
    return [_copied(value) for value in state] if isinstance(state, (list, tuple)) else state


class SitStep(Step):
    """SiT with velocity prediction and one kind of alignment."""

    def __init__(self, sizes: Sizes, device: torch.device, kind: AlignmentKind) -> None:
        super().__init__(device)
        torch.manual_seed(0)
        self.batch, own = sizes.sit_batch, sizes.sit
        alignment = ALIGNMENTS[kind](*sizes.blocks)
        self.shape = (self.batch, own["latent_dim"], own["grid"], own["grid"])
        self.model = AlignedSiT(SiT(**own), alignment).to(device)
        self.ema = EMA(self.model.sit, 0.9999)
        self.classes = own["classes"]
        ones = [1.0] * own["latent_dim"]
        self.objective = SitObjective(
            self.model,
            self.ema.model,
            alignment,
            LatentFilter(own["grid"]).to(device),
            LatentStatistics([0.0] * own["latent_dim"], ones).to(device),
            path=PATHS["linear"],
            times="uniform",
            prediction="velocity",
            label_dropout=0.1,
            null_label=self.classes,
        )
        self.parameters = list(self.model.parameters())
        self.optimizer = adamw(self.model, 1e-4, (0.9, 0.999), 0.0)
        self.networks = {"model": self.model, "ema": self.ema, "optimizer": self.optimizer}
        teacher = alignment.teacher_block / own["depth"] if alignment.aligns else 0.0
        self.flops = (3.0 + teacher) * 1e9 * self.batch * sit_gflops(**own, attention=True)

    def compile(self) -> None:
        compile_blocks(self.model)
        compile_blocks(self.ema.model)

    def __call__(self, number: int) -> Tensor:
        source = self.source(number)

        def normal() -> Tensor:
            return torch.randn(self.shape, device=self.device, generator=source)

        def uniform() -> Tensor:
            return torch.rand(self.batch, device=self.device, generator=source)

        labels = torch.randint(self.classes, (self.batch,), device=self.device, generator=source)
        batch = SitBatch(DiagonalGaussian(normal(), normal() - 4), labels)
        draws = SitDraws(
            self.objective.alignment.draw_levels(torch.Generator().manual_seed(number)),
            normal(), normal(), uniform(), uniform(), uniform(),
        )  # fmt: skip
        with self.autocast():
            loss = self.objective(batch, draws)["loss"]
        torch.autograd.backward(loss)
        made = clip_gradient(self.parameters, 1.0)
        step_if(made, self.optimizer)
        self.ema.update(self.model.sit, made)
        return loss.detach()


class TokenizerStep(Step):
    """The tokenizer with MLSR, LPIPS and D at work."""

    def __init__(self, sizes: Sizes, device: torch.device) -> None:
        super().__init__(device)
        torch.manual_seed(0)
        self.batch, own = sizes.tokenizer_batch, sizes.tokenizer
        self.side = own["image_size"]
        self.tokenizer = Tokenizer(**own).to(device)
        self.discriminator = PatchDiscriminator(3, *sizes.discriminator).to(device)
        self.ema = EMA(self.tokenizer, 0.999)
        perceptual = PerceptualLoss([(RandomLPIPS(sizes.vgg), 1.0)]).to(device)
        regularizer = SpectralRegularizer(self.tokenizer.grid).to(device)
        self.objective = TokenizerObjective(self.tokenizer, regularizer, LossWeights(), perceptual, self.discriminator)
        self.parameters, self.of_discriminator = (
            list(module.parameters()) for module in (self.tokenizer, self.discriminator)
        )
        self.optimizer = adamw(self.tokenizer, 1e-4, (0.9, 0.95), 1e-4)
        self.discriminator_optimizer = adamw(self.discriminator, 1e-4, (0.9, 0.95), 1e-4)
        self.networks = {
            "tokenizer": self.tokenizer,
            "discriminator": self.discriminator,
            "ema": self.ema,
            "optimizer": self.optimizer,
            "discriminator_optimizer": self.discriminator_optimizer,
        }
        self.flops = 3e9 * self.batch * tokenizer_gflops(**own, attention=True)

    def compile(self) -> None:
        compile_blocks(self.tokenizer)

    def images(self, source: torch.Generator) -> Tensor:
        """Smooth random images in [-1, 1]."""
        side = self.side
        coarse = torch.rand(self.batch, 3, side // 4, side // 4, device=self.device, generator=source)
        return coarse.repeat_interleave(4, 2).repeat_interleave(4, 3) * 2 - 1

    def __call__(self, number: int) -> Tensor:
        source = self.source(number)
        x_BCHW = self.images(source)
        noise = torch.randn(self.batch, *self.tokenizer.latent_shape, device=self.device, generator=source)
        draw = self.objective.regularizer.draw(torch.Generator().manual_seed(number), self.batch)
        with self.autocast():
            terms, target_BCHW, output_BCHW = self.objective(
                x_BCHW, TokenizerDraws(noise, draw), uses_discriminator=True
            )
        torch.autograd.backward(terms["total"])
        made = clip_gradient(self.parameters, 3.0)
        with self.autocast():
            loss = discriminator_loss(self.discriminator, target_BCHW, output_BCHW.detach())
        torch.autograd.backward(loss)
        made = made & clip_gradient(self.of_discriminator, 3.0)
        step_if(made, self.discriminator_optimizer)
        step_if(made, self.optimizer)
        self.ema.update(self.tokenizer, made)
        return terms["total"].detach()


STEPS: dict[str, Callable[[Sizes, torch.device], Step]] = {
    "sit-none": lambda sizes, device: SitStep(sizes, device, "none"),
    "sit-sra": lambda sizes, device: SitStep(sizes, device, "sra"),
    "sit-fda": lambda sizes, device: SitStep(sizes, device, "fda"),
    "tokenizer": TokenizerStep,
}
