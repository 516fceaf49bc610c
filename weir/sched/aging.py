"""Nobody starves: orders that change with how long requests wait, and with how many do."""

from __future__ import annotations

import heapq
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

from weir.core import Request
from weir.sched.ranking import Around, Group, Key

MOST = 64  # requests that may be looked at, and so promoted, for one plan
SLOWEST = 1 / 1024  # requests in a step that patience counts on at least


@dataclass(slots=True)
class Age:
    request: Request
    last: int  # the step that served it last, or in which it came
    there: int  # requests that were there when it came
    turn: int = 0  # when it was promoted: first promoted, first served
    quantum: int = 0  # tokens that it may still have as promoted; 0: it is not


@dataclass(slots=True)
class Aging(Around):
    """Whoever has been in no step for `threshold` steps goes before all others, in any class, until
    it has had `quantum` tokens (arXiv 2408.15792, Algorithm 1). Between promoted requests it is
    first promoted, first served.

    patience: so many times longer may it take than ending all who were there when one came, at the
    rate at which requests now end: so long it would wait in first come, first served. Without
    patience a crowd ages as one, and takes turns instead of being served.

    Tokens are counted and not steps, so that a long prompt does not use up its turn before its
    first token. A request is looked at when it may be due, not in every step.

    With N promoted before it, S that may run at once and memory for S of them, a request starts to
    run after at most threshold + N / 64 + (N // S + 1) (quantum + P) steps, where P is what
    prefilling S prompts takes: however long the answers are, and whoever comes after. Patience adds
    to that what it says, and at most threshold steps until somebody looks again."""

    threshold: int = 200
    quantum: int = 10
    patience: float = 0.0
    step: int = 0
    ended: int = 0  # since the last step
    rate: float = 1.0  # requests that end in a step, slowly moving
    turns: int = 0
    ages: dict[int, Age] = field(default_factory=dict)
    due: list[tuple[int, int]] = field(default_factory=list)  # heap of (step, uid), one a request

    def rank(self, r: Request) -> tuple[Group, Key]:
        age = self.ages.get(r.uid)
        if age is not None and age.quantum:
            return (True,), (age.turn,)
        group, key = self.inner.rank(r)
        return (False, *group), key

    def place(self, group: Group) -> Key:
        return (0,) if group[0] else (1, *self.inner.place(group[1:]))

    def enter(self, r: Request) -> None:
        if r.uid not in self.ages:
            self.ages[r.uid] = Age(r, self.step, len(self.ages))
            heapq.heappush(self.due, (self.step + self.threshold, r.uid))
        self.inner.enter(r)

    def before(self, step: int, waiting: Collection[Request]) -> Iterable[Request]:
        self.step = step
        self.rate += (self.ended - self.rate) / 256
        self.ended = 0
        moved = list(self.inner.before(step, waiting))
        each = self.patience / max(SLOWEST, self.rate)
        for _ in range(MOST):
            if not self.due or self.due[0][0] > step:
                break
            age = self.ages.get(heapq.heappop(self.due)[1])
            if age is None:
                continue
            if (when := age.last + self.threshold + int(each * age.there)) > step:
                heapq.heappush(self.due, (min(when, step + self.threshold), age.request.uid))
                continue
            self.turns += 1
            age.turn, age.quantum = self.turns, self.quantum
            moved.append(age.request)
        return moved

    def served(self, r: Request, length: int) -> None:
        age = self.ages[r.uid]
        age.last = self.step
        if age.quantum and r.sampled:
            age.quantum -= 1
            if not age.quantum:
                heapq.heappush(self.due, (self.step + self.threshold, r.uid))
        self.inner.served(r, length)

    def leave(self, r: Request) -> None:
        self.ages.pop(r.uid, None)
        self.ended += 1
        self.inner.leave(r)


@dataclass(slots=True)
class Queued(Around):
    """`inner` once `least` requests wait, until fewer than half as many do; before and after that,
    order hardly matters and it is first come, first served."""

    least: int = 32
    on: bool = False

    def rank(self, r: Request) -> tuple[Group, Key]:
        return self.inner.rank(r) if self.on else ((), (r.priority, not r.running))

    def place(self, group: Group) -> Key:
        return self.inner.place(group) if self.on else ()

    def before(self, step: int, waiting: Collection[Request]) -> Iterable[Request]:
        moved = self.inner.before(step, waiting)
        was = self.on
        self.on = len(waiting) >= (self.least / 2 if was else self.least)
        if self.on != was:
            return list(waiting)
        return moved if self.on else ()
