"""Training: the loop, checkpoints and the two trainers, on Ray Train or in a single process.

A stage calls `run_training`. Without Ray, `worker.train_as(World.alone(), job)` runs the same training in this process.
Modules that need torch are imported on use.
"""

from typing import TYPE_CHECKING

from pipeline.lazy import lazy
from pipeline.training.on_ray import run_training

if TYPE_CHECKING:
    from pipeline.training.sit import check_contract
else:
    __getattr__ = lazy(__name__, sit="check_contract")
