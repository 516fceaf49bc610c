"""Where keys and values live, a tensor a layer and tier or a file, and the copies that move pages.

Sized in pages, addressed by page number. Who owns a page is not known here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from weir.core import AttentionSpec, Move
from weir.runtime.disk import Disk
from weir.runtime.pinned import host_zeros
from weir.runtime.stage import upload

ROWS = 32 * 2**20
"""Bytes of pages on their way to or from a disk at once."""


def page_bytes(layers: Sequence[AttentionSpec], page: int, dtype: torch.dtype) -> int:
    """Bytes that `page` tokens take over all layers, keys and values."""
    return sum(2 * layer.kv_heads * page * layer.head_dim for layer in layers) * dtype.itemsize


class Store:
    """The KV pages of each tier, zeroed. After the last of each tier comes one that is nobody's: it
    takes what is computed only to fill up a lane.

    layers: the attention of each layer. page: tokens a page. pages: how many each tier holds.
    devices: the device of each tier; the one without is on `disk`. A tier in main memory beside one
    on a GPU is pinned, if that can be had. dtype: of keys and values.
    """

    def __init__(
        self,
        layers: Sequence[AttentionSpec],
        page: int,
        pages: Mapping[int, int],
        devices: Mapping[int, torch.device],
        dtype: torch.dtype,
        disk: Disk | None = None,
    ):
        self.page = page
        self.pages = {tier: pages[tier] for tier in sorted(pages)}  # hottest first
        self.devices = {tier: devices[tier] for tier in self.pages if tier in devices}
        self.disk = disk
        self.dtype = dtype
        self.kv: dict[int, list[Tensor]] = {}  # tier → one a layer: [pages, 2, Hkv, page, D]
        for tier in self.devices:
            count = self.pages[tier] + 1
            size = count * page_bytes(layers, page, dtype)
            memory = self._memory(size, devices[tier]).view(dtype)
            shapes = [(count, 2, layer.kv_heads, page, layer.head_dim) for layer in layers]
            parts = memory.split([torch.Size(shape).numel() for shape in shapes])
            self.kv[tier] = [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]

    def _memory(self, size: int, device: torch.device) -> Tensor:
        if device.type != "cpu":
            return torch.zeros(size, dtype=torch.uint8, device=device)
        return host_zeros(size, pinned=any(other.type == "cuda" for other in self.devices.values()))

    def move(self, moves: Sequence[Move]) -> None:
        """Copy pages as if one move followed the other."""
        for source, target, indices in _runs(moves):
            if source not in self.kv or target not in self.kv:
                self._move_records(source, target, indices)
                continue
            there, here = (self.devices[tier] for tier in (source, target))
            src, dst = torch.tensor(indices).T
            src, dst = upload(src, there), upload(dst, here)
            for old, new in zip(self.kv[source], self.kv[target], strict=True):
                # what comes to the host is read there next, so it is waited for
                pages = old.index_select(0, src).to(here, non_blocking=here.type != "cpu")
                new.index_copy_(0, dst, pages)

    def _move_records(self, source: int, target: int, indices: list[tuple[int, int]]) -> None:
        """Copy pages from or to the disk, where one page of all layers is one record. Reads are
        waited for, writes are not."""
        disk = self.disk
        assert disk is not None, "a tier that is nowhere"
        most = max(1, ROWS // disk.record)
        for first in range(0, len(indices), most):
            src, dst = (list(part) for part in zip(*indices[first : first + most], strict=True))
            if source in self.kv:
                there = upload(torch.tensor(src), self.devices[source])
                parts = [kv.index_select(0, there).flatten(1) for kv in self.kv[source]]
                rows = torch.cat(parts, 1).view(torch.uint8).cpu().numpy()
            else:
                rows = disk.read(src)
            if target not in self.kv:
                disk.write(dst, rows)
                continue
            records = torch.from_numpy(rows).to(self.devices[target]).view(self.dtype)
            here = upload(torch.tensor(dst), self.devices[target])
            sizes = [kv[0].numel() for kv in self.kv[target]]
            for kv, part in zip(self.kv[target], records.split(sizes, 1), strict=True):
                kv.index_copy_(0, here, part.reshape(-1, *kv.shape[1:]))


def _runs(moves: Iterable[Move]) -> Iterator[tuple[int, int, list[tuple[int, int]]]]:
    """Moves as (source tier, target tier, [(source page, target page)]): stretches that can be
    copied at once, since none of their moves touches a page that an earlier one of them wrote."""
    run: list[tuple[int, int]] = []
    written: set[tuple[int, int]] = set()
    direction = (-1, -1)
    for src, dst in moves:
        if direction != (src.tier, dst.tier) or src in written or dst in written:
            if run:
                yield *direction, run
            direction, run, written = (src.tier, dst.tier), [], set()
        run.append((src.index, dst.index))
        written.add(dst)
    if run:
        yield *direction, run
