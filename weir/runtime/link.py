"""Moves pages between a GPU's memory and pinned memory while the GPU computes.

Pages pass through a few slots on the GPU. Pages that leave are packed there in plan order, so they
may be overwritten at once, and are copied to the host while the next plans run. Pages that arrive
are copied to a slot while earlier plans run and unpacked when their own plan begins. So a step
waits for the link only if more arrives than fits the slots, and all accesses are in plan order.

Knows page numbers and bytes, no request.
"""

from collections import deque
from collections.abc import Sequence

import torch
from torch import Tensor

from weir.cost.transfer import SLOTS, slot_rows
from weir.ops.pages import Paged, pack, unpack

PROGRAMS = 16
"""Programs of a kernel that reads or writes host memory."""


class Slot:
    """records: uint8 [n, record] on the GPU. numbers: int64 [2, n], their pages on either side.
    free: when both may be overwritten."""

    def __init__(self, rows: int, record: int, device: torch.device):
        self.records = torch.empty(rows, record, dtype=torch.uint8, device=device)
        self.numbers = torch.empty(2, rows, dtype=torch.int64, device=device)
        self.free = torch.cuda.Event()

    def begin(self, gpu: Sequence[int], host: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
        """Records, then the GPU's page numbers, then the host's, for the current stream to use."""
        count = len(gpu)
        torch.cuda.current_stream().wait_event(self.free)
        numbers = self.numbers[:, :count]
        numbers.copy_(torch.tensor((gpu, host), pin_memory=True), non_blocking=True)
        return self.records[:count], numbers[0], numbers[1]


class Way:
    """One direction of the link: its stream, slots, and host pages of unfinished copies."""

    def __init__(self, rows: int, record: int, device: torch.device):
        self.stream = torch.cuda.Stream(device)
        self.slots = deque(Slot(rows, record, device) for _ in range(SLOTS))
        self.busy: deque[tuple[torch.cuda.Event, set[int]]] = deque()

    def next(self) -> Slot:
        """The least recently used slot."""
        self.slots.rotate(-1)
        return self.slots[-1]

    def begin(self, pages: Sequence[int]) -> torch.cuda.Event:
        """Announce a copy of these host pages. Returns its end, to record before other calls."""
        self._forget()
        self.busy.append((torch.cuda.Event(enable_timing=True), set(pages)))
        return self.busy[-1][0]

    def touches(self, pages: Sequence[int]) -> torch.cuda.Event | None:
        """The end of the last unfinished copy that touches any of these host pages."""
        self._forget()
        return next(
            (done for done, mine in reversed(self.busy) if not mine.isdisjoint(pages)), None
        )

    def _forget(self) -> None:
        while self.busy and self.busy[0][0].query():
            self.busy.popleft()


class Link:
    """gpu, host: the pages on either side; their records have the same size."""

    def __init__(self, gpu: Paged, host: Paged):
        self.gpu, self.host = gpu, host
        self.rows = slot_rows(host.record, host.count)
        self.down, self.up = (Way(self.rows, gpu.record, gpu.device) for _ in range(2))
        self.timers: deque[tuple[torch.cuda.Event, torch.cuda.Event, int]] = deque()
        self.loaded_bytes, self.loaded_seconds = 0, 0.0

    def save(self, sources: Sequence[int], targets: Sequence[int]) -> None:
        """Copy pages of the GPU to pages of the host, later."""
        compute, way = torch.cuda.current_stream(), self.down
        for first in range(0, len(sources), self.rows):
            here, there = (pages[first : first + self.rows] for pages in (sources, targets))
            slot, done = way.next(), way.begin(there)
            records, on_gpu, on_host = slot.begin(here, there)
            pack(self.gpu, on_gpu, records)
            packed = compute.record_event()
            with torch.cuda.stream(way.stream):
                way.stream.wait_event(
                    packed
                )  # so after loads from these pages, which it waited for
                unpack(self.host, on_host, records, programs=PROGRAMS)
                done.record()
                slot.free.record()

    def load(self, sources: Sequence[int], targets: Sequence[int]) -> None:
        """Copy pages of the host to pages of the GPU; work queued later may read them."""
        compute, way = torch.cuda.current_stream(), self.up
        for first in range(0, len(sources), self.rows):
            there, here = (pages[first : first + self.rows] for pages in (sources, targets))
            slot, saved, done = way.next(), self.down.touches(there), way.begin(there)
            with torch.cuda.stream(way.stream):
                records, on_gpu, on_host = slot.begin(here, there)
                if saved is not None:
                    way.stream.wait_event(saved)
                began = way.stream.record_event(torch.cuda.Event(enable_timing=True))
                pack(self.host, on_host, records, programs=PROGRAMS)
                done.record()
            self.timers.append((began, done, records.numel()))
            compute.wait_event(done)
            unpack(self.gpu, on_gpu, records)
            slot.free.record()

    def settle(self, pages: Sequence[int]) -> None:
        """Wait until no unfinished copy touches these host pages."""
        for way in (self.down, self.up):
            if (event := way.touches(pages)) is not None:
                event.synchronize()

    def loaded(self) -> tuple[int, float]:
        """Bytes copied to the GPU so far, and the seconds that these copies took."""
        while self.timers and self.timers[0][1].query():
            began, done, size = self.timers.popleft()
            self.loaded_bytes += size
            self.loaded_seconds += began.elapsed_time(done) / 1e3
        return self.loaded_bytes, self.loaded_seconds
