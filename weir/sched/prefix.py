"""Cache-aware orders: whoever shares most with what is cached goes first (SGLang section 3)."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

from weir.core import Request
from weir.kv.cache import Cache
from weir.sched.ranking import Key, Ranking


@dataclass(slots=True)
class Matches:
    """How many tokens of each waiting request the cache holds, looked up anew for every plan.

    Looking up costs time, so nothing is known while more than `limit` requests wait."""

    cache: Cache
    limit: int = 128
    known: dict[int, int] = field(default_factory=dict)

    def refresh(self, waiting: Collection[Request]) -> list[Request]:
        """Look up; returns those of whom something else is known than before."""
        before, within = self.known, len(waiting) <= self.limit
        self.known = {r.uid: self.cache.known(r) for r in waiting} if within else {}
        if not before and not self.known:
            return []
        return [r for r in waiting if before.get(r.uid, 0) != self.known.get(r.uid, 0)]

    def of(self, r: Request) -> int:
        return self.known.get(r.uid, 0)


@dataclass(slots=True)
class LongestPrefix(Ranking):
    """Longest cached prefix first (Algorithm 1), within a priority class; first come, first served
    while more than `limit` wait. Running requests stay ahead: the cache holds what they use.

    Offline this visits the requests' radix tree depth first, which is optimal (Theorem 3.1).
    Siblings that arrive together need no care: a page enters the tree when it is planned, so the
    second finds in the same step what the first is about to write."""

    matches: Matches

    def key(self, r: Request) -> Key:
        return (r.priority, not r.running, 0 if r.running else -self.matches.of(r))

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
