"""Whole pages of all layers, packed into records and back.

A record is a page of the first layer, then of the second, and so on; it is how pages travel, and
may be of fewer bits than they. Who owns a page, and where to, is the caller's.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate

import torch
from torch import Tensor

from weir.ops.coded import decode, encode, row_bytes
from weir.ops.dispatch import gpu_kernels

WIDE = 64 << 20
"""Bytes of pages that are coded or decoded at once; those of one page, if it has more."""


@dataclass(slots=True, eq=False)
class Paged:
    """Memory that holds `count` pages of each layer, one layer after another.

    memory: uint8 [count * sum(sizes)], contiguous. sizes: bytes of a page in each layer. device:
    what copies, which may be another one than the memory's. dtype, coded: of the numbers in pages
    and, where they differ, of those in records (ops/coded.py)."""

    memory: Tensor
    sizes: Sequence[int]
    count: int
    device: torch.device
    dtype: torch.dtype = torch.uint8
    coded: torch.dtype | None = None
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
        """Bytes of a page of all layers on its way."""
        size = sum(self.sizes)
        return size if self.coded is None else row_bytes(self.coded, size // self.dtype.itemsize)

    def _blocks(self) -> list[tuple[int, int]]:
        """In blocks, in the order of a record: where each block of page 0 lies in `memory`, and how
        far on the same block of the next page does."""
        starts = accumulate(self.sizes, initial=0)
        return [
            ((self.count * start + at) // self.block, size // self.block)
            for start, size in zip(starts, self.sizes, strict=False)
            for at in range(0, size, self.block)
        ]


def coding_bytes(paged: Paged) -> int:
    """What coding takes beside pages and records, at most."""
    return 0 if paged.coded is None else 2 * max(WIDE, sum(paged.sizes))


def pack(paged: Paged, pages: Tensor, records: Tensor, *, programs: int = 0) -> None:
    """Copy pages, int64 [n] on the device, to records, uint8 [n, record].

    On a GPU `paged.memory` or `records` may be pinned host memory, but where records are coded.
    `programs`: as many as may be busy with it; 0: all there are."""
    if paged.coded is None:
        return _gather(paged, pages, records, programs)
    for some, rows in _few(paged, pages, records):
        wide = records.new_empty(len(some), sum(paged.sizes))
        _gather(paged, some, wide)
        rows.copy_(encode(wide.view(paged.dtype), paged.coded))


def unpack(paged: Paged, pages: Tensor, records: Tensor, *, programs: int = 0) -> None:
    """The reverse of `pack`; no page may be named twice."""
    if paged.coded is None:
        return _scatter(paged, pages, records, programs)
    for some, rows in _few(paged, pages, records):
        _scatter(paged, some, decode(rows, paged.coded, paged.dtype).view(torch.uint8))


def _gather(paged: Paged, pages: Tensor, wide: Tensor, programs: int = 0) -> None:
    """As `pack`, of pages as they are, uint8 [n, bytes]."""
    if (gpu := gpu_kernels(pages)) is not None:
        return gpu.copy_pages(paged, pages, wide, True, programs)
    torch.cat([layer.index_select(0, pages) for layer in paged.layers], 1, out=wide)


def _scatter(paged: Paged, pages: Tensor, wide: Tensor, programs: int = 0) -> None:
    """The reverse of `_gather`."""
    if (gpu := gpu_kernels(pages)) is not None:
        return gpu.copy_pages(paged, pages, wide, False, programs)
    for layer, part in zip(paged.layers, wide.split(list(paged.sizes), 1), strict=True):
        layer.index_copy_(0, pages, part)


def _few(paged: Paged, pages: Tensor, records: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Pages and their records, so many at once that the pages take little room beside."""
    rows = max(1, WIDE // sum(paged.sizes))
    return zip(pages.split(rows), records.split(rows), strict=True)
