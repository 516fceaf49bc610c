"""Cache-aware orders: whoever shares most with what is cached goes first (SGLang section 3)."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from itertools import islice

from weir.core import Request
from weir.kv.cache import Cache
from weir.sched.ranking import Key, Ranking

AGAIN = 8
"""Of many who wait and were found something: how many are looked up again in a plan."""


@dataclass(slots=True)
class Matches:
    """How many tokens of each waiting request the cache holds.

    Looking up costs time. While at most `limit` wait, all are looked up for every plan. Of more, so
    many at most: those of whom the cache has a page more, then those who have come; and a few whose
    turn it is of those it had something of, which may have been evicted."""

    cache: Cache
    limit: int = 128
    known: dict[int, int] = field(default_factory=dict)
    due: dict[int, Request] = field(default_factory=dict)  # in the order of turns, as are
    found: dict[int, Request] = field(default_factory=dict)

    def enter(self, r: Request) -> None:
        self.due[r.uid] = r

    def leave(self, r: Request) -> None:
        self._strike(r)
        self.known.pop(r.uid, None)
        self.cache.watch.forget(r)

    def refresh(self, waiting: Collection[Request]) -> list[Request]:
        """Look up; returns those of whom something else is known than before."""
        if len(waiting) <= self.limit:
            before, self.known = self.known, {r.uid: self.cache.known(r) for r in waiting}
            self.due, self.found = {r.uid: r for r in waiting}, {}  # should more come to wait
            self.cache.watch.clear()
            return [r for r in waiting if before.get(r.uid, 0) != self.known[r.uid]]
        some = {r.uid: r for r in self.cache.watch.pop(self.limit)}
        some |= islice(self.due.items(), self.limit - len(some))
        some |= islice(self.found.items(), AGAIN)
        for r in some.values():
            self._strike(r)
        return [r for r in some.values() if r in waiting and self._changed(r)]

    def _strike(self, r: Request) -> None:
        self.due.pop(r.uid, None)
        self.found.pop(r.uid, None)

    def _changed(self, r: Request) -> bool:
        before, now = self.known.get(r.uid, 0), self.cache.expect(r)
        self.known[r.uid] = now
        if now:
            self.found[r.uid] = r
        return now != before

    def of(self, r: Request) -> int:
        return self.known.get(r.uid, 0)


@dataclass(slots=True)
class LongestPrefix(Ranking):
    """Longest cached prefix first (Algorithm 1), within a priority class; SGLang's is first come,
    first served while more than 128 wait. Running requests stay ahead: the cache holds what they
    use.

    Offline this visits the requests' radix tree depth first, which is optimal (Theorem 3.1).
    Siblings that arrive together need no care: a page enters the tree when it is planned, so the
    second finds in the same step what the first is about to write."""

    matches: Matches

    def key(self, r: Request) -> Key:
        return (r.priority, not r.running, 0 if r.running else -self.matches.of(r))

    def enter(self, r: Request) -> None:
        self.matches.enter(r)

    def leave(self, r: Request) -> None:
        self.matches.leave(r)

    def before(self, step: int, waiting: Collection[Request]) -> Iterable[Request]:
        return self.matches.refresh(waiting)


@dataclass(slots=True)
class DepthFirst(Ranking):
    """Depth first through the radix tree, at each fork into the branch that more requests wait
    for; first come, first served while more than `limit` wait."""

    cache: Cache
    limit: int = 128
    paths: dict[int, Key] = field(default_factory=dict)

    def key(self, r: Request) -> Key:
        return (r.priority, not r.running, () if r.running else self.paths.get(r.uid, ()))

    def before(self, step: int, waiting: Collection[Request]) -> Iterable[Request]:
        before, self.paths = self.paths, {}
        if len(waiting) <= self.limit:
            self._walk(sorted(waiting, key=lambda r: r.uid))
        elif not before:
            return ()
        return [r for r in waiting if before.get(r.uid) != self.paths.get(r.uid)]

    def _walk(self, waiting: list[Request]) -> None:
        """A node is named by when it was first met and weighs as many requests as pass it."""
        names: dict[int, int] = {}
        weights: dict[int, int] = {}
        walks = [(r, [id(node) for node in self.cache.path(r)]) for r in waiting]
        for _, nodes in walks:
            for node in nodes:
                names.setdefault(node, len(names))
                weights[node] = weights.get(node, 0) + 1
        here = (1, 0)  # after every branch from here
        for r, nodes in walks:
            self.paths[r.uid] = (*((-weights[node], names[node]) for node in nodes), here)
