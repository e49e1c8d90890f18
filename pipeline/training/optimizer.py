"""Building blocks of both trainees: keyed random generators, seeded networks, autocast."""

import hashlib
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


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate
