"""Layers whose tensors are partly off their device, and the copies that bring them there.

The tensors of a layer in main memory lie side by side, and so do those on disk, so bringing a layer
takes one copy and one read. Knows layers as dataclasses of tensors, and slots of memory; the order
of layers is the caller's.
"""

from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from weir.cost.offload import RELAYS
from weir.models.base import rebuilt
from weir.runtime.pinned import host_zeros
from weir.runtime.spill import Spill

STRIDE = 256
"""Alignment of each tensor, in bytes."""


@dataclass(slots=True, eq=False)
class Span:
    """The place of a tensor in a slot, and its form."""

    offset: int
    like: Tensor  # on the meta device: shape, strides and dtype

    def of(self, memory: Tensor, begins: int = 0) -> Tensor:
        """The tensor as a view of `memory`, which holds the slot's bytes from `begins` on."""
        raw = memory[self.offset - begins :][: self.like.nbytes].view(self.like.dtype)
        return raw.as_strided(self.like.shape, self.like.stride())


@dataclass(slots=True, eq=False)
class Parked:
    """A layer, some of whose tensors are in main memory or on disk."""

    layer: Any
    here: list[Tensor | None]  # those on the device, in the order of `tensors`; None: elsewhere
    spans: list[Span | None]  # those elsewhere
    host: Tensor  # uint8: the part in main memory, first in a slot
    start: int  # where the part on disk begins in a slot
    size: int = 0  # bytes used of a slot; 0: all tensors are on the device
    offset: int = 0  # of the part on disk, in the file

    def over(self, slot: Tensor) -> Any:
        """The layer, with the missing tensors as views of a filled slot."""
        pairs = zip(self.here, self.spans, strict=True)
        return rebuilt(self.layer, iter([t if s is None else s.of(slot) for t, s in pairs]))


@dataclass(slots=True, eq=False)
class Slot:
    memory: Tensor  # uint8 on the device
    reads: list[Future[None]] = field(default_factory=list)
    ready: torch.cuda.Event | None = None
    used: torch.cuda.Event | None = None


def lay(found: list[Tensor], some: list[int], at: int, spans: list[Span | None]) -> int:
    """Set `spans[i]` for i in `some`: tensors found[i] side by side from `at` on. → the end."""
    for i in some:
        tensor = found[i]
        begin = -(-at // STRIDE) * STRIDE
        shape, stride = tensor.shape, tensor.stride()
        like = torch.empty_strided(shape, stride, dtype=tensor.dtype, device="meta")
        spans[i], at = Span(begin, like), begin + tensor.nbytes
    return at


class Reads:
    """Brings layers to slots in main memory."""

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
        """Nothing to do: the host's computation with it has ended."""


class Copies:
    """Brings layers to slots on a GPU, on a stream of its own. Parts on disk are read ahead into
    pinned buffers.

    layers: all that will be brought, in the order that repeats."""

    def __init__(self, layers: Sequence[Parked], spill: Spill | None, device: torch.device):
        self.spill = spill
        self.stream = torch.cuda.Stream(device)
        self.stream.wait_stream(torch.cuda.current_stream(device))  # may still use slots' memory
        self.cycle = deque(parked for parked in layers if parked.size > parked.start)
        size = max((parked.size - parked.start for parked in self.cycle), default=0)
        self.relays = deque(
            (host_zeros(size, pinned=True, part=size), torch.cuda.Event())
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
        """Queue the copies. Waits for reads from disk; meanwhile the device has work."""
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
