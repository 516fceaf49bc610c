"""Copies whole pages between a tier's memory and packed records.

Either side may be pinned host memory: a few programs keep a PCIe link busy, and leave the rest of
the GPU to others.
"""

from typing import Any

import torch
import triton.language as tl
from torch import Tensor

from weir.ops.triton.launch import kernel, processors


def copy_pages(paged: Any, pages: Tensor, records: Tensor, packs: bool, programs: int) -> None:
    """As weir.ops.pages.pack, or unpack, of its Paged; at most 8 GiB."""
    items = len(pages) * len(paged.blocks)
    if items == 0:
        return
    _copy(
        (min(items, programs or 4 * processors(pages.device)), 1, 1), pages, paged.blocks,
        paged.memory.view(torch.int32), records.view(torch.int32), items,
        BLOCKS=len(paged.blocks), WORDS=paged.block // 4, PACKS=packs,
        warps=8,
    )  # fmt: skip


@kernel("items")
def _copy(
    pages, blocks, memory, records, items,
    BLOCKS: tl.constexpr, WORDS: tl.constexpr, PACKS: tl.constexpr,
):  # fmt: skip
    """A program takes every so many'th block of all records."""
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
