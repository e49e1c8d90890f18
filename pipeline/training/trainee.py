"""The interface between the loop and a trainee. `worker.py` maps stages to trainees."""

from collections.abc import Iterator
from typing import Any, Protocol, TypeVar

from torch import Tensor

Batch = TypeVar("Batch", contravariant=True)
Item = TypeVar("Item", covariant=True)


class Batches(Protocol[Item]):
    """An iterator over a rank's batches."""

    @property
    def waited(self) -> float:
        """Total seconds that the consumer has waited."""

    def __iter__(self) -> Iterator[Item]: ...
    def close(self) -> None: ...


class Trainee(Protocol[Batch]):
    """The networks, optimizers and data that the loop trains. A step changes nothing outside its `states`."""

    flops_per_step: float  # model FLOPs of one global batch, attention products included

    def states(self) -> dict[str, Any]:
        """Every object with `state_dict` and `load_state_dict` that a step changes, by name."""

    def batches(self, start: int, stop: int) -> Batches[Any]:
        """This rank's batches of steps start to stop - 1."""

    def step(self, batch: Batch, step: int) -> dict[str, Tensor]:
        """One optimizer step; `step` counts from 0. Returns this rank's detached losses, including "loss": scalars that
        are means over the batch, or pairs (sum, count) if not every sample counts.

        A non-finite gradient must leave every state unchanged and result in a non-finite "loss". Nothing here may wait
        for the device, as `.item()` or a copy from unpinned memory would.
        """

    def warm_up_ddp(self, batch: Batch) -> None:
        """One forward and backward pass through every module wrapped in DDP; its gradients are discarded."""

    def start_from(self, weights: dict[float, dict[str, Tensor]], start: str) -> None:
        """Begin every average with the weights of its decay, which are of the artifact `start`, and the trained network
        with those of the first average; optimizers are new. ContractError if they are of another network.
        """

    def weights(self) -> dict[float, dict[str, Tensor]]:
        """The averages for the artifact by decay, the first one first: weights by parameter name, in fp32."""
