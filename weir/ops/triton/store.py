"""Writes keys and values to their pages on a GPU."""

from __future__ import annotations

import triton.language as tl
from torch import Tensor

from weir.ops.triton.launch import kernel, power_of_2

TOKENS = 16
"""Of a program."""


def write(kv: Tensor, k: Tensor, v: Tensor, slots: Tensor) -> None:
    """As weir.ops.attention.write."""
    tokens, heads, size = k.shape
    if tokens == 0:
        return
    _write(
        (-(-tokens // TOKENS), heads, 1), kv, k, v, slots, tokens,
        K_STRIDE=k.stride(0), V_STRIDE=v.stride(0), HEADS=heads, SIZE=size, PAGE=kv.shape[3],
        TOKENS=TOKENS, LINE=power_of_2(TOKENS * size),
        warps=4,
    )  # fmt: skip


@kernel("tokens")
def _write(
    kv, k, v, slots, tokens,
    K_STRIDE: tl.constexpr, V_STRIDE: tl.constexpr, HEADS: tl.constexpr, SIZE: tl.constexpr,
    PAGE: tl.constexpr, TOKENS: tl.constexpr, LINE: tl.constexpr,
):  # fmt: skip
    """A program takes one head of some tokens, as they lie side by side where their slots do: so
    a host's memory is written in whole lines, whatever the size of a row."""
    at = tl.arange(0, LINE)
    token = tl.program_id(0).to(tl.int64) * TOKENS + at // SIZE
    head, dim = tl.program_id(1), at % SIZE
    mask = (at < TOKENS * SIZE) & (token < tokens)
    slot = tl.load(slots + token, mask=mask, other=0)
    block = HEADS * PAGE * SIZE
    there = kv + (slot // PAGE) * 2 * block + (head * PAGE + slot % PAGE) * SIZE + dim
    here = head * SIZE + dim
    x = tl.load(k + token * K_STRIDE + here, mask=mask)
    tl.store(there, x.to(kv.dtype.element_ty), mask=mask)
    x = tl.load(v + token * V_STRIDE + here, mask=mask)
    tl.store(there + block, x.to(kv.dtype.element_ty), mask=mask)
