"""How many tokens of which requests one iteration computes."""

import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import ClassVar, Protocol

from weir.core import IDLE, Load, Request

Pick = tuple[Request, int]  # and how many of its tokens to compute


@dataclass(slots=True)
class Budget:
    """What is left of one iteration. Composers read it again after each yield.

    owed: decodes still to come further down the ranking; a composer that never stalls them leaves
    that many tokens. closed: no more waiting requests come, because the composer wants none or one
    found no room."""

    tokens: int
    requests: int
    owed: int = 0
    load: Load = IDLE
    running: int = 0  # requests that ran when the iteration began
    taken: int = 0
    closed: bool = False


class Composer(Protocol):
    whole: ClassVar[bool]  # it never cuts prompts, so the budget must hold a whole context

    def compose(self, ranked: Iterable[Request], budget: Budget) -> Iterator[Pick]:
        """Pick lazily and in rank order; read `budget` again after each pick. The cache is searched
        after a pick, so fewer tokens may be left to compute than it asks for."""
        ...


@dataclass(frozen=True, slots=True)
class Static:
    """Request-level batching, as in FasterTransformer: a batch forms when no request runs, as large
    as one iteration can start, and none joins until all have ended. Unlike the original it answers
    requests that end early at once, and pads nothing."""

    whole: ClassVar[bool] = True

    def compose(self, ranked: Iterable[Request], budget: Budget) -> Iterator[Pick]:
        budget.closed = budget.running > 0
        yield from Whole().compose(ranked, budget)


@dataclass(frozen=True, slots=True)
class Whole:
    """Orca: whole prompts and decodes share an iteration. A prompt that does not fit blocks those
    behind it."""

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
    """Early vLLM: while a prompt can start, an iteration computes whole prompts only, and all
    decodes wait."""

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
        """Prompt tokens that an iteration may compute beside the decodes of `load` if the next
        prompt continues at position `start`."""
        ...


@dataclass(frozen=True, slots=True)
class Beside:
    """At most `tokens` prompt tokens in an iteration that also decodes, which bounds how long a
    stream waits for its next token. An iteration without decodes has no bound.

    most: if larger, prompts get six tokens per decode or an eighth of the backlog, up to `most`:
    prompts keep pace with many streams, and many waiting prompts are not held up by few streams."""

    tokens: int
    most: int = 0

    def prompts(self, load: Load, start: int) -> int:
        if not load.decodes:
            return sys.maxsize
        return max(self.tokens, min(self.most, max(6 * load.decodes, load.backlog // 8)))


@dataclass(frozen=True, slots=True)
class Taper:
    """Large chunks early in a prompt, where attention is cheap, and smaller ones later: from
    `first` tokens down to `last` at position `reach`, in `stages` equal steps. Sarathi-Serve's code
    has the same option by share of the prompt instead of position."""

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
    """Sarathi-Serve: stall-free batches. Every decode runs in every iteration, and chunks of
    prompts fill the rest of the budget (Algorithm 3), or less if `pace` says so.

    tile: an iteration that cuts a prompt computes a multiple of `tile` tokens in total, so that
    matrix products fill their tiles; a cut is still moved to a page boundary. If less than a tile
    is left for prompts, they get that."""

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
