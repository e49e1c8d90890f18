"""Resizing as two matrix products: equal to `F.interpolate`, but with a backward pass that is
deterministic on every device."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor


def resize(x_BCHW: Tensor, side: int, mode: Literal["bilinear", "bicubic"], *, antialias: bool = True) -> Tensor:
    """Images (B, C, H, W) of any size to (B, C, side, side), same dtype; computed in fp32, also under autocast."""
    rows, columns = (
        _matrix(old, side, mode, antialias).to(x_BCHW.device, non_blocking=True) for old in x_BCHW.shape[-2:]
    )
    with torch.autocast(x_BCHW.device.type, enabled=False):
        return (rows @ x_BCHW.float() @ columns.mT).to(x_BCHW.dtype)


def _matrix(old: int, new: int, mode: str, antialias: bool) -> Tensor:
    """(new, old) fp32: the interpolation matrix of one axis, computed from unit vectors."""
    if old == new:
        return torch.eye(old)
    units = torch.eye(old)[None, None]
    matrix = F.interpolate(units, (new, old), mode=mode, antialias=antialias, align_corners=False)
    return matrix[0, 0]
