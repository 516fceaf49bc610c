"""Nobody starves: orders that change with how long requests wait, and with how many do."""

import heapq
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field

from weir.core import Request
from weir.sched.ranking import Around, Group, Key, Rank

MOST = 64  # requests that may be looked at, and so promoted, for one plan
SLOWEST = 1 / 1024  # requests in a step that patience counts on at least


@dataclass(slots=True)
class Age:
    request: Request
    came: int  # the step in which it came
    there: int  # requests that were there then
    turn: int = 0  # when it was promoted: first promoted, first served
    upto: int = 0  # length at which its turn ends


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
    promoted: dict[int, Age] = field(default_factory=dict)
    due: list[tuple[int, int]] = field(default_factory=list)  # heap of (step, uid), one a request

    def rank(self, requests: Sequence[Request]) -> list[Rank]:
        ranks = [((False, *group), key) for group, key in self.inner.rank(requests)]
        if self.promoted:
            for i, r in enumerate(requests):
                if (age := self.promoted.get(r.uid)) is not None:
                    ranks[i] = (True,), (age.turn,)
        return ranks

    def place(self, group: Group) -> Key:
        return (0,) if group[0] else (1, *self.inner.place(group[1:]))

    def enter(self, r: Request) -> None:
        if r.uid not in self.ages:
            self.ages[r.uid] = Age(r, self.step, len(self.ages))
            heapq.heappush(self.due, (self.step + self.threshold, r.uid))

    def before(self, step: int, waiting: Collection[Request]) -> Iterable[Request]:
        self.step = step
        self.rate += (self.ended - self.rate) / 256
        self.ended = 0
        return [*self.inner.before(step, waiting), *self._demote(), *self._promote()]

    def _demote(self) -> list[Request]:
        """End the turns that are used up."""
        over = [age.request for age in self.promoted.values() if self._over(age)]
        for r in over:
            del self.promoted[r.uid]
            heapq.heappush(self.due, (r.last + self.threshold, r.uid))
        return over

    @staticmethod
    def _over(age: Age) -> bool:
        return len(age.request.tokens) >= age.upto

    def _promote(self) -> list[Request]:
        """Look at those who may be due."""
        each = self.patience / max(SLOWEST, self.rate)
        step, moved = self.step, []
        for _ in range(MOST):
            if not self.due or self.due[0][0] > step:
                break
            age = self.ages.get(heapq.heappop(self.due)[1])
            if age is None:
                continue
            r = age.request
            last = max(age.came, r.last)
            if (when := last + self.threshold + int(each * age.there)) > step:
                heapq.heappush(self.due, (min(when, step + self.threshold), r.uid))
                continue
            self.turns += 1
            age.turn, age.upto = self.turns, len(r.tokens) + self.quantum
            self.promoted[r.uid] = age
            moved.append(r)
        return moved

    def leave(self, r: Request) -> None:
        self.ages.pop(r.uid, None)
        self.promoted.pop(r.uid, None)
        self.ended += 1


@dataclass(slots=True)
class Queued(Around):
    """`inner` once `least` requests wait, until fewer than half as many do; before and after that,
    order hardly matters and it is first come, first served."""

    least: int = 32
    on: bool = False

    def rank(self, requests: Sequence[Request]) -> list[Rank]:
        if self.on:
            return self.inner.rank(requests)
        return [((), (r.priority, not r.running)) for r in requests]

    def place(self, group: Group) -> Key:
        return self.inner.place(group) if self.on else ()

    def before(self, step: int, waiting: Collection[Request]) -> Iterable[Request]:
        moved = self.inner.before(step, waiting)
        was = self.on
        self.on = len(waiting) >= (self.least / 2 if was else self.least)
        if self.on != was:
            return list(waiting)
        return moved if self.on else ()
