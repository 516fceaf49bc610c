"""Layers whose weights lie on the device, in main memory and on disk, brought while others compute.

Every tensor has a home; those of a layer that are elsewhere lie there side by side, so that a layer
takes one copy and one read. Iterating is a step: layers arrive in a ring of slots on the device,
and when the last has been handed out the first are on their way again. Knows layers as dataclasses
of tensors; no model, no lane.
"""

from __future__ import annotations

import shutil
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from weir.errors import ConfigError
from weir.models.base import rebuilt, tensors
from weir.runtime.pinned import host_zeros
from weir.runtime.spill import Spill, aligned

SLOTS = 3
"""Layers on the device at once: one whose attention is under way, one that is next, one coming."""
RELAYS = 2
"""Layers between disk and GPU at once."""
SMALL = 0.01
"""Share of a layer's bytes below which a tensor stays on the device."""
STRIDE = 256
"""Bytes that each tensor begins on a multiple of."""

DEVICE, HOST, DISK = range(3)


class Deal:
    """Deals out bytes over memories so that at every moment each has its share of all so far."""

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


@dataclass(slots=True, eq=False)
class Span:
    """Where in a slot a tensor lies, and what it looks like."""

    offset: int
    like: Tensor  # of its shape, strides and type, on no device

    def of(self, memory: Tensor, begins: int = 0) -> Tensor:
        """The tensor in memory that has the slot from `begins` on."""
        raw = memory[self.offset - begins :][: self.like.nbytes].view(self.like.dtype)
        return raw.as_strided(self.like.shape, self.like.stride())


@dataclass(slots=True, eq=False)
class Parked:
    """A layer, and where those of its tensors are that are not on the device."""

    layer: Any
    here: list[Tensor | None]  # in the order of `tensors`; None: elsewhere
    spans: list[Span | None]
    host: Tensor  # uint8: comes first in a slot
    start: int  # in a slot, of what is on disk
    size: int = 0  # of a slot
    offset: int = 0  # in the file

    def over(self, slot: Tensor) -> Any:
        """The layer, with the tensors that a slot brought."""
        pairs = zip(self.here, self.spans, strict=True)
        return rebuilt(self.layer, iter([t if s is None else s.of(slot) for t, s in pairs]))


@dataclass(slots=True, eq=False)
class Slot:
    memory: Tensor  # uint8 on the device
    reads: list[Future[None]] = field(default_factory=list)
    ready: torch.cuda.Event | None = None
    used: torch.cuda.Event | None = None


class Streamed:
    """Takes in `count` layers, in order, that were made on `device`; then every iteration yields
    them. What it yields may be used until the second layer after it is asked for.

    shares: of the bytes on the device, in main memory, on disk. folder: where the file is. room:
    bytes of main memory that there are for weights. Raises `ConfigError` where memory or disk have
    no room."""

    def __init__(
        self,
        count: int,
        shares: Sequence[float],
        device: torch.device,
        folder: Path | None = None,
        room: int | None = None,
    ):
        if shares[DISK] and folder is None:
            raise ConfigError("weights on disk need a folder: --offload-dir")
        self.count, self.room = count, room
        self.device = device
        self.deal = Deal(shares)
        self.spill = Spill(folder) if shares[DISK] and folder is not None else None
        self.pinned = device.type == "cuda"
        self.staging = torch.empty(0, dtype=torch.uint8)
        self.parked: list[Parked] = []
        self.moves: Copies | Reads
        self.slots: list[Slot] = []
        self.views: dict[tuple[int, int], Any] = {}
        self.free: deque[int] = deque()  # slots
        self.coming: deque[tuple[int, int]] = deque()  # layer and slot, in order
        self.held: dict[int, int] = {}  # layers in use, and their slots
        self.cycle: deque[int] = deque()  # layers to come, those that are not all on the device

    # -- loading -------------------------------------------------------------------------------

    def add(self, layer: Any) -> None:
        """Take the next layer in: tensors that stay are kept, the others are copied."""
        found = list(tensors(layer))
        total = sum(tensor.nbytes for tensor in found)
        if not self.parked:
            self._check(total * self.count)
        homes = [DEVICE if t.nbytes <= SMALL * total else self.deal.next(t.nbytes) for t in found]
        spans: list[Span | None] = [None] * len(found)
        ends = _lay(found, [i for i, home in enumerate(homes) if home == HOST], 0, spans)
        start = aligned(ends)
        size = _lay(found, [i for i, home in enumerate(homes) if home == DISK], start, spans)
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
        here = [t if span is None else None for t, span in zip(found, spans, strict=True)]
        nothing = torch.empty(0)
        shell = rebuilt(layer, iter([nothing if t is None else t for t in here]))
        self.parked.append(Parked(shell, here, spans, host, start, size, offset))

    def done(self) -> Streamed:
        """All layers are in: make the ring, and start to bring the first."""
        self.staging = torch.empty(0, dtype=torch.uint8)
        self.cycle = deque(i for i, parked in enumerate(self.parked) if parked.size)
        size = max((parked.size for parked in self.parked), default=0)
        for _ in range(min(SLOTS, len(self.cycle))):
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
        """Raise ConfigError if what is still to come will not fit."""
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
        try:
            memory = host_zeros(size, pinned=self.pinned)
        except (OSError, ValueError, RuntimeError) as error:
            raise ConfigError(
                f"main memory has no room for another {size / 2**30:.1f} GiB of weights ({error}): "
                "give the GPU or the disk a larger share"
            ) from None
        if size and self.pinned and not memory.is_pinned():
            self.pinned = False  # and is not asked for again
        return memory

    # -- serving -------------------------------------------------------------------------------

    @property
    def step_bytes(self) -> tuple[int, int]:
        """Bytes that a step brings: of main memory, and of disk."""
        host = sum(len(parked.host) for parked in self.parked)
        return host, sum(p.size - p.start for p in self.parked if p.size > p.start)

    def __len__(self) -> int:
        return len(self.parked)

    def __iter__(self) -> Iterator[Any]:
        self._begin()
        for i, parked in enumerate(self.parked):
            yield self._arrived(i) if parked.size else parked.layer
            self._release(i - 1)
            self._fetch()

    def close(self) -> None:
        """Let go of the disk. May be called twice."""
        if self.spill is not None:
            self.spill.close()

    def _begin(self) -> None:
        """What the step before held to its end is free; should it have broken off, the layers that
        it was still to have pass by."""
        for i in list(self.held):
            self._release(i)
        while self.coming and self.coming[0][0] != min(self.cycle):
            self._fetch()
            self._arrived(self.coming[0][0])
            self._release(next(iter(self.held)))
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
        """Start to bring as many layers as there are slots free."""
        while self.free:
            layer, slot = self.cycle[0], self.free.popleft()
            self.cycle.rotate(-1)
            self.moves.bring(self.parked[layer], self.slots[slot])
            self.coming.append((layer, slot))


class Reads:
    """What brings layers to main memory."""

    def __init__(self, spill: Spill | None):
        self.spill = spill

    def bring(self, parked: Parked, slot: Slot) -> None:
        slot.memory[: len(parked.host)] = parked.host
        if self.spill is not None:
            slot.reads = self.spill.read(parked.offset, slot.memory[parked.start : parked.size])

    def wait(self, slot: Slot) -> None:
        for read in slot.reads:
            read.result()

    def let_go(self, slot: Slot) -> None:
        """The host has computed with it already."""


class Copies:
    """What brings layers to a GPU, on a stream of its own: from main memory, and from disk through
    buffers that are read into ahead.

    layers: all that will be brought, in their order, again and again."""

    def __init__(self, layers: Sequence[Parked], spill: Spill | None, device: torch.device):
        self.spill = spill
        self.stream = torch.cuda.Stream(device)
        self.cycle = deque(parked for parked in layers if parked.size > parked.start)
        size = max((parked.size - parked.start for parked in self.cycle), default=0)
        self.relays = deque(
            (host_zeros(size, pinned=True), torch.cuda.Event())
            for _ in range(RELAYS if self.cycle else 0)
        )
        self.reading: deque[tuple[Tensor, torch.cuda.Event, list[Future[None]]]] = deque()
        self._read()

    def _read(self) -> None:
        while self.relays and self.spill is not None:
            parked, (relay, sent) = self.cycle[0], self.relays.popleft()
            self.cycle.rotate(-1)
            part = relay[: parked.size - parked.start]
            reads = self.spill.read(parked.offset, part, first=sent.synchronize)
            self.reading.append((relay, sent, reads))

    def bring(self, parked: Parked, slot: Slot) -> None:
        """Queue the copies; waits for what comes from disk, while the device has work."""
        if slot.used is not None:
            self.stream.wait_event(slot.used)
        with torch.cuda.stream(self.stream):
            slot.memory[: len(parked.host)].copy_(parked.host, non_blocking=True)
            if parked.size > parked.start:
                relay, sent, reads = self.reading.popleft()
                for read in reads:
                    read.result()
                part = slot.memory[parked.start : parked.size]
                part.copy_(relay[: len(part)], non_blocking=True)
                sent.record()
                self.relays.append((relay, sent))
            slot.ready = slot.ready or torch.cuda.Event()
            slot.ready.record()
        self._read()

    def wait(self, slot: Slot) -> None:
        assert slot.ready is not None
        torch.cuda.current_stream().wait_event(slot.ready)

    def let_go(self, slot: Slot) -> None:
        slot.used = slot.used or torch.cuda.Event()
        slot.used.record()


def _lay(found: list[Tensor], some: list[int], at: int, spans: list[Span | None]) -> int:
    """Lay tensors side by side from `at` on, into `spans`. → the end."""
    for i in some:
        tensor = found[i]
        begin = -(-at // STRIDE) * STRIDE
        shape, stride = tensor.shape, tensor.stride()
        like = torch.empty_strided(shape, stride, dtype=tensor.dtype, device="meta")
        spans[i], at = Span(begin, like), begin + tensor.nbytes
    return at


def _memory(size: int, device: torch.device) -> Tensor:
    if device.type == "cpu":
        return host_zeros(size)
    return torch.empty(size, dtype=torch.uint8, device=device)
