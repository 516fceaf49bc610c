"""Chooses the kernels for a tensor: native ones for float32 on a CPU, Triton's on a GPU."""

from types import ModuleType

import torch
from torch import Tensor

from weir.ops import native

try:
    from weir.ops import triton
except ModuleNotFoundError as missing:  # only PyTorch's CUDA build includes Triton
    if missing.name != "triton":
        raise
    triton = None


def kernels(x: Tensor) -> native.Library | None:
    """The native kernels, if they support `x` and could be built."""
    return native.library() if x.is_cpu and x.dtype == torch.float32 else None


def gpu_kernels(x: Tensor) -> ModuleType | None:
    """The Triton kernels, if `x` is on a GPU and Triton is installed."""
    return triton if x.is_cuda else None


def packed_heads(x: Tensor) -> Tensor:
    """x [T, heads, D], copied unless each token's heads are contiguous; tokens may lie apart."""
    size = x.shape[2]
    return x if x.stride(2) == 1 and x.stride(1) == size else x.contiguous()


def floats(x: Tensor) -> Tensor:
    """x as contiguous float32; x itself if it is that already."""
    return x.float().contiguous()
