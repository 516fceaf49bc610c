"""The memory of the KV pages, one tensor per layer and tier or a file, and copies between tiers.

Sized in pages and addressed by page number. It does not know who owns a page.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from weir.core import Move, Tier
from weir.cost.transfer import DISK
from weir.ops.coded import BYTES, row_bytes
from weir.ops.dispatch import gpu_kernels
from weir.ops.pages import Paged, pack, unpack
from weir.runtime.disk import Disk
from weir.runtime.link import Link
from weir.runtime.pinned import host_zeros
from weir.runtime.stage import upload
from weir.spec import AttentionSpec


def page_bytes(layers: Sequence[AttentionSpec], page: int, dtype: torch.dtype) -> int:
    """Bytes of the keys and values of `page` tokens in all layers."""
    return sum(2 * layer.kv_heads * page * row_bytes(dtype, layer.head_dim) for layer in layers)


class Store:
    """The KV pages of each tier, zeroed. After the last of each tier comes one that no request has,
    to which the padding of lanes is written.

    layers: the attention of each layer. page: tokens a page. pages: how many each tier holds.
    devices: the device of each tier; the one without is on `disk`. Main memory is pinned, if
    possible, where another tier is on a GPU, or if `pinned`: then a GPU computes. dtype: of keys
    and values; int8 and int4 are those of ops/coded.py, whose rows are bytes here. cold: the dtype
    in main memory and on disk below a hotter tier; pages are converted as they leave that.
    """

    def __init__(
        self,
        layers: Sequence[AttentionSpec],
        page: int,
        pages: Mapping[int, int],
        devices: Mapping[int, torch.device],
        dtype: torch.dtype,
        disk: Disk | None = None,
        pinned: bool = False,
        cold: torch.dtype | None = None,
    ):
        self.page = page
        self.pinned = pinned
        self.pages = {tier: pages[tier] for tier in sorted(pages)}  # hottest first
        self.devices = {tier: devices[tier] for tier in self.pages if tier in devices}
        self.disk = disk
        self.kv: dict[int, list[Tensor]] = {}  # tier → one a layer: [pages, 2, Hkv, page, D or row]
        self.paged: dict[int, Paged] = {}  # tier → the same as bytes
        kinds = [dtype, *[cold or dtype] * len(self.pages)]
        for (tier, device), kind in zip(self.devices.items(), kinds, strict=False):
            count = self.pages[tier] + 1
            mover = self._gpu or device
            sizes = [page_bytes([layer], page, kind) for layer in layers]
            memory = self._memory(count * sum(sizes), device)
            coded = kinds[-1] if kinds[-1] != kind else None
            self.paged[tier] = paged = Paged(memory, sizes, count, mover, kind, coded)
            shapes = [(count, 2, layer.kv_heads, page, -1) for layer in layers]
            self.kv[tier] = [
                part.view(torch.uint8 if kind in BYTES else kind).view(shape)
                for part, shape in zip(paged.layers, shapes, strict=True)
            ]
        self.link = self._linked()

    @property
    def record(self) -> int:
        """Bytes of a page of all layers on its way between tiers."""
        return self.paged[min(self.paged)].record

    @property
    def _gpu(self) -> torch.device | None:
        return next((device for device in self.devices.values() if device.type == "cuda"), None)

    def _memory(self, size: int, device: torch.device) -> Tensor:
        if device.type != "cpu":
            return torch.zeros(size, dtype=torch.uint8, device=device)
        return host_zeros(size, pinned=self.pinned or self._gpu is not None)

    def _linked(self) -> Link | None:
        """Copies between a GPU and pinned memory, concurrent with its work; None: not here."""
        host, gpu = self.paged.get(Tier.CPU), self.paged.get(Tier.GPU)
        if not host or not gpu or not gpu.memory.is_cuda or not gpu_kernels(gpu.memory):
            return None
        return Link(gpu, host) if host.memory.is_pinned() else None

    def move(self, moves: Sequence[Move]) -> None:
        """Copy pages, as if one move after another. Pages moved from a GPU to main memory may
        arrive later: see `settle`."""
        for source, target, indices in _runs(moves):
            here, there = (list(part) for part in zip(*indices, strict=True))
            if self.link is not None and (source, target) == (Tier.GPU, Tier.CPU):
                self.link.save(here, there)
            elif self.link is not None and (source, target) == (Tier.CPU, Tier.GPU):
                self.link.load(here, there)
            else:
                self.settle([i for t, part in ((source, here), (target, there)) for i in part
                             if t == Tier.CPU])  # fmt: skip
                self._copy(source, target, here, there)

    def follow(self, stream: torch.cuda.Stream) -> None:
        """Later moves to the GPU wait for the work that `stream` has been given so far."""
        if self.link is not None:
            self.link.up.stream.wait_stream(stream)

    def loaded(self, tier: int) -> tuple[int, float]:
        """Bytes loaded from a tier so far, and the seconds that this took."""
        if tier == Tier.DISK and self.disk is not None:
            return self.disk.read_bytes, self.disk.read_seconds
        return self.link.loaded() if self.link is not None else (0, 0.0)

    def settle(self, pages: Sequence[int]) -> None:
        """Wait until these pages of main memory hold what was moved there, and may be written."""
        if self.link is not None and pages:
            self.link.settle(pages)

    def _copy(self, source: int, target: int, here: list[int], there: list[int]) -> None:
        """Copy pages, and wait for it unless they are written to a disk."""
        most = max(1, DISK // self.record)
        for first in range(0, len(here), most):
            some = slice(first, first + most)
            self._write(target, there[some], self._read(source, here[some]))

    def _read(self, tier: int, pages: list[int]) -> Tensor:
        """Pages as uint8 [n, record], on the tier's device."""
        if tier not in self.paged:
            return torch.from_numpy(self._disk.read(pages))
        paged = self.paged[tier]
        rows = paged.memory.new_empty(len(pages), paged.record)
        pack(paged, upload(torch.tensor(pages), rows.device), rows)
        return rows

    def _write(self, tier: int, pages: list[int], rows: Tensor) -> None:
        if tier not in self.paged:
            return self._disk.write(pages, rows.cpu().numpy())
        device = self.paged[tier].memory.device
        unpack(self.paged[tier], upload(torch.tensor(pages), device), rows.to(device))

    @property
    def _disk(self) -> Disk:
        assert self.disk is not None, "a tier that is nowhere"
        return self.disk


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
