"""The numerical precision of evaluation (`evaluate.precision`). Metrics themselves are in fp64."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from models.choices import EvaluationPrecision


@contextmanager
def tensor_cores(precision: EvaluationPrecision) -> Iterator[None]:
    """Inside, GPUs compute fp32 products and convolutions in TF32, unless the precision is fp32."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    matmul.allow_tf32 = cudnn.allow_tf32 = precision != "fp32"
    try:
        yield
    finally:  # the process goes on to other stages
        matmul.allow_tf32, cudnn.allow_tf32 = before


def tokenizer_autocast(precision: EvaluationPrecision, device: torch.device) -> torch.autocast:
    """The autocast context of the tokenizer; feature networks run outside of it, as their published numbers do."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")
