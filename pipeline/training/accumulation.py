"""Gradient accumulation: a rank's batch in equal parts, a forward and a backward pass of each, then one step.

The gradient is that of the whole batch up to the order of float sums; memory is that of a part.
"""

from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch import Tensor, nn


def accumulate(
    network: nn.Module, rows: int, count: int, losses_of: Callable[[slice], dict[str, Tensor]]
) -> dict[str, Tensor]:
    """Add up the gradients of a batch's mean loss, part by part; DDP exchanges them in the last one only.

    Args:
        network: what gets the gradients, possibly wrapped in DDP.
        rows: of this rank's batch, a multiple of `count`.
        count: parts.
        losses_of: the losses of some rows, among them "loss", to differentiate; under the caller's autocast.

    Returns:
        The losses of the whole batch, detached: means of scalars, sums of pairs (sum, count).
    """
    size, found = rows // count, list[dict[str, Tensor]]()
    for start in range(0, rows, size):
        waits = isinstance(network, nn.parallel.DistributedDataParallel) and start + size < rows
        with network.no_sync() if waits else nullcontext():  # type: ignore[operator]
            losses = losses_of(slice(start, start + size))
            torch.autograd.backward(losses["loss"] / count)
        found.append({name: value.detach() for name, value in losses.items()})
    stacked = {name: torch.stack([losses[name] for losses in found]) for name in found[0]}
    return {name: values.sum(0) if values.ndim > 1 else values.mean() for name, values in stacked.items()}
