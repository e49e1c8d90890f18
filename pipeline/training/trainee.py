"""What the loop trains: the face that every trainee has. Which stage has which is said in `worker.py`."""

from collections.abc import Iterator
from typing import Any, Protocol, TypeVar

from torch import Tensor

Batch = TypeVar("Batch", contravariant=True)
Made = TypeVar("Made", covariant=True)


class Batches(Protocol[Made]):
    """An iterator over a rank's batches."""

    waited: float  # seconds that the consumer has waited in all

    def __iter__(self) -> Iterator[Made]: ...
    def close(self) -> None: ...


class Trainee(Protocol[Batch]):
    """What the loop trains. Its `states` are everything that a step changes."""

    flops_per_step: float  # model FLOPs of one global batch, attention products included

    def states(self) -> dict[str, Any]:
        """Every object with `state_dict` and `load_state_dict` that a step changes, by name."""

    def batches(self, start: int, stop: int) -> Batches[Any]:
        """This rank's batches of steps start to stop - 1."""

    def step(self, batch: Batch, step: int) -> dict[str, Tensor]:
        """One optimizer step, counted from 0. This rank's losses, "loss" among them, detached: scalars that are
        means over the batch, or pairs (sum, count) where not every sample counts.

        A non-finite gradient must leave every state as it was and show as a non-finite "loss".
        """

    def warm_up_ddp(self, batch: Batch) -> None:
        """One forward and backward through everything that is wrapped in DDP, thrown away."""

    def weights(self) -> dict[str, Tensor]:
        """What the artifact holds, by parameter name, in fp32."""
