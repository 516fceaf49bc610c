"""Writes keys and values to their pages, and copies whole pages to packed records and back.

Pages and records may be pinned host memory: a few programs keep a PCIe link busy and leave the rest
of the GPU free.
"""

from typing import Any

import torch
import triton.language as tl
from torch import Tensor

from weir.ops.triton.launch import kernel, multiprocessors, power_of_2

TOKENS = 16
"""Tokens that a program writes at a time."""


def copy_pages(paged: Any, pages: Tensor, records: Tensor, packs: bool, programs: int) -> None:
    """As weir.ops.pages.pack or, unless `packs`, unpack, without coding; at most 8 GiB."""
    items = len(pages) * len(paged.blocks)
    if items == 0:
        return
    _copy(
        (min(items, programs or 4 * multiprocessors(pages.device)), 1, 1), pages, paged.blocks,
        paged.memory.view(torch.int32), records.view(torch.int32), items,
        BLOCKS=len(paged.blocks), WORDS=paged.block // 4, PACKS=packs,
        warps=8,
    )  # fmt: skip


@kernel("items")
def _copy(
    pages, blocks, memory, records, items,
    BLOCKS: tl.constexpr, WORDS: tl.constexpr, PACKS: tl.constexpr,
):  # fmt: skip
    """Each program copies every num_programs-th block of all records."""
    word = tl.arange(0, WORDS)
    for item in range(tl.program_id(0), items, tl.num_programs(0)):
        page = tl.load(pages + item // BLOCKS)
        first = tl.load(blocks + 2 * (item % BLOCKS))
        stride = tl.load(blocks + 2 * (item % BLOCKS) + 1)
        there = memory + (first + page * stride) * WORDS + word
        here = records + item * WORDS + word
        if PACKS:
            tl.store(here, tl.load(there))
        else:
            tl.store(there, tl.load(here))


def write(kv: Tensor, k: Tensor, v: Tensor, slots: Tensor, programs: int = 0) -> None:
    """As weir.ops.attention.write."""
    tokens, heads, size = k.shape
    if tokens == 0:
        return
    items = -(-tokens // TOKENS) * heads
    _write(
        (min(items, programs or items), 1, 1), kv, k, v, slots, tokens, items,
        K_STRIDE=k.stride(0), V_STRIDE=v.stride(0), HEADS=heads, SIZE=size, PAGE=kv.shape[3],
        TOKENS=TOKENS, LINE=power_of_2(TOKENS * size),
        warps=4,
    )  # fmt: skip


@kernel("tokens", "items")
def _write(
    kv, k, v, slots, tokens, items,
    K_STRIDE: tl.constexpr, V_STRIDE: tl.constexpr, HEADS: tl.constexpr, SIZE: tl.constexpr,
    PAGE: tl.constexpr, TOKENS: tl.constexpr, LINE: tl.constexpr,
):  # fmt: skip
    """An item is one head of TOKENS tokens. If their slots are adjacent, so are their rows: thus
    host memory is written in whole lines, whatever the size of a row."""
    at = tl.arange(0, LINE)
    row, dim, block = (at // SIZE).to(tl.int64), at % SIZE, HEADS * PAGE * SIZE
    for item in range(tl.program_id(0), items, tl.num_programs(0)):
        token, head = item // HEADS * TOKENS + row, item % HEADS
        mask = (at < TOKENS * SIZE) & (token < tokens)
        slot = tl.load(slots + token, mask=mask, other=0)
        there = kv + (slot // PAGE) * 2 * block + (head * PAGE + slot % PAGE) * SIZE + dim
        here = head * SIZE + dim
        x = tl.load(k + token * K_STRIDE + here, mask=mask)
        y = tl.load(v + token * V_STRIDE + here, mask=mask)
        tl.store(there, x.to(kv.dtype.element_ty), mask=mask)
        tl.store(there + block, y.to(kv.dtype.element_ty), mask=mask)
