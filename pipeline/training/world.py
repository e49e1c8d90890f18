"""A training worker's rank, the number of workers, and their collective operations."""

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


@dataclass(frozen=True)
class World:
    """This process as one of the training workers."""

    rank: int
    size: int
    device: torch.device
    node: int = 0  # index of this worker's node
    local_rank: int = 0  # among the workers of its node

    @classmethod
    def alone(cls, device: str = "cpu") -> "World":
        """A world of one worker, without Ray."""
        return cls(0, 1, torch.device(device))

    def mean(self, values: Tensor) -> Tensor:
        """The mean over all ranks, in place; `values` unchanged for a single rank."""
        if self.size > 1:
            dist.all_reduce(values)
            values /= self.size
        return values

    def shared(self, value: Any) -> Any:
        """Rank 0's value, on every rank."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, device=self.device)
        return box[0]

    def gathered(self, value: Any) -> list[Any]:
        """Every rank's value, in the order of the ranks, on every rank."""
        values: list[Any] = [value] * self.size
        if self.size > 1:
            # NCCL gathers on the current GPU.
            with torch.cuda.device(self.device) if self.device.type == "cuda" else nullcontext():
                dist.all_gather_object(values, value)
        return values

    def slice(self, batch_B: Tensor) -> Tensor:
        """This rank's rows of a tensor for the global batch."""
        rows = batch_B.shape[0] // self.size
        return batch_B[self.rank * rows : (self.rank + 1) * rows]

    def parallel(self, module: nn.Module) -> nn.Module:
        """The module in DistributedDataParallel; the module itself for a single rank."""
        if self.size == 1:
            return module
        ids = [self.device] if self.device.type == "cuda" else None
        return nn.parallel.DistributedDataParallel(module, device_ids=ids, broadcast_buffers=False)
