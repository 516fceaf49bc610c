"""Who goes first. A ranking is a total order over live requests; smaller keys go first.

A running request's key is read every step, a waiting one's when it starts to wait and again
whenever the ranking says that what it read then is stale.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from weir.core import Request
from weir.kv.cache import Cache

Key = tuple[Any, ...]


class Ranking(Protocol):
    def observe(self, new: Sequence[Request]) -> None:
        """Once per arrival, batched, before any key is asked for."""
        ...

    def key(self, r: Request, now: float) -> Key:
        """Pure; keys of any two requests compare."""
        ...

    def stale(self, waiting: int) -> bool:
        """Must the keys of the waiting requests, so many, be read again this step?"""
        ...


@dataclass(frozen=True, slots=True)
class FCFS:
    """First come, first served, within a priority class."""

    def observe(self, new: Sequence[Request]) -> None:
        pass

    def key(self, r: Request, now: float) -> Key:
        return (r.priority, r.arrival, r.uid)

    def stale(self, waiting: int) -> bool:
        return False


@dataclass(slots=True)
class LongestPrefix:
    """Longest shared prefix first (SGLang Algorithm 1), within a priority class.

    Offline this visits the requests' radix tree depth first, which is optimal (Theorem 3.1).
    Matching costs time, so with more than `limit` requests waiting it is first come, first served.
    """

    cache: Cache
    limit: int = 128
    matching: bool = True

    def observe(self, new: Sequence[Request]) -> None:
        pass

    def key(self, r: Request, now: float) -> Key:
        if r.running:
            return (r.priority, 0, r.arrival, r.uid)
        known = self.cache.known(r) if self.matching else 0
        return (r.priority, 1, -known, r.arrival, r.uid)

    def stale(self, waiting: int) -> bool:
        matched, self.matching = self.matching, waiting <= self.limit
        return self.matching or matched
