"""Settings of a training device, and the peak that its speed is measured against."""

import os
import time

import torch


def set_up_cuda(deterministic: bool) -> None:
    """Use TF32 for fp32 matrix products; deterministic kernels without autotuning, or the fastest ones.

    Call it before the first product on a GPU: cuBLAS reads the size of its workspace once, and is deterministic only if
    that is fixed. torch.compile follows `torch.use_deterministic_algorithms`.
    """
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.backends.cuda.matmul.allow_tf32 = True
    torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = not deterministic
    torch.use_deterministic_algorithms(deterministic)
    # It would write NaN to all new memory, to find code that reads what nothing has written: a debugging aid.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def measured_peak(device: torch.device, seconds: float = 0.3) -> float:
    """FLOP/s of a large matrix product on this device, in the precision it trains in: the denominator of MFU.

    bf16 on a GPU, fp32 on a CPU.
    """
    size, dtype = (8192, torch.bfloat16) if device.type == "cuda" else (1024, torch.float32)
    a = torch.randn(size, size, device=device, dtype=dtype)
    torch.mm(a, a)
    _wait_for(device)
    begin, count = time.monotonic(), 0
    while time.monotonic() - begin < seconds:
        torch.mm(a, a)
        _wait_for(device)
        count += 1
    return count * 2.0 * size**3 / (time.monotonic() - begin)


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
