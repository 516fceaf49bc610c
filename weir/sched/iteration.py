"""What one call of `plan` gathers, the order it was made in, and who of those that wait comes."""

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
    began: list[Entry] = field(init=False)  # with these running, in order
    budget: Budget = field(default_factory=lambda: Budget(0, 0))
    chunks: list[Chunk] = field(default_factory=list)
    moves: list[Move] = field(default_factory=list)
    evicted: dict[int, Request] = field(default_factory=dict)
    offered: list[Request] = field(default_factory=list)  # of those who wait: back if not run
    prompts: int = 0  # chunks of prompts
    kept: int = 0  # pages for those whose prefix is on its way

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
        """Ready and waiting requests, merged in order."""
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
        """May the first of those who wait be offered? Not once newcomers are shut out, or what is
        left of the budget belongs to decodes, or as many run as may and none ranks after it."""
        if self.budget.closed or self.budget.tokens <= self.budget.owed:
            return False
        return not self.full or first[0] < self.began[-1][0]

    def _offer(self, first: Entry) -> Request:
        r = first[1]
        self.waiting.discard(r)
        self.offered.append(r)
        return r

    def after(self, key: Key, r: Request) -> Iterator[Request]:
        """Running requests that rank after `r`, at `key`, and are not in the plan, from the last.
        They are many, and the first will often do."""
        for place, other in reversed(self.began):
            if place <= key:
                return
            if other.running and other.done is None and other is not r and other.last < self.step:
                yield other
