"""The state of one call of `Scheduler.plan`: what it has gathered, and who comes next."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from weir.core import Chunk, Move, Request
from weir.sched.composer import Budget
from weir.sched.ranking import Key
from weir.sched.running import Running
from weir.sched.waiting import Entry, Waiting


@dataclass(slots=True)
class Iteration:
    step: int
    now: float
    running: Running
    waiting: Waiting
    most: int  # requests that may run at once
    began: list[Entry] = field(init=False)  # those running at the beginning, in order
    budget: Budget = field(default_factory=lambda: Budget(0, 0))
    chunks: list[Chunk] = field(default_factory=list)
    moves: list[Move] = field(default_factory=list)
    evicted: dict[int, Request] = field(default_factory=dict)
    offered: list[Request] = field(default_factory=list)  # taken from `waiting`; back if not run
    prompts: int = 0  # chunks of prompts
    kept: int = 0  # pages reserved for those whose prefixes are being loaded

    def __post_init__(self) -> None:
        self.began = self.running.ranked()

    @property
    def full(self) -> bool:
        return len(self.running) >= self.most

    def take(self, chunk: Chunk, length: int) -> None:
        budget = self.budget
        budget.tokens -= length
        budget.requests -= 1
        budget.taken += 1
        self.chunks.append(chunk)

    def ranked(self, ready: list[Entry]) -> Iterator[Request]:
        """Ready and waiting requests, merged in rank order."""
        first = self.waiting.first()
        for key, r in ready:
            while first is not None and first[0] < key and self._admits(first):
                yield self._offer(first)
                first = self.waiting.first()
            if r.uid not in self.evicted:
                yield r
        while (first := self.waiting.first()) is not None and self._admits(first):
            yield self._offer(first)

    def _admits(self, first: Entry) -> bool:
        """Whether the first waiting request may be offered: not once the budget is closed, what is
        left of it belongs to decodes, or all slots are taken by requests that rank before it."""
        if self.budget.closed or self.budget.tokens <= self.budget.owed:
            return False
        return not self.full or first[0] < self.began[-1][0]

    def _offer(self, first: Entry) -> Request:
        r = first[1]
        self.waiting.discard(r)
        self.offered.append(r)
        return r

    def after(self, key: Key, r: Request) -> Iterator[Request]:
        """Running requests, last first, that rank after `r` (at `key`) and are not in the plan.
        Lazy: they are many, and often the first is enough."""
        for place, other in reversed(self.began):
            if place <= key:
                return
            if other.running and other.done is None and other is not r and other.last < self.step:
                yield other
