"""Writes keys and values to their pages on a GPU."""

from __future__ import annotations

import triton.language as tl
from torch import Tensor

from weir.ops.triton.launch import kernel, power_of_2


def write(kv: Tensor, k: Tensor, v: Tensor, slots: Tensor) -> None:
    """As weir.ops.attention.write."""
    tokens, heads, size = k.shape
    if tokens == 0:
        return
    _write(
        (tokens, 1, 1), kv, k, v, slots,
        K_STRIDE=k.stride(0), V_STRIDE=v.stride(0), HEADS=heads, SIZE=size, PAGE=kv.shape[3],
        LINES=power_of_2(heads), DIMS=power_of_2(size),
        warps=4,
    )  # fmt: skip


@kernel()
def _write(
    kv, k, v, slots,
    K_STRIDE: tl.constexpr, V_STRIDE: tl.constexpr, HEADS: tl.constexpr, SIZE: tl.constexpr,
    PAGE: tl.constexpr, LINES: tl.constexpr, DIMS: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots + token)
    head, dim = tl.arange(0, LINES)[:, None], tl.arange(0, DIMS)[None, :]
    mask = (head < HEADS) & (dim < SIZE)
    block = HEADS * PAGE * SIZE
    there = kv + (slot // PAGE) * 2 * block + (head * PAGE + slot % PAGE) * SIZE + dim
    here = head * SIZE + dim
    x = tl.load(k + token * K_STRIDE + here, mask=mask)
    tl.store(there, x.to(kv.dtype.element_ty), mask=mask)
    x = tl.load(v + token * V_STRIDE + here, mask=mask)
    tl.store(there + block, x.to(kv.dtype.element_ty), mask=mask)
