"""KV on the device while there is room, and in main memory beyond, where the host's cores attend to
it (NEO, arXiv 2411.01142). Knows what lanes cost, no device.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field

from weir.core import Chunk, Plan, Request, Tier
from weir.cost.lanes import Lanes, Share
from weir.cost.work import Work
from weir.kv.cache import Cache
from weir.sched.placement import OnDemand

RECENT = 0.05
"""Weight of the latest step in running means."""
FORGET = 0.002
"""What a step takes off older ones' part in the proportion of answers and prompts and, without
decodes away, off the doubt in those that have some."""

MOST = 1024
"""Decodes away that are thought of."""


@dataclass(slots=True)
class Balance:
    """Whether decodes that the host attends to are worth their share of a step. `ratio`: how much
    longer steps took than their lanes cost, without decodes away and with some.

    A step is worth its decodes and, in proportion to what answers and prompts have been lately, its
    prompt tokens; what is compared is worth a second. patience: steps after which a decode that was
    left out goes first and whatever it costs."""

    lanes: Lanes
    patience: int = 32
    asked: float = 50_000.0  # prompt tokens of all steps; those before the first are a guess
    answered: float = 10_000.0  # and decodes
    left: dict[int, int] = field(default_factory=dict)  # steps that a decode was left out
    ratio: list[float] = field(default_factory=lambda: [1.0, 1.0])

    def observe(self, chunks: Iterable[Chunk]) -> None:
        lengths = [chunk.length for chunk in chunks]
        decodes = lengths.count(1)
        prompts = sum(lengths) - decodes
        self.asked += prompts - FORGET * self.asked
        self.answered += decodes - FORGET * self.answered

    def landed(self, plan: Plan, seconds: float) -> None:
        """Learn from what a step took."""
        shares = [Share.of(lane, self.lanes.away) for lane in plan.lanes]
        away = any(share.tokens for share in shares)
        expected = self.lanes.seconds(shares)
        if expected > 0 and seconds > 0:  # one that was held up says little of the next
            latest = min(seconds / expected, 4 * self.ratio[away])
            self.ratio[away] += RECENT * (latest - self.ratio[away])
        if not away:
            self.ratio[True] += FORGET * (self.ratio[False] - self.ratio[True])

    def most(self, here: Sequence[int]) -> int:
        """How many decodes away make steps worth most beside those at home, given by context, once
        prompts come as fast as answers end. A second lane costs the same for few and for many, so
        it is not enough to ask whether one more would pay."""
        context = sum(here) // max(1, len(here))
        counts = [0, *(n for n in (len(here) << i >> 2 for i in range(9)) if n <= MOST)]

        def worth(count: int) -> float:
            prompts = (len(here) + count) * self.asked / max(1.0, self.answered)
            return self._rate(here, [context] * count, prompts)

        return max(counts, key=worth)

    def chosen(self, here: Sequence[int], away: Sequence[Request], prompts: int) -> Collection[int]:
        """The uids of those away that take part in a step with so many prompt tokens."""
        left = {r.uid: self.left.get(r.uid, 0) for r in away}
        order = sorted(away, key=lambda r: -left[r.uid])
        contexts = [r.computed for r in order]
        overdue = sum(steps >= self.patience for steps in left.values())
        hidden = self._hidden(here, contexts, prompts)
        count = max((0, hidden, len(order)), key=lambda n: self._rate(here, contexts[:n], prompts))
        uids = [r.uid for r in order[: max(count, overdue)]]
        self.left = {uid: steps + 1 for uid, steps in left.items()} | dict.fromkeys(uids, 0)
        return set(uids)

    def split(self, here: Sequence[Chunk], away: Sequence[Chunk]) -> bool:
        """Are two lanes sooner done than one?"""
        both = [Share.of(chunks, self.lanes.away) for chunks in (here, away)]
        one = Share.of([*here, *away], self.lanes.away)
        return self.lanes.seconds(both) < self.lanes.seconds([one])

    def _rate(self, here: Sequence[int], away: Sequence[int], tokens: float) -> float:
        """Worth a second of a step with these decodes and so many prompt tokens."""
        prompts = [(int(tokens), 0)] if tokens >= 2 else []
        first = Share(Work(len(here), list(here), prompts))
        second = Share(Work(len(away), [0] * len(away)), sum(away))
        value = len(here) + len(away) + tokens * self.answered / max(1.0, self.asked)
        one = Share(Work(len(here) + len(away), [*here, *second.work.contexts], prompts), sum(away))
        seconds = min(self.lanes.seconds([first, second]), self.lanes.seconds([one]))
        seconds *= self.ratio[bool(away)]
        return value / seconds if seconds else 0.0

    def _hidden(self, here: Sequence[int], away: Sequence[int], tokens: int) -> int:
        """How many of those away the host reads while the device computes the others."""
        host = self.lanes.host
        prompts = [(tokens, 0)] if tokens >= 2 else []
        budget = self.lanes.device.seconds(Work(len(here), list(here), prompts))
        total = 0
        for count, context in enumerate(away):
            total += context
            if host is None or host.seconds(total) > budget:
                return count
        return len(away)


@dataclass(slots=True)
class Hybrid(OnDemand):
    """Newcomers for whom `home` has no room start on the tier `away`, whose decodes the host
    attends to; so does a request that was evicted, when its prefix has sunk there. It comes home
    when there is room for all of it. Without a `balance` that is always better than waiting."""

    away: Tier = Tier.CPU
    balance: Balance | None = None
    here: list[int] = field(default_factory=list)  # contexts of decodes at home
    there: int = 0  # requests away
    asleep: Sequence[Request] = ()  # decodes away, until it is known beside what they would go
    most: int = -1  # decodes that may be away; -1: not asked in this plan

    def begin(self, running: Collection[Request], cache: Cache) -> Collection[Request]:
        away = [r for r in running if r.pages and r.pages[-1].tier == self.away]
        self.here = [r.computed for r in running if r.decoding and r.pages[-1].tier == self.home]
        self.there = len(away)
        self.resting, self.most = (), -1
        back = self._returning(away, cache)
        if self.balance is not None:
            self.asleep = [r for r in away if r.decoding and r not in back]
            self.resting = {r.uid for r in self.asleep}
        return back

    def wake(self, chunks: Sequence[Chunk]) -> None:
        if self.balance is not None:
            here = [chunk.start + 1 for chunk in chunks if chunk.length == 1]
            prompts = sum(chunk.length for chunk in chunks if chunk.length > 1)
            chosen = self.balance.chosen(here, self.asleep, prompts)
            self.resting = {r.uid for r in self.asleep} - set(chosen)

    def _returning(self, away: Sequence[Request], cache: Cache) -> list[Request]:
        """The first of those away that fits at home twice."""
        for r in away:
            room = cache.room(self.home) >= 2 * cache.pages(len(r.tokens) + 1)
            if room and cache.reuse and r.decoding and self._holds(r, cache, self.home):
                return [r]
        return []

    def tier(self, r: Request, cache: Cache) -> Tier:
        if r.pages and (r.sent or r.pages[-1].tier == self.away):
            return Tier(r.pages[-1].tier)
        if not self._holds(r, cache, self.away):
            return self.home
        if not self._holds(r, cache, self.home):
            return self.away
        left = cache.room(self.home) + len(r.pages) - cache.pages(len(r.tokens))
        if left >= int(self.spare * cache.pools[self.home].size):
            return self.home
        return self.away if self._pays() else self.home

    def _pays(self) -> bool:
        """May one more be away?"""
        if self.balance is None:
            return True
        if self.most < 0:
            self.most = self.balance.most(self.here)
        return self.there < self.most

    @staticmethod
    def _holds(r: Request, cache: Cache, tier: Tier) -> bool:
        """Could a tier hold the request alone, to its last token?"""
        return cache.pages(r.prompt + r.sampling.max_tokens) <= cache.pools[tier].size

    def victim(self, after: Sequence[Request], r: Request, cache: Cache) -> Request | None:
        """The last that holds pages of the tier that `r` would have."""
        tier = self.tier(r, cache)
        return next(
            (other for other in reversed(after) if any(page.tier == tier for page in other.pages)),
            None,
        )

    def landed(self, plan: Plan, seconds: float) -> None:
        if self.balance is not None:
            self.balance.landed(plan, seconds)

    def lanes(self, chunks: Sequence[Chunk]) -> list[list[Chunk]]:
        """Decodes away beside all others, if that is sooner done."""
        here, away = OnDemand.lanes(self, chunks)
        if self.balance is not None:
            self.balance.observe(chunks)
            if not self.balance.split(here, away):
                return [list(chunks)]
        return [here, away]
