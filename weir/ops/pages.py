"""Packs whole pages of all layers into records, and unpacks them.

A record is a page of the first layer, then of the second, and so on. Pages move between tiers as
records, whose numbers may have fewer bits. The caller knows who owns a page.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate

import torch
from torch import Tensor

from weir.ops.coded import decode, encode, row_bytes
from weir.ops.dispatch import gpu_kernels

WIDE = 64 << 20
"""Bytes of pages that are coded or decoded at once; at least one page is."""


@dataclass(slots=True, eq=False)
class Paged:
    """Memory that holds `count` pages of each layer, one layer after another.

    memory: uint8 [count * sum(sizes)], contiguous. sizes: bytes of a page in each layer. device:
    the one that copies, not always the memory's. dtype: of the numbers in pages. coded: of those in
    records, if it differs (ops/coded.py)."""

    memory: Tensor
    sizes: Sequence[int]
    count: int
    device: torch.device
    dtype: torch.dtype = torch.uint8
    coded: torch.dtype | None = None
    layers: list[Tensor] = field(init=False)  # uint8 [count, size] of each layer
    block: int = field(init=False)  # bytes, a power of two that divides every layer's page
    blocks: Tensor = field(init=False)  # int64 [n, 2] on the device: see `_blocks`

    def __post_init__(self) -> None:
        parts = self.memory.split([self.count * size for size in self.sizes])
        self.layers = [part.view(self.count, -1) for part in parts]
        self.block = min(1 << 14, *(size & -size for size in self.sizes))
        self.blocks = torch.tensor(self._blocks()).to(self.device)

    @property
    def record(self) -> int:
        """Bytes of a record."""
        size = sum(self.sizes)
        return size if self.coded is None else row_bytes(self.coded, size // self.dtype.itemsize)

    def _blocks(self) -> list[tuple[int, int]]:
        """For each block of a record, in order: where that block of page 0 lies in `memory`, and
        the distance to the same block of page 1, both in blocks."""
        starts = accumulate(self.sizes, initial=0)
        return [
            ((self.count * start + at) // self.block, size // self.block)
            for start, size in zip(starts, self.sizes, strict=False)
            for at in range(0, size, self.block)
        ]


def coding_bytes(paged: Paged) -> int:
    """Most bytes that coding takes beside pages and records."""
    return 0 if paged.coded is None else 2 * max(WIDE, sum(paged.sizes))


def pack(paged: Paged, pages: Tensor, records: Tensor, *, programs: int = 0) -> None:
    """Copy pages, int64 [n] on the device, to records, uint8 [n, record].

    On a GPU `paged.memory` or `records` may be pinned host memory, unless records are coded.
    programs: GPU programs to use at most; 0: no limit."""
    if paged.coded is None:
        return _gather(paged, pages, records, programs)
    for some, rows in _few(paged, pages, records):
        wide = records.new_empty(len(some), sum(paged.sizes))
        _gather(paged, some, wide)
        rows.copy_(encode(wide.view(paged.dtype), paged.coded))


def unpack(paged: Paged, pages: Tensor, records: Tensor, *, programs: int = 0) -> None:
    """The reverse of `pack`; pages must be distinct."""
    if paged.coded is None:
        return _scatter(paged, pages, records, programs)
    for some, rows in _few(paged, pages, records):
        _scatter(paged, some, decode(rows, paged.coded, paged.dtype).view(torch.uint8))


def _gather(paged: Paged, pages: Tensor, wide: Tensor, programs: int = 0) -> None:
    """As `pack`, without coding, to uint8 [n, sum(sizes)]."""
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
    """Pages and their records in batches of at most `WIDE` bytes of pages, but at least a page."""
    rows = max(1, WIDE // sum(paged.sizes))
    return zip(pages.split(rows), records.split(rows), strict=True)
