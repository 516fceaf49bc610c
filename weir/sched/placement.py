"""Where a request's KV lives, and which lane computes it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from weir.core import Chunk, Move, Pick, Request, Tier
from weir.kv.cache import Cache


class Placement(Protocol):
    @property
    def coldest(self) -> Tier:
        """The coldest tier that attention can read."""
        ...

    def place(self, pick: Pick, cache: Cache, moves: list[Move]) -> Tier | None:
        """Reserve pages for the pick and say where its new KV goes; None, with nothing taken, if
        there is no room."""
        ...

    def evict(self, victim: Request, cache: Cache, moves: list[Move]) -> None:
        """Make room: let `victim` go (then it waits again), or move it somewhere colder."""
        ...

    def lanes(self, chunks: Sequence[Chunk]) -> list[list[Chunk]]:
        """Spread the chunks over lanes. May leave decodes out of this step, but no prompt chunk:
        others may already attend to the pages it will write."""
        ...


@dataclass(frozen=True, slots=True)
class OnDemand:
    """Pages as they are needed, all on one tier, one lane; a victim is let go and recomputed.

    A newcomer must find room for all its known tokens and leave `spare` of the pool for those who
    are already growing, unless it is alone: otherwise half-prefilled prompts would take the pages
    that running decodes need, and be thrown out again."""

    home: Tier
    spare: float = 0.01

    @property
    def coldest(self) -> Tier:
        return self.home

    def place(self, pick: Pick, cache: Cache, moves: list[Move]) -> Tier | None:
        r = pick.request
        if r.sent == 0:
            room, size = cache.room(self.home), cache.pools[self.home].size
            need = -(-len(r.tokens) // cache.page) - len(r.pages)
            alone = room + len(r.pages) == size
            if not alone and room - need < int(self.spare * size):
                return None
        grown = cache.grow(r, r.computed + pick.length, self.home, moves)
        return self.home if grown else None

    def evict(self, victim: Request, cache: Cache, moves: list[Move]) -> None:
        cache.release(victim)

    def lanes(self, chunks: Sequence[Chunk]) -> list[list[Chunk]]:
        return [list(chunks)]
