"""Activation checkpointing: a block's activations are computed again in the backward pass instead of being kept."""

from typing import cast

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def run_block(block: nn.Module, *inputs: Tensor, recomputes: bool) -> Tensor:
    """`block(*inputs)`, in which nothing is random; if `recomputes`, backward keeps only the inputs."""
    if recomputes:
        return cast("Tensor", checkpoint(block, *inputs, use_reentrant=False, preserve_rng_state=False))
    return cast("Tensor", block(*inputs))
