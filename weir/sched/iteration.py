"""What one call of `plan` gathers, and the order it was made in."""

from collections.abc import Iterator

from weir.core import Budget, Chunk, Move, Request
from weir.sched.ranking import Key
from weir.sched.waiting import Entry


class Iteration:
    __slots__ = (
        "budget",
        "chunks",
        "evicted",
        "kept",
        "moves",
        "offered",
        "prompts",
        "running",
        "step",
    )

    def __init__(self, step: int, running: list[Entry]):
        self.step = step
        self.running = running  # when the plan was begun, in order
        self.budget = Budget(0, 0)
        self.chunks: list[Chunk] = []
        self.moves: list[Move] = []
        self.evicted: dict[int, Request] = {}
        self.offered: list[Request] = []  # taken from those who wait, to be put back if not run
        self.prompts = 0  # chunks of prompts
        self.kept = 0  # pages for those whose prefix is on its way

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
