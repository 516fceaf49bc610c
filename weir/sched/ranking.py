"""Who goes first: an order of live requests, and the policies that need nothing but the request.

Wrappers (`fair`, `aging`, `queued`) go around any of these and put something in front of its keys.
A ranking knows requests and, where it looks for prefixes, the cache; no budget and no clock: its
time is the number of steps.
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
    """A request stands at the `place` of its group, then at its key, then at its arrival; smaller
    goes first.

    So that thousands may wait without being looked at, group and key of a request that waits must
    not change unless `before` says so. What changes for many at once belongs in the place of a
    group, which is read when it matters, and which never falls while members wait.
    """

    def key(self, r: Request) -> Key:
        """The order of a ranking without groups."""
        raise NotImplementedError

    def rank(self, requests: Sequence[Request]) -> list[Rank]:
        """Of each, its group and its key there. Keys of any two requests of a group compare. All
        that run are ranked at once in every step, so a call a request is dear."""
        return [((), self.key(r)) for r in requests]

    def place(self, group: Group) -> Key:
        return ()

    @property
    def layers(self) -> list[Ranking]:
        """This ranking and those inside. Each of them hears what happens to requests."""
        return [self]

    def enter(self, r: Request) -> None:
        """`r` begins to wait: it has arrived, or lost its pages."""

    def before(self, step: int, waiting: Collection[Request]) -> Iterable[Request]:
        """Called once a plan, with the step that it will be. Returns whose keys have changed, of
        those who wait."""
        return ()

    def served(self, r: Request, length: int) -> None:
        """`length` tokens of `r` are in the plan. `r.sampled`: it will have another token."""

    def leave(self, r: Request) -> None:
        """`r` has ended."""

    @property
    def degraded(self) -> str:
        """Why it ranks otherwise than it was told to; empty: it does not."""
        return ""


@dataclass(slots=True)
class Around(Ranking):
    """A ranking that changes something about another."""

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
    """Where each stands among all live requests. No two stand in the same place."""
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
    """Multi-level feedback queues: who has had fewer tokens goes first, by levels, each `growth`
    times as long as the one before; the first holds `quantum` tokens, the last of LEVELS any
    number. Nothing need be known of a request, but each level it falls costs the memory of those
    that it overtakes."""

    quantum: int = 16
    growth: int = 2
    ends: list[int] = field(init=False)  # tokens with which each level but the last has ended

    def __post_init__(self) -> None:
        sizes = (self.quantum * self.growth**level for level in range(LEVELS))
        self.ends = list(accumulate(sizes))

    def rank(self, requests: Sequence[Request]) -> list[Rank]:
        ends = self.ends
        return [((), (r.priority, bisect_right(ends, len(r.tokens) - r.prompt))) for r in requests]
