"""Building blocks of both trainees: keyed random generators, seeded networks, autocast, learning rate."""

import hashlib
import math
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import nn

from models.choices import Precision

Module = TypeVar("Module", bound=nn.Module)


def generator(seed: int, step: int, purpose: str, device: torch.device) -> torch.Generator:
    """The random generator for one purpose in one step, keyed by (seed, step, purpose)."""
    digest = hashlib.sha256(f"{seed}/{step}/{purpose}".encode()).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def seeded(build: Callable[[], Module], seed: int, purpose: str, device: torch.device) -> Module:
    """A module on the device, with the same initial weights on every rank and in every attempt."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(generator(seed, 0, purpose, torch.device("cpu")).initial_seed())
        module = build()
    return module.to(device)


def autocast(precision: Precision, device: torch.device) -> torch.autocast:
    """The autocast context of a forward pass; disabled for fp32."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")


def learning_rate(step: int, steps: int, peak: float, warmup: float, decay: str) -> float:
    """Linear from 0 to `peak` over the first `warmup` (a share) of the steps, then constant or a cosine to 0."""
    rising = warmup * steps
    if step + 1 < rising:
        return peak * (step + 1) / rising
    if decay == "constant":
        return peak
    done = (step - rising) / max(1.0, steps - rising)
    return peak * 0.5 * (1.0 + math.cos(math.pi * min(1.0, max(0.0, done))))


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate
