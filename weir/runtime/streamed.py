"""Layers whose weights lie on the device, in main memory and on disk, loaded while others compute.

Every tensor has a home. One iteration over the layers is a step. Layers arrive in a ring of slots
on the device; after the last layer of a step the first ones of the next are loaded. Knows no model
and no lane.
"""

from __future__ import annotations

import shutil
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from weir.cost.offload import LAYER_SLOTS
from weir.errors import ConfigError
from weir.models.base import rebuilt, tensors
from weir.runtime.parked import STRIDE, Copies, Parked, Reads, Slot, Span, lay
from weir.runtime.pinned import host_zeros
from weir.runtime.spill import Spill, aligned

SMALL = 0.01
"""Tensors of at most this share of a layer's bytes stay on the device."""

DEVICE, HOST, DISK = range(3)


class Deal:
    """Deals tensors out to memories such that each always has about its share of the bytes."""

    def __init__(self, shares: Sequence[float]):
        self.shares = shares
        self.given = [0] * len(shares)

    def next(self, size: int) -> int:
        """Which memory takes the next `size` bytes."""
        total = sum(self.given) + size
        behind = [s * total - given for s, given in zip(self.shares, self.given, strict=True)]
        at = behind.index(max(behind))
        self.given[at] += size
        return at


class Streamed:
    """Takes in `count` layers in order, made on `device`; then each iteration yields them. A layer
    that was yielded may be used until the second layer after it is asked for.

    shares: of the bytes, on the device, in main memory and on disk. folder: of the file on disk.
    room: bytes of main memory for weights. Raises `ConfigError` if memory or disk is too small."""

    def __init__(
        self,
        count: int,
        shares: Sequence[float],
        device: torch.device,
        folder: Path | None = None,
        room: int | None = None,
    ):
        if shares[DISK] and folder is None:
            raise ConfigError(
                f"memory has no room for {shares[DISK]:.0%} of the weights: add --offload-dir "
                "FOLDER, on a fast disk, or let more memory be used"
            )
        self.count, self.room = count, room
        self.device = device
        self.deal = Deal(shares)
        self.spill = Spill(folder) if shares[DISK] and folder is not None else None
        self.pinned = device.type == "cuda"
        self.staging = torch.empty(0, dtype=torch.uint8)
        self.kept: list[Tensor] = []  # device memory of what stays, by layer
        self.parked: list[Parked] = []
        self.moves: Copies | Reads
        self.slots: list[Slot] = []
        self.views: dict[tuple[int, int], Any] = {}
        self.free: deque[int] = deque()  # slots
        self.coming: deque[tuple[int, int]] = deque()  # layer and slot, in order
        self.held: dict[int, int] = {}  # layer in use → slot
        self.cycle: deque[int] = deque()  # layers partly off the device, the next to load first

    # -- loading -------------------------------------------------------------------------------

    def add(self, layer: Any) -> None:
        """Take in the next layer: copy each tensor to its home."""
        found = list(tensors(layer))
        if not self.parked:
            self._check(sum(tensor.nbytes for tensor in found) * self.count)
            self._reserve(found)
        homes = _homes(found, self.deal)
        spans: list[Span | None] = [None] * len(found)
        ends = lay(found, [i for i, home in enumerate(homes) if home == HOST], 0, spans)
        start = aligned(ends)
        size = lay(found, [i for i, home in enumerate(homes) if home == DISK], start, spans)
        size = aligned(size)
        host = self._host(ends)
        if len(self.staging) < size - start:
            self.staging = host_zeros(size - start)
        for tensor, home, span in zip(found, homes, spans, strict=True):
            if span is not None:
                there, begins = (host, 0) if home == HOST else (self.staging, start)
                span.of(there, begins).copy_(tensor)
        offset = 0
        if self.spill is not None and size > start:
            offset = self.spill.append(self.staging[: size - start])
        pairs = zip(found, spans, strict=True)
        here = self._stay([tensor if span is None else None for tensor, span in pairs])
        nothing = torch.empty(0)
        shell = rebuilt(layer, iter([nothing if t is None else t for t in here]))
        self.parked.append(Parked(shell, here, spans, host, start, size, offset))

    def _reserve(self, found: list[Tensor]) -> None:
        """Allocate device memory for what stays, of `count` layers like the first, at once.
        Allocated layer by layer, it would fragment the memory in which layers are made."""
        deal, sizes = Deal(self.deal.shares), []
        for _ in range(self.count):
            pairs = zip(found, _homes(found, deal), strict=True)
            kept = [tensor for tensor, home in pairs if home == DEVICE]
            sizes.append(lay(kept, [*range(len(kept))], 0, [None] * len(kept)) + STRIDE)
        memory = torch.empty(sum(sizes), dtype=torch.uint8, device=self.device)
        self.kept = list(memory.split(sizes))

    def _stay(self, here: list[Tensor | None]) -> list[Tensor | None]:
        """Move the tensors of the next layer that stay to the memory reserved for them, if they fit
        it, as those of a layer like the first do."""
        stays = [i for i, tensor in enumerate(here) if tensor is not None]
        kept = [tensor for tensor in here if tensor is not None]
        spans: list[Span | None] = [None] * len(kept)
        memory = self.kept[len(self.parked)]
        if lay(kept, [*range(len(kept))], 0, spans) <= len(memory):
            for i, tensor, span in zip(stays, kept, spans, strict=True):
                here[i] = span.of(memory).copy_(tensor)
        return here

    def done(self) -> Streamed:
        """All layers are in: make the ring and start to load the first."""
        self.staging = torch.empty(0, dtype=torch.uint8)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        self.cycle = deque(i for i, parked in enumerate(self.parked) if parked.size)
        size = max((parked.size for parked in self.parked), default=0)
        for _ in range(min(LAYER_SLOTS + (self.device.type == "cpu"), len(self.cycle))):
            self.free.append(len(self.slots))
            self.slots.append(Slot(_memory(size, self.device)))
        turns = [self.parked[i] for i in self.cycle]
        if self.device.type == "cuda":
            self.moves = Copies(turns, self.spill, self.device)
        else:
            self.moves = Reads(self.spill)
        self._fetch()
        return self

    def _check(self, total: int) -> None:
        """Raise ConfigError if all layers, of `total` bytes, will not fit."""
        _, host, disk = (share * total for share in self.deal.shares)
        if self.room is not None and host > self.room:
            raise ConfigError(
                f"the weights need {host / 2**30:.1f} GiB of main memory, of which "
                f"{self.room / 2**30:.1f} GiB may be used: give the GPU or the disk a larger share"
            )
        free = shutil.disk_usage(self.spill.folder).free if self.spill is not None else 0
        if disk > free:
            raise ConfigError(
                f"the weights need {disk / 2**30:.1f} GiB in --offload-dir, where "
                f"{free / 2**30:.1f} GiB are free: choose another folder, or a smaller share"
            )

    def _host(self, size: int) -> Tensor:
        memory = host_zeros(size, pinned=self.pinned, part=size)
        if size and self.pinned and not memory.is_pinned():
            self.pinned = False  # do not ask again
        return memory

    # -- serving -------------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self.parked)

    def __iter__(self) -> Iterator[Any]:
        self._begin()
        for i, parked in enumerate(self.parked):
            yield self._arrived(i) if parked.size else parked.layer
            self._release(i - 1)
            self._fetch()

    def close(self) -> None:
        """Close the file on disk. May be called twice."""
        if self.spill is not None:
            self.spill.close()

    def _begin(self) -> None:
        """Release what the last step held to its end. If that step was broken off, skip the layers
        that it would still have used."""
        for i in list(self.held):
            self._release(i)
        self._fetch()
        while self.coming and self.coming[0][0] != min(self.cycle):
            passed = self.coming[0][0]
            self._arrived(passed)
            self._release(passed)
            self._fetch()

    def _arrived(self, i: int) -> Any:
        layer, slot = self.coming.popleft()
        assert layer == i, "layers come in order"
        self.moves.wait(self.slots[slot])
        self.held[i] = slot
        if (i, slot) not in self.views:
            self.views[i, slot] = self.parked[i].over(self.slots[slot].memory)
        return self.views[i, slot]

    def _release(self, i: int) -> None:
        slot = self.held.pop(i, None)
        if slot is not None:
            self.moves.let_go(self.slots[slot])
            self.free.append(slot)

    def _fetch(self) -> None:
        """Start to load a layer into each free slot."""
        while self.free:
            layer, slot = self.cycle[0], self.free.popleft()
            self.cycle.rotate(-1)
            self.moves.bring(self.parked[layer], self.slots[slot])
            self.coming.append((layer, slot))


def _homes(found: list[Tensor], deal: Deal) -> list[int]:
    """The home of each tensor of the next layer."""
    total = sum(tensor.nbytes for tensor in found)
    return [DEVICE if t.nbytes <= SMALL * total else deal.next(t.nbytes) for t in found]


def _memory(size: int, device: torch.device) -> Tensor:
    if device.type == "cpu":
        return host_zeros(size)
    return torch.empty(size, dtype=torch.uint8, device=device)
