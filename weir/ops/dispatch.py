"""Which kernels take a tensor: native ones float32 on the CPU, Triton's what is on a GPU."""

from types import ModuleType

import torch
from torch import Tensor

from weir.ops import native

try:
    from weir.ops import triton
except ModuleNotFoundError as missing:  # it comes with PyTorch's CUDA build alone
    if missing.name != "triton":
        raise
    triton = None


def kernels(x: Tensor) -> native.Library | None:
    """The native kernels if `x` is theirs to compute on and they could be built."""
    return native.library() if x.is_cpu and x.dtype == torch.float32 else None


def gpu_kernels(x: Tensor) -> ModuleType | None:
    """The Triton kernels if `x` is theirs to compute on and Triton is installed."""
    return triton if x.is_cuda else None


def packed_heads(x: Tensor) -> Tensor:
    """x [T, heads, D] such that a token's heads lie one after another; tokens may lie apart."""
    size = x.shape[2]
    return x if x.stride(2) == 1 and x.stride(1) == size else x.contiguous()


def floats(x: Tensor) -> Tensor:
    """x as contiguous float32; itself where it is that already."""
    return x.float().contiguous()
