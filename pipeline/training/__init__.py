"""Training: the loop, its state and checkpoints, and what is trained; on Ray, or without it.

A stage calls `run_training`. Without Ray, `worker.train_as(World.alone(), job)` trains the same in this process. What
needs torch loads when it is used.
"""

from typing import TYPE_CHECKING

from pipeline.lazy import lazy
from pipeline.training.on_ray import run_training

if TYPE_CHECKING:
    from pipeline.training.sit import check_contract
else:
    __getattr__ = lazy(__name__, sit="check_contract")
