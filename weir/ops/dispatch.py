"""Which tensors the native kernels take: float32 on the CPU, rows of numbers one after another."""

from __future__ import annotations

import torch
from torch import Tensor

from weir.ops import native


def kernels(x: Tensor) -> native.Library | None:
    """The native kernels if `x` is theirs to compute on and they could be built."""
    return native.library() if x.is_cpu and x.dtype == torch.float32 else None


def packed_heads(x: Tensor) -> Tensor:
    """x [T, heads, D] such that a token's heads lie one after another; tokens may lie apart."""
    size = x.shape[2]
    return x if x.stride(2) == 1 and x.stride(1) == size else x.contiguous()


def floats(x: Tensor) -> Tensor:
    """x as contiguous float32; itself where it is that already."""
    return x.float().contiguous()
