"""Where a request's KV lives, who is admitted to it, who makes room, and which lane computes it."""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from weir.core import Chunk, Move, Plan, Request, Segment, Tier
from weir.kv.cache import Cache

MANY = 32
"""Decodes away whose attention takes the host longer than a lane the device."""


def cut(lane: Iterable[Chunk], most: int) -> list[list[Chunk]]:
    """A lane in parts of at most so many tokens, in order; no chunk is longer. So each layer serves
    all of them, and only one is inside it (FlexGen's zig-zag)."""
    parts: list[list[Chunk]] = []
    room = 0
    for chunk in lane:
        if chunk.length > room:
            parts.append([])
            room = most
        parts[-1].append(chunk)
        room -= chunk.length
    return parts


def parted(chunks: Sequence[Chunk], away: Tier) -> tuple[list[Chunk], list[Chunk]]:
    """What the device attends to, and decodes that the host does."""
    here = [chunk for chunk in chunks if chunk.home != away or chunk.length > 1]
    return here, [chunk for chunk in chunks if chunk.home == away and chunk.length == 1]


@dataclass(slots=True)
class OnDemand:
    """Pages as they are needed, all on one tier; a victim is let go and recomputed. Every other
    placement changes something about this one.

    A newcomer must find room for all its known tokens and leave `spare` of the pool for those who
    are already growing, unless it is alone: otherwise half-prefilled prompts would take the pages
    that running decodes need, and be thrown out again.

    The victim is the last in rank. To choose by what recomputing costs was tried and recomputes
    more (docs/log.md): cheap victims are soon back, and victims again."""

    preempts: ClassVar[bool] = True  # so a newcomer whose pages are all the others hold may start

    home: Tier
    spare: float = 0.01
    resting: Collection[int] = ()  # uids of decodes that wait for `wake`, or are in a pass
    away: Tier | None = None  # whose decodes the host attends to, beside the device

    def tier(self, r: Request, cache: Cache) -> Tier:
        """Where its next pages are taken: the coldest on which it may find a prefix without its
        being moved."""
        return self.home

    def begin(
        self, running: Collection[Request], waiting: int, cache: Cache
    ) -> Collection[Request]:
        """A plan begins, these requests hold pages, and so many wait. Returns those of them to be
        let go first, because they will be placed better."""
        return ()

    def place(self, r: Request, length: int, cache: Cache, moves: list[Move]) -> Tier | None:
        """Reserve pages for `length` more tokens of `r` and say where their KV goes; None, with
        nothing taken, if there is no room."""
        if r.sent == 0 and not self._starts(r, length, cache):
            return None
        tier = self.tier(r, cache)
        return tier if cache.grow(r, r.computed + length, tier, moves) else None

    def _starts(self, r: Request, length: int, cache: Cache) -> bool:
        tier = self.tier(r, cache)
        alone = cache.room(tier) + len(r.pages) + cache.pinned >= cache.pools[tier].size
        return self.lacking(r, length, cache) <= 0 and (
            self.admits(r, cache) or (self.preempts and alone)
        )

    def lacking(self, r: Request, length: int, cache: Cache) -> int:
        """Pages that must be let go, at least, before `length` more tokens can be placed."""
        tokens = len(r.tokens) if r.sent == 0 else r.computed + length
        return cache.pages(tokens) - len(r.pages) - cache.room(self.tier(r, cache))

    def admits(self, r: Request, cache: Cache) -> bool:
        """May a newcomer, its prefix attached, start beside those that run?"""
        tier = self.tier(r, cache)
        left = cache.room(tier) + len(r.pages) - cache.pages(len(r.tokens))
        return left >= int(self.spare * cache.pools[tier].size)

    def yields(self, other: Request, r: Request, cache: Cache) -> bool:
        """Whether `other`, which runs and ranks after `r`, may be evicted for it."""
        return True

    def evicted(self, victim: Request) -> None:
        """It was let go to make room, and waits again."""

    def wake(self, chunks: Sequence[Chunk]) -> None:
        """Say who of those that rest goes beside these chunks."""

    def landed(self, plan: Plan, seconds: float, host: float) -> None:
        """A plan took so long, of which the host attended for so long."""

    def lanes(self, chunks: Sequence[Chunk]) -> tuple[list[list[Chunk]], Segment | None]:
        """Spread the chunks over lanes: decodes away in lanes of their own, so that the host
        attends while the device computes the others; two where they are many, which take turns.
        Prompts' come in the first, in order: others attend to the pages they will write. Besides,
        the segment of a pass that takes several plans, which some of these chunks begin or an
        earlier plan's go on with."""
        if self.away is None:
            return [list(chunks)], None
        here, away = parted(chunks, self.away)
        if len(away) < MANY:
            return [here, away], None
        return [here, away[::2], away[1::2]], None


@dataclass(slots=True)
class Reserve(OnDemand):
    """A newcomer starts when the most that it and those that run may ever hold fits: prompt and
    `max_tokens` of each (Orca, Algorithm 1). Nobody is ever preempted, and much of the memory waits
    for answers that end early."""

    preempts: ClassVar[bool] = False

    pledged: int = 0  # pages

    def begin(
        self, running: Collection[Request], waiting: int, cache: Cache
    ) -> Collection[Request]:
        self.pledged = sum(self._most(r, cache) for r in running)
        return ()

    def admits(self, r: Request, cache: Cache) -> bool:
        pledged = self.pledged + self._most(r, cache)
        if self.pledged and pledged > cache.pools[self.home].size:
            return False
        self.pledged = pledged
        return True

    def yields(self, other: Request, r: Request, cache: Cache) -> bool:
        return False

    @staticmethod
    def _most(r: Request, cache: Cache) -> int:
        return cache.pages(r.prompt + r.sampling.max_tokens)


@dataclass(slots=True)
class Estimate(OnDemand):
    """A newcomer starts when what those that run, and it, are expected to grow by fits too: `ratio`
    of the tokens they may still be given (SGLang's new-token ratio).

    The ratio learns: it falls from `initial` to `least` within `steps` plans, and at each
    preemption rises to the share that the present answers have reached, and `ahead` tokens more.
    An answer counts for at most `longest` tokens, so that a generous limit does not hold the pool
    empty."""

    initial: float = 0.7
    least: float = 0.1
    steps: int = 600
    ahead: int = 20
    longest: int = 4096
    ratio: float = field(init=False)
    running: Collection[Request] = ()
    growth: float = -1.0  # tokens that those that run may still be given; < 0: not counted yet

    def __post_init__(self) -> None:
        self.ratio = self.initial

    def begin(
        self, running: Collection[Request], waiting: int, cache: Cache
    ) -> Collection[Request]:
        self.ratio = max(self.least, self.ratio - (self.initial - self.least) / self.steps)
        self.running, self.growth = running, -1.0
        return ()

    def admits(self, r: Request, cache: Cache) -> bool:
        if self.growth < 0:
            self.growth = sum(map(self._left, self.running))
        growth = self.growth + self._left(r)
        left = cache.room(self.home) + len(r.pages) - cache.pages(len(r.tokens))
        if left < cache.pages(int(growth * self.ratio)):
            return False
        self.growth = growth
        return True

    def evicted(self, victim: Request) -> None:
        given = sum(len(r.tokens) - r.prompt for r in self.running)
        limits = sum(min(r.sampling.max_tokens, self.longest) for r in self.running)
        reached = (given + self.ahead * len(self.running)) / max(1, limits)
        self.ratio = min(1.0, max(self.ratio, reached))
        self.growth = -1.0

    def _left(self, r: Request) -> int:
        return max(0, min(r.sampling.max_tokens, self.longest) - (len(r.tokens) - r.prompt))
