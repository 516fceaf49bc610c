"""Copies pages between a GPU and its host with the GPU's copy engines.

A kernel that writes host memory occupies multiprocessors while the link is busy, and the tiles of a
matrix product wait for those. Copy engines leave all of them to compute. Knows bytes, no layer.
"""

import ctypes
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from weir.runtime.pinned import PART

IN_STREAM_ORDER, BESIDE_COMPUTE = 1, 1
"""CU_MEMCPY_SRC_ACCESS_ORDER_STREAM and CU_MEMCPY_FLAG_PREFER_OVERLAP_WITH_COMPUTE"""


class Attributes(ctypes.Structure):
    """CUmemcpyAttributes. The locations are hints for managed memory."""

    _fields_ = [
        ("order", ctypes.c_int),
        ("locations", ctypes.c_int * 4),
        ("flags", ctypes.c_uint),
    ]


@cache
def driver() -> Any:
    return ctypes.CDLL("libcuda.so.1")


def copy_pages(
    target: Tensor, into: NDArray[np.int64], source: Tensor, pages: NDArray[np.int64]
) -> None:
    """target[into] = source[pages] on the current stream. Both are contiguous, with pages of the
    same bytes; one is on a GPU, the other is made by `host_zeros`. Or both are on a CPU. Raises
    `RuntimeError` if the driver refuses."""
    if not (target.is_cuda or source.is_cuda):
        target[torch.from_numpy(into)] = source[torch.from_numpy(pages)]
        return
    size = source[0].nbytes
    to, at = into * size, pages * size
    host, offset = (source, at) if target.is_cuda else (target, to)
    base = host.storage_offset() * host.element_size()
    sizes = np.minimum(size, PART - (base + offset) % PART)  # no copy crosses a locked part's end
    cut = sizes < size
    to = np.concatenate([to, (to + sizes)[cut]]) + target.data_ptr()
    at = np.concatenate([at, (at + sizes)[cut]]) + source.data_ptr()
    _copy(to, at, np.concatenate([sizes, size - sizes[cut]]))


def _copy(to: NDArray[np.int64], at: NDArray[np.int64], sizes: NDArray[np.int64]) -> None:
    """Addresses and bytes."""
    stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
    library = driver()
    if not len(to):
        return
    if hasattr(library, "cuMemcpyBatchAsync"):  # since CUDA 12.8
        arrays = (ctypes.c_void_p(x.ctypes.data) for x in (to, at, sizes))
        attributes = Attributes(order=IN_STREAM_ORDER, flags=BESIDE_COMPUTE)
        first, failed = ctypes.c_size_t(0), ctypes.c_size_t()
        _check(
            library.cuMemcpyBatchAsync(
                *arrays, ctypes.c_size_t(len(to)), ctypes.byref(attributes), ctypes.byref(first),
                ctypes.c_size_t(1), ctypes.byref(failed), stream,
            )
        )  # fmt: skip
        return
    for target, source, size in zip(to.tolist(), at.tolist(), sizes.tolist(), strict=True):
        pointers = ctypes.c_uint64(target), ctypes.c_uint64(source)
        _check(library.cuMemcpyAsync(*pointers, ctypes.c_size_t(size), stream))


def _check(error: int) -> None:
    if error:
        raise RuntimeError(f"the device cannot copy from or to its host: CUDA error {error}")
