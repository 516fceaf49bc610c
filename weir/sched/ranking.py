"""The order of live requests, and the rankings that need nothing but the request.

Wrappers (`fair`, `aging`, `queued`) go around any ranking and prepend to its keys. A ranking knows
requests and, if it looks for prefixes, the cache. It knows no budget and no clock: its unit of
time is the step.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

from weir.core import Request

Key = tuple[Any, ...]
Group = tuple[Any, ...]
Rank = tuple[Group, Key]

LEVELS = 64  # of feedback queues


class Ranking:
    """Orders requests by the `place` of their group, then by key, then by arrival; the smallest
    goes first.

    Thousands may wait without being looked at, so the group and key of a waiting request must not
    change unless `before` says so. What changes for many at once belongs in the place of a group,
    which is read on demand and must never decrease while members wait.
    """

    def key(self, r: Request) -> Key:
        """The key of a request in a ranking without groups."""
        raise NotImplementedError

    def rank(self, requests: Sequence[Request]) -> list[Rank]:
        """The group and key of each request. Keys of one group are comparable. Every step ranks all
        running requests in one call, so avoid a call per request."""
        return [((), self.key(r)) for r in requests]

    def place(self, group: Group) -> Key:
        return ()

    @property
    def layers(self) -> list[Ranking]:
        """This ranking and those inside it. Each is told what happens to requests."""
        return [self]

    def enter(self, r: Request) -> None:
        """`r` begins to wait: it has arrived, or lost its pages."""

    def before(self, step: int, waiting: Collection[Request]) -> Iterable[Request]:
        """Called before each plan with its step. Returns the waiting requests whose keys have
        changed."""
        return ()

    def served(self, r: Request, length: int) -> None:
        """`length` tokens of `r` are in the plan. If `r.sampled`, it will have one more token."""

    def leave(self, r: Request) -> None:
        """`r` has ended."""

    @property
    def degraded(self) -> str:
        """Why it cannot rank as configured; empty if it does."""
        return ""


@dataclass(slots=True)
class Around(Ranking):
    """A ranking that wraps another."""

    inner: Ranking

    @property
    def layers(self) -> list[Ranking]:
        return [self, *self.inner.layers]

    def rank(self, requests: Sequence[Request]) -> list[Rank]:
        return self.inner.rank(requests)

    def place(self, group: Group) -> Key:
        return self.inner.place(group)

    def before(self, step: int, waiting: Collection[Request]) -> Iterable[Request]:
        return self.inner.before(step, waiting)

    @property
    def degraded(self) -> str:
        return self.inner.degraded


def order(ranking: Ranking, requests: Sequence[Request]) -> list[Key]:
    """The sort key of each among all live requests. All are different."""
    ranks = ranking.rank(requests)
    places = {group: ranking.place(group) for group in {group for group, _ in ranks}}
    return [
        (*places[group], *key, r.arrival, r.uid)
        for r, (group, key) in zip(requests, ranks, strict=True)
    ]


@dataclass(frozen=True, slots=True)
class FCFS(Ranking):
    """First come, first served, within a priority class."""

    def key(self, r: Request) -> Key:
        return (r.priority,)


@dataclass(slots=True)
class Feedback(Ranking):
    """Multi-level feedback queues: requests with fewer output tokens go first, by level. The first
    level lasts `quantum` tokens, each next one `growth` times as long, the last of LEVELS for ever.
    Needs no prediction, but whoever falls a level may be preempted by those that overtake it."""

    quantum: int = 16
    growth: int = 2
    ends: list[int] = field(init=False)  # output tokens at which each level but the last ends

    def __post_init__(self) -> None:
        sizes = (self.quantum * self.growth**level for level in range(LEVELS))
        self.ends = list(accumulate(sizes))

    def rank(self, requests: Sequence[Request]) -> list[Rank]:
        ends = self.ends
        return [((), (r.priority, bisect_right(ends, len(r.tokens) - r.prompt))) for r in requests]
