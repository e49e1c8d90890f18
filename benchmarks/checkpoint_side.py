"""One side of `benchmarks.checkpoint`, as a process of its own: saves or restores a state with the code on PYTHONPATH.

Usage: python checkpoint_side.py save|load URI BYTES. It prints a line of JSON before and after each measured part, and
waits for a line after each, so that the parent can watch its memory in between.
"""

import inspect
import json
import sys
import time
from typing import Any

import torch
from torch import nn

from models.ema import EMA
from pipeline.storage.uri import open_storage
from pipeline.training.checkpoint import Checkpoints
from pipeline.training.history import History
from pipeline.training.loop import _full_state, _restore
from pipeline.training.world import World

_WIDTH = 2048  # a matrix of 16 MiB, as in SiT-XL's blocks (1152 x 4608: 21 MB)
_COPIES = 4  # model, EMA, and AdamW's two moments


class Trainee:
    """A model of matrices whose whole state has about so many bytes."""

    def __init__(self, state_bytes: int) -> None:
        width = min(_WIDTH, max(8, int((state_bytes / _COPIES / 4) ** 0.5)))
        count = max(1, round(state_bytes / _COPIES / 4 / width**2))
        self.model = nn.ParameterList(torch.randn(width, width) for _ in range(count))
        self.ema = EMA(self.model, 0.999)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), 1e-3)
        self.parameter_bytes = count * width**2 * 4

    def step(self) -> None:
        """Fill AdamW's moments."""
        for parameter in self.model:
            parameter.grad = torch.randn_like(parameter)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def states(self) -> dict[str, Any]:
        return {"model": self.model, "ema": self.ema, "optimizer": self.optimizer}


def history() -> History:
    """An empty one; that of earlier commits has no device."""
    return History(*([torch.device("cpu")] if inspect.signature(History).parameters else []))


def say(**values: float) -> None:
    print(json.dumps(values), flush=True)
    sys.stdin.readline()


def save(trainee: Trainee, checkpoints: Checkpoints) -> None:
    """Twice: the first time, memory for the copy is allocated."""
    trainee.step()
    for step in (1, 2):
        say()
        begin = time.perf_counter()
        checkpoints.save(step, _full_state(trainee, history(), step))  # type: ignore[arg-type]
        blocked = time.perf_counter() - begin
        checkpoints.wait()
        say(blocked=blocked, whole=time.perf_counter() - begin, state_bytes=_COPIES * trainee.parameter_bytes)


def load(trainee: Trainee, checkpoints: Checkpoints) -> None:
    """`kept_bytes`: AdamW's moments, which do not exist before a training is restored."""
    say()
    begin = time.perf_counter()
    step = _restore(trainee, history(), checkpoints, World.alone())  # type: ignore[arg-type]
    seconds = time.perf_counter() - begin
    assert step == 2
    say(
        whole=seconds, state_bytes=_COPIES * trainee.parameter_bytes, kept_bytes=2 * trainee.parameter_bytes,
        first_value=float(trainee.model[0].flatten()[0].detach()),
    )  # fmt: skip


def main() -> None:
    mode, uri, state_bytes = sys.argv[1:]
    torch.set_num_threads(1)
    torch.manual_seed(0 if mode == "save" else 1)
    checkpoints = Checkpoints(open_storage(uri), "checkpoints", keep=2)
    checkpoints.steps()  # imports the client of S3
    {"save": save, "load": load}[mode](Trainee(int(state_bytes)), checkpoints)


if __name__ == "__main__":
    main()
