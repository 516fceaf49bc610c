"""Fair sharing between tenants, by the tokens they were served (Sheng et al., OSDI 2024)."""

import heapq
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from weir.core import Request
from weir.sched.ranking import Around, Group, Key, Rank

KEPT = 512  # tenants that are remembered while they have no request


@dataclass(slots=True)
class Fair(Around):
    """Of the tenants that wait, the one that was served fewest tokens by weight goes first; `inner`
    orders the requests of one tenant. A tenant is a request's `user`.

    weights: a tenant with weight 2 is served twice the tokens of one with weight 1, the default.

    Tenants that wait all the time are served alike but for what fits into a batch. One that did not
    wait is lifted to the least served of those that do, so idling earns no credit. Fairness admits
    and chooses who makes room; it preempts nobody for a newcomer, as turns would otherwise change
    hands at every token."""

    weights: Mapping[str, float] = field(default_factory=dict)
    counters: dict[str, float] = field(default_factory=dict)  # tokens served, over the weight
    queued: set[int] = field(default_factory=set)  # uids of those that wait
    waiting: Counter[str] = field(default_factory=Counter)  # requests of each tenant that wait
    live: Counter[str] = field(default_factory=Counter)  # requests of each tenant
    floor: float = 0.0  # what the least served of those that waited last had
    least: list[tuple[float, str]] = field(default_factory=list)  # heap of those that wait

    def rank(self, requests: Sequence[Request]) -> list[Rank]:
        return [
            ((not r.running, r.user, *group), key)
            for r, (group, key) in zip(requests, self.inner.rank(requests), strict=True)
        ]

    def place(self, group: Group) -> Key:
        waits, user, *inner = group
        return (waits, self.counters.get(user, 0.0), *self.inner.place(tuple(inner)))

    def enter(self, r: Request) -> None:
        user = r.user
        if r.preempted == 0:
            self.live[user] += 1
        if not self.waiting[user]:
            counter = max(self.counters.get(user, 0.0), self._least())
            self.counters[user] = counter
            heapq.heappush(self.least, (counter, user))
        self.waiting[user] += 1
        self.queued.add(r.uid)

    def served(self, r: Request, length: int) -> None:
        self.counters[r.user] += length / self.weights.get(r.user, 1.0)
        self._admitted(r)

    def leave(self, r: Request) -> None:
        self._admitted(r)
        self.live[r.user] -= 1
        if not self.live[r.user]:
            del self.live[r.user]
            if len(self.counters) > 2 * (len(self.live) + KEPT):
                self._tidy()

    def _admitted(self, r: Request) -> None:
        if r.uid in self.queued:
            self.queued.discard(r.uid)
            self.waiting[r.user] -= 1
            if not self.waiting[r.user]:
                del self.waiting[r.user]

    def _tidy(self) -> None:
        """Forget the least served of those who are gone: they have the least to make up for."""
        gone = [user for user in self.counters if user not in self.live]
        gone.sort(key=self.counters.__getitem__)
        for user in gone[:-KEPT]:
            del self.counters[user]

    def _least(self) -> float:
        """The counter of the least served tenant that waits, or what it was when one last did."""
        while self.least:
            counter, user = self.least[0]
            now = self.counters.get(user, 0.0)
            if not self.waiting[user]:
                heapq.heappop(self.least)
            elif now > counter:
                heapq.heapreplace(self.least, (now, user))
            else:
                self.floor = max(self.floor, counter)
                break
        return self.floor
