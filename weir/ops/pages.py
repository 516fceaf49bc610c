"""Whole pages of all layers, packed into records and back.

A record is a page of the first layer, then of the second, and so on; it is how pages travel. Who
owns a page, and where to, is the caller's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate

import torch
from torch import Tensor

from weir.ops.dispatch import gpu_kernels


@dataclass(slots=True, eq=False)
class Paged:
    """Memory that holds `count` pages of each layer, one layer after another.

    memory: uint8 [count * record], contiguous. sizes: bytes of a page in each layer. device: what
    copies, which may be another one than the memory's."""

    memory: Tensor
    sizes: Sequence[int]
    count: int
    device: torch.device
    layers: list[Tensor] = field(init=False)  # uint8 [count, size] of each layer
    block: int = field(init=False)  # bytes, a power of two, that every layer's page is so many of
    blocks: Tensor = field(init=False)  # int64 [n, 2] on the device: see `_blocks`

    def __post_init__(self) -> None:
        parts = self.memory.split([self.count * size for size in self.sizes])
        self.layers = [part.view(self.count, -1) for part in parts]
        self.block = min(1 << 14, *(size & -size for size in self.sizes))
        self.blocks = torch.tensor(self._blocks()).to(self.device)

    @property
    def record(self) -> int:
        """Bytes of a page of all layers."""
        return sum(self.sizes)

    def _blocks(self) -> list[tuple[int, int]]:
        """In blocks, in the order of a record: where each block of page 0 lies in `memory`, and how
        far on the same block of the next page does."""
        starts = accumulate(self.sizes, initial=0)
        return [
            ((self.count * start + at) // self.block, size // self.block)
            for start, size in zip(starts, self.sizes, strict=False)
            for at in range(0, size, self.block)
        ]


def pack(paged: Paged, pages: Tensor, records: Tensor, *, programs: int = 0) -> None:
    """Copy pages, int64 [n] on the device, to records, uint8 [n, record].

    On a GPU `paged.memory` or `records` may be pinned host memory. `programs`: as many as may be
    busy with it; 0: all there are."""
    if (gpu := gpu_kernels(pages)) is not None:
        return gpu.copy_pages(paged, pages, records, True, programs)
    torch.cat([layer.index_select(0, pages) for layer in paged.layers], 1, out=records)


def unpack(paged: Paged, pages: Tensor, records: Tensor, *, programs: int = 0) -> None:
    """The reverse of `pack`; no page may be named twice."""
    if (gpu := gpu_kernels(pages)) is not None:
        return gpu.copy_pages(paged, pages, records, False, programs)
    for layer, part in zip(paged.layers, records.split(list(paged.sizes), 1), strict=True):
        layer.index_copy_(0, pages, part)
