"""Chooses the replica of a fleet for each request. Knows loads and tokens, no engine.

Replicas are numbers. Each call lists those that exist; a policy forgets all about the others, so
one that comes back counts as empty.
"""

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

Loads = Mapping[int, int]
"""Replica → requests in progress."""


class Router(Protocol):
    def route(self, tokens: Sequence[int], loads: Loads) -> int:
        """The replica for a prompt, one of `loads`."""
        ...


@dataclass(slots=True)
class RoundRobin:
    turn: int = -1

    def route(self, tokens: Sequence[int], loads: Loads) -> int:
        self.turn += 1
        return list(loads)[self.turn % len(loads)]


@dataclass(slots=True)
class LeastLoaded:
    """The replica with fewest requests; among equals, the one least recently chosen."""

    given: dict[int, int] = field(default_factory=dict)
    count: int = 0

    def route(self, tokens: Sequence[int], loads: Loads) -> int:
        choice = min(loads, key=lambda i: (loads[i], self.given.get(i, -1)))
        self.given[choice] = self.count = self.count + 1
        return choice


@dataclass(slots=True)
class CacheAware:
    """The replica that has seen the longest prefix of the prompt, unless loads differ too much
    (SGLang appendix A.4 and its router). With no good match, the replica that has seen least.

    Replicas are not asked what they hold. For each, an LRU set remembers blocks of tokens by
    chained hash, up to `capacity` blocks, which should be the size of its cache.
    """

    capacity: int
    block: int = 16  # tokens
    match: float = 0.5  # a good match is more than this share of the prompt
    drift: int = 32  # loads may differ by this many,
    ratio: float = 1.1  # or by this factor
    seen: dict[int, OrderedDict[int, None]] = field(default_factory=dict)

    def route(self, tokens: Sequence[int], loads: Loads) -> int:
        if self.seen.keys() != loads.keys():
            self.seen = {i: self.seen.get(i, OrderedDict()) for i in loads}
        chain = self._chain(tokens)
        choice = self._choose(chain, loads)
        seen = self.seen[choice]
        for key in reversed(chain):  # the root is used last, so that leaves are evicted first
            seen[key] = None
            seen.move_to_end(key)
        while len(seen) > self.capacity:
            seen.popitem(last=False)
        return choice

    def _choose(self, chain: list[int], loads: Loads) -> int:
        least, most = min(loads.values()), max(loads.values())
        if most - least > self.drift and most > self.ratio * least:
            return min(loads, key=lambda i: loads[i])
        known = {i: self._known(chain, seen) for i, seen in self.seen.items()}
        best = max(loads, key=lambda i: (known[i], -loads[i]))
        if known[best] > self.match * len(chain):
            return best
        return min(loads, key=lambda i: (len(self.seen[i]), loads[i]))

    def _known(self, chain: list[int], seen: OrderedDict[int, None]) -> int:
        for count, key in enumerate(chain):
            if key not in seen:
                return count
        return len(chain)

    def _chain(self, tokens: Sequence[int]) -> list[int]:
        chain, key, size = [], 0, self.block
        for at in range(0, len(tokens) - size + 1, size):
            key = hash((key, *tokens[at : at + size]))
            chain.append(key)
        return chain


ROUTERS: dict[str, Callable[[int, int], Router]] = {
    "round-robin": lambda blocks, size: RoundRobin(),
    "least-loaded": lambda blocks, size: LeastLoaded(),
    "cache-aware": CacheAware,
}
"""Name → a maker of routers, given the blocks that a replica's cache holds and their size."""
