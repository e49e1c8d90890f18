"""Antialiased resizing as two matrix products: equal to `F.interpolate`, but with a backward pass that is
deterministic on every device."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor


def resize(x_BCHW: Tensor, side: int, mode: Literal["bilinear", "bicubic"]) -> Tensor:
    """Images (B, C, H, W) of any size to (B, C, side, side), same dtype; computed in fp32, also under autocast."""
    rows, columns = (_matrix(old, side, mode).to(x_BCHW.device, non_blocking=True) for old in x_BCHW.shape[-2:])
    with torch.autocast(x_BCHW.device.type, enabled=False):
        return (rows @ x_BCHW.float() @ columns.mT).to(x_BCHW.dtype)


def _matrix(old: int, new: int, mode: str) -> Tensor:
    """(new, old) fp32: the interpolation matrix of one axis, computed from unit vectors."""
    if old == new:
        return torch.eye(old)
    matrix = F.interpolate(torch.eye(old)[None, None], (new, old), mode=mode, antialias=True, align_corners=False)
    return matrix[0, 0]
