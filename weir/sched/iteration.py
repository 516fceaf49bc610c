"""What one call of `plan` gathers, and the order it was made in."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from weir.core import Budget, Chunk, Move, Request
from weir.sched.ranking import Key
from weir.sched.waiting import Entry


@dataclass(slots=True)
class Iteration:
    step: int
    running: list[Entry]  # when the plan was begun, in order
    budget: Budget = field(default_factory=lambda: Budget(0, 0))
    chunks: list[Chunk] = field(default_factory=list)
    moves: list[Move] = field(default_factory=list)
    evicted: dict[int, Request] = field(default_factory=dict)
    offered: list[Request] = field(default_factory=list)  # of those who wait: back if not run
    prompts: int = 0  # chunks of prompts
    kept: int = 0  # pages for those whose prefix is on its way

    def take(self, chunk: Chunk, length: int) -> None:
        budget = self.budget
        budget.tokens -= length
        budget.requests -= 1
        budget.taken += 1
        self.chunks.append(chunk)

    def after(self, key: Key, r: Request) -> Iterator[Request]:
        """Running requests that rank after `r`, at `key`, and are not in the plan, from the last.
        They are many, and the first will often do."""
        for place, other in reversed(self.running):
            if place <= key:
                return
            if other.running and other.done is None and other is not r and other.last < self.step:
                yield other
