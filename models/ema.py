"""The exponential moving average (EMA) of a model's weights, which is used for evaluation, encoding and sampling.

The trainer updates and stores it.
"""

import copy
from collections.abc import Mapping
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

Model = TypeVar("Model", bound=nn.Module)


class EMA(Generic[Model]):
    """average <- decay * average + (1 - decay) * weight after each step, in fp32.

    Args:
        model: a module not wrapped by DDP; its current weights initialise the average.
        decay: in [0, 1).

    Raises:
        ValueError: the decay is outside [0, 1).
    """

    model: Model
    """A deep copy in eval mode and without gradients, fp32, on the device of the original."""

    def __init__(self, model: Model, decay: float) -> None:
        if not 0.0 <= decay < 1.0:
            raise ValueError(f"decay must lie in [0, 1), not {decay}")
        self.decay = decay
        self.model = copy.deepcopy(model).float().eval()
        self.model.requires_grad_(False)

    @torch.no_grad()
    def update(self, model: nn.Module, made: Tensor) -> None:
        """Move the average towards the weights of `model`; buffers are copied.

        `made`: whether the step was made, a bool scalar on the weights' device. The average stays if it was not.
        """
        averages: list[Tensor] = list(self.model.parameters())
        weights = [weight.detach().float() for weight in model.parameters()]
        share = made.float() * (1.0 - self.decay)
        torch._foreach_lerp_(averages, weights, [share] * len(weights))
        for average, buffer in zip(self.model.buffers(), model.buffers(), strict=True):
            average.copy_(buffer)

    def state_dict(self) -> dict[str, Tensor]:
        """The averaged model's own state dict, by reference."""
        return self.model.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load a state from `state_dict`; RuntimeError if keys or shapes differ."""
        self.model.load_state_dict(state)
