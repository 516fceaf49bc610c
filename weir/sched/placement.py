"""Where a request's KV lives, who is admitted, who is evicted, and which lane computes whom."""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from weir.core import Chunk, Move, Plan, Request, Segment, Tier
from weir.kv.cache import Cache

MANY = 32
"""From so many on, the host's attention to decodes takes longer than the device takes for a
lane."""


def cut(lane: Iterable[Chunk], most: int) -> list[list[Chunk]]:
    """Cut a lane, in order, into lanes of at most `most` tokens; no chunk is longer. Each layer
    then serves all of them, one at a time (FlexGen's zig-zag)."""
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
    """The chunks whose attention the device computes, and the decodes whose the host does."""
    here = [chunk for chunk in chunks if chunk.home != away or chunk.length > 1]
    return here, [chunk for chunk in chunks if chunk.home == away and chunk.length == 1]


@dataclass(slots=True)
class OnDemand:
    """Takes pages of one tier as they are needed; victims are evicted and recomputed. The other
    placements derive from this one.

    A newcomer must find room for all its known tokens and leave the share `spare` of the pool to
    running requests, unless it is alone. Otherwise half-prefilled prompts would take the pages that
    decodes need, and be evicted again. With `ahead`, it leaves instead what all of them and itself
    still lack if each answer grows to so many tokens.

    The victim is the last in rank. Choosing the one that is cheapest to recompute recomputed more
    (docs/log.md): cheap victims are soon back, and are victims again."""

    preempts: ClassVar[bool] = True  # so a newcomer that is alone may start in a full pool

    home: Tier
    spare: float = 0.01
    ahead: int = 0
    owed: dict[int, int] = field(default_factory=dict)  # tier → pages that running requests lack
    resting: Collection[int] = ()  # uids of decodes that wait for `wake` or are in a `Segment`
    away: Tier | None = None  # the tier whose decodes the host attends to, beside the device

    def tier(self, r: Request, cache: Cache) -> Tier:
        """Where the next pages of `r` are taken: the coldest tier from which it can use a prefix
        without moving it."""
        return self.home

    def begin(
        self, running: Collection[Request], waiting: int, cache: Cache, moves: list[Move]
    ) -> Collection[Request]:
        """Called as a plan begins, with the running requests and the number of waiting ones.
        Returns those to evict first, because they will be placed better."""
        self._count(running, cache)
        return ()

    def _count(self, running: Iterable[Request], cache: Cache) -> None:
        self.owed = {}
        for r in running:
            if self.ahead and r.pages:
                self._owe(r, self._grown(r, cache) - len(r.pages))

    def _owe(self, r: Request, pages: int) -> None:
        tier = r.pages[-1].tier
        self.owed[tier] = self.owed.get(tier, 0) + pages

    def _grown(self, r: Request, cache: Cache) -> int:
        """Pages of `r` once its answer has `ahead` tokens, or as many as it may or does have."""
        answer = min(self.ahead, r.sampling.max_tokens)
        return cache.pages(max(len(r.tokens), r.prompt + answer))

    def place(self, r: Request, length: int, cache: Cache, moves: list[Move]) -> Tier | None:
        """Reserve pages for `length` more tokens of `r`. Returns their tier; None, with nothing
        taken, if there is no room."""
        if r.sent < 0 and not self._starts(r, length, cache):
            return None
        tier, fresh, held = self.tier(r, cache), r.sent < 0, len(r.pages)
        if not cache.grow(r, r.computed + length, tier, moves):
            return None
        if self.ahead:
            self._owe(r, (self._grown(r, cache) if fresh else held) - len(r.pages))
        return tier

    def _starts(self, r: Request, length: int, cache: Cache) -> bool:
        tier = self.tier(r, cache)
        alone = cache.room(tier) + len(r.pages) + cache.pinned >= cache.pools[tier].size
        return self.lacking(r, length, cache) <= 0 and (
            self.admits(r, cache) or (self.preempts and alone)
        )

    def lacking(self, r: Request, length: int, cache: Cache) -> int:
        """Pages that must at least be evicted before `length` more tokens can be placed."""
        tokens = len(r.tokens) if r.sent < 0 else r.computed + length
        return cache.pages(tokens) - len(r.pages) - cache.room(self.tier(r, cache))

    def admits(self, r: Request, cache: Cache) -> bool:
        """Whether a newcomer, its prefix attached, may start beside the running requests."""
        tier = self.tier(r, cache)
        left = cache.room(tier) + len(r.pages) - cache.pages(len(r.tokens))
        return left >= self._kept(r, tier, cache)

    def _kept(self, r: Request, tier: Tier, cache: Cache) -> int:
        """Pages that must stay free beside all known tokens of a newcomer."""
        if not self.ahead:
            return int(self.spare * cache.pools[tier].size)
        return self.owed.get(tier, 0) + self._grown(r, cache) - cache.pages(len(r.tokens))

    def yields(self, other: Request, r: Request, cache: Cache) -> bool:
        """Whether `other`, which runs and ranks after `r`, may be evicted for `r`."""
        return True

    def evicted(self, victim: Request) -> None:
        """`victim` was evicted to make room, and waits again."""

    def wake(self, chunks: Sequence[Chunk]) -> None:
        """Remove from `resting` those that may join a plan of these chunks."""

    def landed(self, plan: Plan, seconds: float, host: float) -> None:
        """A plan has landed; the device took `seconds`, attention on the host `host` of them."""

    def lanes(self, chunks: Sequence[Chunk]) -> tuple[list[list[Chunk]], Segment | None]:
        """Spread the chunks over lanes, and the segment, if any, that runs beside them.

        Decodes whose KV is away have their own lane, so that the host attends to them while the
        device computes the others; if they are many, two lanes that alternate. Prompts come first
        and in order, because other chunks attend to the pages they write."""
        if self.away is None:
            return [list(chunks)], None
        here, away = parted(chunks, self.away)
        if len(away) < MANY:
            return [here, away], None
        return [here, away[::2], away[1::2]], None


@dataclass(slots=True)
class Reserve(OnDemand):
    """Admits a newcomer if the most that it and the running requests may ever hold fits: prompt
    plus `max_tokens` each (Orca, Algorithm 1). It never preempts, but much memory stays unused
    because answers end early."""

    preempts: ClassVar[bool] = False

    pledged: int = 0  # pages

    def begin(
        self, running: Collection[Request], waiting: int, cache: Cache, moves: list[Move]
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
    """Admits a newcomer if its expected growth and that of the running requests fits too: `ratio`
    of the tokens they may still generate (SGLang's new-token ratio).

    The ratio falls from `initial` to `least` over `steps` plans. A preemption raises it to the
    share of their limits that the running answers have reached, with `ahead` tokens more each. A
    limit counts as at most `longest` tokens, so that generous ones do not leave the pool empty."""

    initial: float = 0.7
    least: float = 0.1
    steps: int = 600
    ahead: int = 20
    longest: int = 4096
    ratio: float = field(init=False)
    running: Collection[Request] = ()
    growth: float = -1.0  # tokens that running requests may still generate; < 0: not counted yet

    def __post_init__(self) -> None:
        self.ratio = self.initial

    def begin(
        self, running: Collection[Request], waiting: int, cache: Cache, moves: list[Move]
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
