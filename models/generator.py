"""Generates images from labels: SiT, the statistics that normalise its latents, and the tokenizer's decoder.

Used by both the pipeline's samples and the registered model, so that the same seed gives the same image. The caller
loads the networks.
Shapes: B batch, D latent channels, h w latent grid, C channels, H W pixels.
"""

from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .choices import PathKind, Precision, Prediction, SamplerMethod
from .metrics import to_uint8
from .paths import PATHS, to_velocity
from .sampler import SAMPLERS, image_noise, sample
from .sit import SiT
from .tokenizers import Autoencoder


class LatentStatistics(nn.Module):
    """The per-channel normalisation of latents at one level, on which a generator is trained, and its exact inverse.

    Args:
        mean, std: one number per channel, of latents at that level (filtering lowers the std).

    Raises:
        ValueError: the two differ in length, or a std is not positive.
    """

    mean_D: Tensor
    """fp32, not in the state dict."""
    std_D: Tensor
    """fp32, not in the state dict."""

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        if len(mean) != len(std):
            raise ValueError(f"{len(mean)} means and {len(std)} standard deviations differ in length")
        if not all(value > 0.0 for value in std):
            raise ValueError(f"standard deviations must be positive, not {list(std)}")
        self.register_buffer("mean_D", torch.tensor(list(mean), dtype=torch.float32), persistent=False)
        self.register_buffer("std_D", torch.tensor(list(std), dtype=torch.float32), persistent=False)

    def normalise(self, z_BDhw: Tensor) -> Tensor:
        """Raw latents to mean 0 and std 1 per channel, fp32."""
        return (z_BDhw.float() - self.mean_D[:, None, None]) / self.std_D[:, None, None]

    def denormalise(self, z_BDhw: Tensor) -> Tensor:
        """The inverse of `normalise`, fp32."""
        return z_BDhw.float() * self.std_D[:, None, None] + self.mean_D[:, None, None]


@dataclass(frozen=True)
class Sampling:
    """How images are sampled.

    Raises:
        ValueError: unknown method.
    """

    method: SamplerMethod
    steps: int
    """As in `sampler.sample`."""
    guidance: float = 1.0
    """Scale of classifier-free guidance."""
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    """Interval of times t with guidance."""
    last_step: float = 0.04
    tolerances: tuple[float, float] = (1e-6, 1e-3)
    """The last two as in `sampler.sample`."""
    seed: int = 0
    precision: Precision = "fp32"
    """Autocast of networks and decoder, on every device."""

    def __post_init__(self) -> None:
        if self.method not in SAMPLERS:
            raise ValueError(f"unknown method '{self.method}'; use one of {', '.join(SAMPLERS)}")


class ImageGenerator(nn.Module):
    """Generates images of given classes, each from its own noise.

    Args:
        tokenizer: a module that decodes latents; moved and put in eval mode together with this module, as is `sit`.
        sit: predicts for normalised latents.
        statistics: of the normalisation of those latents.
        prediction: what `sit` was trained to predict.
        path: on which it was trained.
    """

    def __init__(
        self,
        tokenizer: Autoencoder,
        sit: SiT,
        statistics: LatentStatistics,
        prediction: Prediction,
        path: PathKind = "linear",
    ) -> None:
        super().__init__()
        self.tokenizer, self.sit, self.statistics = tokenizer, sit, statistics
        self.prediction: Prediction = prediction
        self.path = PATHS[path]

    @torch.no_grad()
    def draw(self, label_B: Tensor, indices: Sequence[int], sampling: Sampling) -> Tensor:
        """Sample latents and decode them. An image depends on its label, seed and index, not on its batch.

        Args:
            label_B: (B,) long on any device, from 0 to classes - 1.
            indices: image i starts from `image_noise(sampling.seed, indices[i])`; not negative.
            sampling: method, steps, guidance, seed and precision.

        Returns:
            x_BCHW, uint8 in [0, 255], on this module's device.

        Raises:
            ValueError: a label out of range, not one index per label, or too few steps for the method.
        """
        self._check(label_B, indices)
        device, shape = self.statistics.mean_D.device, self.tokenizer.latent_shape

        def noise(stream: int) -> Tensor:
            return image_noise(sampling.seed, indices, shape, "cpu", stream)

        ahead = drawn_ahead(noise, range(1, sampling.steps))
        with torch.autocast(device.type, torch.bfloat16, enabled=sampling.precision == "bf16"):
            z_BDhw = sample(
                self._velocity,
                noise(0).to(device),
                label_B.to(device),
                null_label=self.sit.null_label,
                method=sampling.method,
                steps=sampling.steps,
                path=self.path,
                guidance_scale=sampling.guidance,
                guidance_interval=sampling.guidance_interval,
                step_noise=lambda _: next(ahead),
                last_step=sampling.last_step,
                tolerances=sampling.tolerances,
            )
            return to_uint8(self.tokenizer.decode(self.statistics.denormalise(z_BDhw)))

    def _check(self, label_B: Tensor, indices: Sequence[int]) -> None:
        if label_B.shape != (len(indices),):
            raise ValueError(f"{len(indices)} indices given for labels of shape {tuple(label_B.shape)}")
        classes = self.sit.null_label
        if bool(((label_B < 0) | (label_B >= classes)).any()):
            raise ValueError(f"labels must be from 0 to {classes - 1}, not {label_B.tolist()}")

    def _velocity(self, z_BDhw: Tensor, t_B: Tensor, label_B: Tensor) -> Tensor:
        predicted_BDhw: Tensor = self.sit(z_BDhw, t_B, label_B)
        return to_velocity(self.path, predicted_BDhw, z_BDhw, t_B, self.prediction)


def drawn_ahead(draw: Callable[[int], Tensor], streams: range) -> Generator[Tensor, None, None]:
    """`draw(stream)` of each stream in turn; the next one is drawn in a thread while the device is at work."""
    with ThreadPoolExecutor(1) as thread:
        coming = thread.submit(draw, streams[0])
        for stream in streams[1:]:
            drawn, coming = coming.result(), thread.submit(draw, stream)
            yield drawn
        yield coming.result()
