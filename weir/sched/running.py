"""The requests that hold pages; starts, preempts and stops them."""

from collections import Counter
from collections.abc import Collection, Iterator

from weir.core import Request
from weir.kv.cache import Cache
from weir.sched.ranking import Ranking, order
from weir.sched.waiting import Entry


class Running(Collection[Request]):
    """Counts as it goes, in tokens: `hits`, prompt tokens found in the cache; `loaded`, those of
    them loaded from each tier; `recomputed`, those computed again after `preemptions`.

    forget: uids that have stopped, whose page tables the executor may drop."""

    def __init__(self, cache: Cache, ranking: Ranking):
        self._cache = cache
        self._ranking = ranking
        self._held: dict[int, Request] = {}
        self.forget: list[int] = []
        self.hits = self.preemptions = self.recomputed = 0
        self.loaded: Counter[int] = Counter()

    def __len__(self) -> int:
        return len(self._held)

    def __iter__(self) -> Iterator[Request]:
        return iter(self._held.values())

    def __contains__(self, r: object) -> bool:
        return isinstance(r, Request) and r.uid in self._held

    def ranked(self) -> list[Entry]:
        """All of them in order. The order is kept: sorting a nearly sorted list is fast."""
        requests = list(self)
        entries = sorted(zip(order(self._ranking, requests), requests, strict=True))
        self._held = {r.uid: r for _, r in entries}
        return entries

    def start(self, r: Request, now: float) -> None:
        """Start `r`, which has its pages, and count what the cache gave it."""
        self._held[r.uid] = r
        if r.preempted:
            self.recomputed += max(0, min(r.peak, len(r.tokens)) - r.computed)
            return
        r.started = now
        self.found(r, 0)
        r.loaded = {tier: min(some, r.cached) for tier, some in r.loaded.items()}
        self.loaded.update(r.loaded)

    def found(self, r: Request, before: int) -> None:
        """Count the prompt tokens beyond `before` that the cache gave `r`, unless it was preempted:
        then they were counted."""
        if not r.preempted:
            gained = min(r.computed, r.prompt) - min(before, r.prompt)
            r.cached += gained
            self.hits += gained

    def preempt(self, r: Request) -> None:
        """Stop `r`, to be started again."""
        r.peak = max(r.peak, r.computed)
        r.preempted += 1
        self.preemptions += 1
        self.stop(r)

    def stop(self, r: Request) -> None:
        self._cache.release(r)
        del self._held[r.uid]
        r.sampled = False
        self.forget.append(r.uid)
