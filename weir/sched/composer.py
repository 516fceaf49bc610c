"""How much of whom one iteration computes."""

import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import ClassVar, Protocol

from weir.core import IDLE, Load, Request

Pick = tuple[Request, int]  # and how many of its tokens to compute


@dataclass(slots=True)
class Budget:
    """What is left of one iteration. Composers read it again after each yield.

    `owed` is the number of decodes still to come further down the ranking: a composer that never
    stalls them leaves that many tokens untouched. Once `closed`, by a composer or because one found
    no room, no more waiting requests come."""

    tokens: int
    requests: int
    owed: int = 0
    load: Load = IDLE
    running: int = 0  # requests that ran when the iteration began
    taken: int = 0
    closed: bool = False


class Composer(Protocol):
    whole: ClassVar[bool]  # prompts are never cut, so the budget must hold a whole context

    def compose(self, ranked: Iterable[Request], budget: Budget) -> Iterator[Pick]:
        """Picks, lazily and in rank order; `budget` is read again after each one. A pick may ask
        for more than is left to compute once the cache has been searched."""
        ...


@dataclass(frozen=True, slots=True)
class Static:
    """Request-level batching, as FasterTransformer's: a batch forms when nobody runs, as large as
    one iteration can begin, and nobody joins until all of it have ended. Kinder than the original:
    who ends early is answered at once, and nothing is padded."""

    whole: ClassVar[bool] = True

    def compose(self, ranked: Iterable[Request], budget: Budget) -> Iterator[Pick]:
        budget.closed = budget.running > 0
        yield from Whole().compose(ranked, budget)


@dataclass(frozen=True, slots=True)
class Whole:
    """Orca: whole prompts and decodes share an iteration. The first prompt that does not fit keeps
    those behind it out."""

    whole: ClassVar[bool] = True

    def compose(self, ranked: Iterable[Request], budget: Budget) -> Iterator[Pick]:
        cut = False
        for r in ranked:
            if r.decoding:
                budget.owed -= 1
                yield r, 1
            elif not cut and r.todo <= budget.tokens:
                yield r, r.todo
            else:
                cut = budget.closed = True


@dataclass(frozen=True, slots=True)
class PrefillFirst:
    """Early vLLM: while a prompt can start, an iteration computes whole prompts and nothing else,
    and every decode waits."""

    whole: ClassVar[bool] = True

    def compose(self, ranked: Iterable[Request], budget: Budget) -> Iterator[Pick]:
        budget.owed, decodes = 0, []
        for r, length in Whole().compose(ranked, budget):
            if r.decoding:
                decodes.append(r)
            else:
                yield r, length
        if not budget.taken:
            yield from ((r, 1) for r in decodes if r.running)


class Pace(Protocol):
    def prompts(self, load: Load, start: int) -> int:
        """Prompt tokens that an iteration may compute beside the decodes of `load`, when the next
        prompt goes on from position `start`."""
        ...


@dataclass(frozen=True, slots=True)
class Beside:
    """So many prompt tokens in an iteration that also decodes: how long a stream can wait for its
    next token. An iteration without decodes makes nobody wait and has no bound.

    most: where it is more, prompts get six tokens for each decode, or an eighth of what waits, up
    to so many: they keep pace with many streams, and a crowd does not wait for the sake of few."""

    tokens: int
    most: int = 0

    def prompts(self, load: Load, start: int) -> int:
        if not load.decodes:
            return sys.maxsize
        return max(self.tokens, min(self.most, max(6 * load.decodes, load.backlog // 8)))


@dataclass(frozen=True, slots=True)
class Taper:
    """Large chunks early in a prompt, where attention is cheap, and smaller ones further on: from
    `first` tokens down to `last`, reached at position `reach`, in `stages` equal steps (an option
    of Sarathi-Serve's code, here by position and not by share of the prompt)."""

    first: int = 2048
    last: int = 256
    reach: int = 32768
    stages: int = 8

    def prompts(self, load: Load, start: int) -> int:
        stage = min(self.stages, start * self.stages // self.reach)
        return self.first - (self.first - self.last) * stage // self.stages


@dataclass(frozen=True, slots=True)
class Least:
    """The smallest share that any of several paces gives."""

    paces: tuple[Pace, ...]

    def prompts(self, load: Load, start: int) -> int:
        return min(pace.prompts(load, start) for pace in self.paces)


@dataclass(frozen=True, slots=True)
class Chunked:
    """Sarathi-Serve: stall-free batches. Every decode runs in every iteration, and prompts, cut
    into chunks, fill what the decodes still to come do not need (Algorithm 3), or less if `pace`
    says so.

    tile: an iteration that cuts a prompt computes a multiple of so many tokens in all, so that
    matrix products fill their tiles, less what keeps the cut on a page boundary. Where less than
    that is left for prompts, they get what there is."""

    pace: Pace | None = None
    tile: int = 1
    whole: ClassVar[bool] = False

    def compose(self, ranked: Iterable[Request], budget: Budget) -> Iterator[Pick]:
        decodes, prompts = budget.load.decodes, 0
        for r in ranked:
            if r.decoding:
                budget.owed -= 1
                yield r, 1
                continue
            if self.pace is not None:
                share = self.pace.prompts(budget.load, r.computed) - prompts
                budget.tokens = min(budget.tokens, budget.owed + max(0, share))
            if (length := min(r.todo, budget.tokens - budget.owed)) > 0:
                over = (decodes + prompts + length) % self.tile
                if length < r.todo and over < length:
                    length -= over
                    budget.tokens -= over
                before = budget.tokens
                yield r, length
                prompts += before - budget.tokens
