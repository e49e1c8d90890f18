"""Whether a trainer compiles its networks, and a user's line where that fails. The compiling: `models/compiling.py`."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from pipeline.config import ClusterConfig
from pipeline.errors import PipelineError

_COMPILERS = ("torch._dynamo", "torch._inductor", "triton")


def compiles(config: ClusterConfig, device: torch.device) -> bool:
    """`cluster.compile`; auto compiles for GPUs only, since on a CPU compiling takes longer than it saves."""
    return device.type == "cuda" if config.compile == "auto" else config.compile


@contextmanager
def compile_errors(stage: str) -> Iterator[None]:
    """Turn an error of torch.compile into a PipelineError, which stops the stage: a restart would meet it again."""
    try:
        yield
    except Exception as error:
        if not type(error).__module__.startswith(_COMPILERS):
            raise
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise PipelineError(
            f"{stage}: torch.compile failed: {' '.join(lines[:2])[:300]}",
            "Install a C++ compiler (and Triton, for a GPU), or set cluster.compile=false.",
        ) from error
