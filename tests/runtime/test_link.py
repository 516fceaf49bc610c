"""Copies beside the GPU's work are ordered as the plans are, whenever streams happen to run.

The GPU is played by queues that run their work as late, and in as odd an order, as events allow.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable

import pytest
import torch

from weir.cost import transfer
from weir.ops import pages
from weir.ops.coded import decode, encode, row_bytes
from weir.ops.pages import Paged
from weir.runtime import link as module
from weir.runtime.link import Link, Slot

CPU = torch.device("cpu")
COUNTS = [64, 128]
"""Numbers of a page in each layer."""


class Machine:
    """Streams and events. Whatever is asked of it, some of what may run does."""

    def __init__(self, seed: int):
        self.rng = random.Random(seed)
        self.streams: list[Stream] = []
        self.current = Stream(self)

    def run(self, some: int) -> bool:
        for _ in range(some):
            ready = [stream for stream in self.streams if stream.ready()]
            if not ready:
                return False
            self.rng.choice(ready).work.popleft()[1]()
        return True

    def stream(self, stream: Stream) -> Stream:
        return stream


class Stream:
    def __init__(self, machine: Machine):
        self.machine = machine
        self.work: deque[tuple[Callable[[], bool], Callable[[], None]]] = deque()
        machine.streams.append(self)

    def ready(self) -> bool:
        return bool(self.work) and self.work[0][0]()

    def put(self, run: Callable[[], None], may: Callable[[], bool] = lambda: True) -> None:
        self.work.append((may, run))
        self.machine.run(self.machine.rng.choice([0, 0, 1, 3]))

    def wait_event(self, event: Event) -> None:
        wanted = event.recorded
        self.put(lambda: None, lambda: event.reached >= wanted)

    def record_event(self, event: Event | None = None) -> Event:
        event = event or Event(self.machine)
        event.record(self)
        return event

    def __enter__(self) -> None:
        self.outer, self.machine.current = self.machine.current, self

    def __exit__(self, *_: object) -> None:
        self.machine.current = self.outer


class Event:
    def __init__(self, machine: Machine):
        self.machine = machine
        self.recorded = self.reached = 0

    def record(self, stream: Stream | None = None) -> None:
        self.recorded += 1
        number = self.recorded

        def reach() -> None:
            self.reached = max(self.reached, number)

        (stream or self.machine.current).put(reach)

    def query(self) -> bool:
        self.machine.run(self.machine.rng.choice([0, 1]))
        return self.reached == self.recorded

    def synchronize(self) -> None:
        while self.reached < self.recorded:
            assert self.machine.run(1), "waits for ever"

    def elapsed_time(self, other: Event) -> float:
        assert self.reached == self.recorded and other.reached == other.recorded
        return 1.0


def begin(slot: Slot, gpu: list[int], host: list[int]) -> tuple[torch.Tensor, ...]:
    """As Slot.begin, but that the copy of the page numbers is queued too."""
    torch.cuda.current_stream().wait_event(slot.free)
    numbers = slot.numbers[:, : len(gpu)]
    torch.cuda.current_stream().put(lambda: numbers.copy_(torch.tensor((gpu, host))))
    return slot.records[: len(gpu)], numbers[0], numbers[1]


@pytest.fixture(params=range(40))
def machine(request, monkeypatch) -> Machine:
    made = Machine(request.param)
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: Stream(made))
    monkeypatch.setattr(torch.cuda, "Event", lambda enable_timing=False: Event(made))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: made.current)
    monkeypatch.setattr(torch.cuda, "stream", made.stream)
    monkeypatch.setattr(Slot, "begin", begin)
    monkeypatch.setattr(transfer, "SLOT", 3 * host_pages().record)
    monkeypatch.setattr(module, "SLOTS", made.rng.choice([1, 2, 4]))
    for name in ("pack", "unpack"):
        function = getattr(pages, name)
        monkeypatch.setattr(
            module,
            name,
            lambda paged, at, records, programs=0, function=function: made.current.put(
                lambda: function(paged, at, records)
            ),
        )
    return made


def gpu_pages(coded: torch.dtype | None) -> Paged:
    memory = torch.zeros(12 * 4 * sum(COUNTS), dtype=torch.uint8)
    return Paged(memory, [4 * count for count in COUNTS], 12, CPU, torch.float32, coded)


def host_pages(coded: torch.dtype | None = None) -> Paged:
    sizes = [row_bytes(coded or torch.float32, count) for count in COUNTS]
    return Paged(torch.zeros(64 * sum(sizes), dtype=torch.uint8), sizes, 64, CPU)


def numbers(paged: Paged, page: int, coded: torch.dtype | None) -> torch.Tensor:
    layers = [layer[page] for layer in paged.layers]
    return torch.cat([decode(x, coded) if coded else x.view(torch.float32) for x in layers])


def fill(paged: Paged, page: int, mark: int, coded: torch.dtype | None) -> None:
    for layer, count in zip(paged.layers, COUNTS, strict=True):
        x = torch.full((count,), float(mark))
        layer[page] = encode(x, coded) if coded else x.view(torch.uint8)


@pytest.mark.parametrize("coded", [None, torch.int4])  # whose groups of equal numbers are exact
def test_pages_hold_what_they_would_if_nothing_ran_beside_anything(
    machine: Machine, coded: torch.dtype | None
) -> None:
    rng, gpu, host = machine.rng, gpu_pages(coded), host_pages(coded)
    link = Link(gpu, host)
    want = {"gpu": [0] * 12, "host": [0] * 64}
    compute = machine.current

    def check(side: Paged, page: int, mark: int) -> None:
        assert numbers(side, page, coded if side is host else None).eq(mark).all()

    for step in range(1, 120):
        for _ in range(rng.randrange(3)):
            count = rng.randrange(1, 9)
            here, there = rng.sample(range(12), count), rng.sample(range(20), count)
            if rng.random() < 0.5:
                link.save(here, there)
                for a, b in zip(here, there, strict=True):
                    want["host"][b] = want["gpu"][a]
            else:
                link.load(there, here)
                for a, b in zip(here, there, strict=True):
                    want["gpu"][a] = want["host"][b]
        for page in rng.sample(range(12), 4):  # a step: reads, then writes
            mark = want["gpu"][page]
            compute.put(lambda page=page, mark=mark: check(gpu, page, mark))
        for page in rng.sample(range(12), 3):
            want["gpu"][page] = step
            compute.put(lambda page=page, mark=step: fill(gpu, page, mark, None))
        if rng.random() < 0.2:  # the host reads and writes
            some = rng.sample(range(20), 5)
            link.settle(some)
            for page in some:
                check(host, page, want["host"][page])
                want["host"][page] = 200 + page
                fill(host, page, 200 + page, coded)
    while machine.run(1):
        pass
    assert not any(stream.work for stream in machine.streams)
    for page in range(12):
        check(gpu, page, want["gpu"][page])
    for page in range(64):
        check(host, page, want["host"][page])
    size, seconds = link.loaded()
    assert size > 0 and seconds > 0 and not link.timers
