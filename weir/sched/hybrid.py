"""KV on the device while there is room, and in main memory beyond, where the host's cores attend to
it (NEO, arXiv 2411.01142). Knows what lanes cost, no device.
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field

from weir.core import Chunk, Move, Plan, Request, Segment, Tier
from weir.cost.lanes import Lanes, Share
from weir.cost.work import Work
from weir.kv.cache import Cache
from weir.sched.placement import OnDemand, parted

RECENT = 0.05
"""Weight of the latest step in running means."""
FORGET = 0.002
"""What a step takes off older ones' part in the proportion of answers and prompts and, without
decodes away, off the doubt in those that have some."""

GAIN = 1.05
"""Of tokens a second, below which nobody is sent away: costs are not known better."""
SELDOM = 0.01
"""The least share of steps that is taken to have prompts."""
PASS = 12
"""Plans that decodes away may take for a token, while others get one from each."""
MOST = 1024
"""Decodes away that are thought of."""


@dataclass(slots=True)
class Balance:
    """Whether decodes that the host attends to are worth what they cost the device: a pass over the
    model's weights, which takes as many plans as the host needs for it. `device`, `host`: how many
    times as long as reckoned each took lately; `both`: steps with decodes away, beyond that.

    patience: steps after which a decode that was left out goes first and whatever it costs.
    longest: plans that a pass may take; 1 where weights are at hand for one layer after another."""

    lanes: Lanes
    patience: int = 32
    longest: int = PASS
    asked: float = 50_000.0  # prompt tokens of all steps; those before the first are a guess
    answered: float = 10_000.0  # and decodes
    steps: float = 20.0  # with decodes at home
    begun: float = 20.0  # of them, with prompts at home
    left: dict[int, int] = field(default_factory=dict)  # steps that a decode was left out
    device: float = 1.0
    host: float = 1.0
    both: float = 1.0

    def observe(self, chunks: Collection[Chunk]) -> None:
        home = [chunk.length for chunk in chunks if chunk.home != self.lanes.away]
        if 1 in home:
            self.steps += 1 - FORGET * self.steps
            self.begun += (max(home) > 1) - FORGET * self.begun
        lengths = [chunk.length for chunk in chunks]
        decodes = lengths.count(1)
        prompts = sum(lengths) - decodes
        self.asked += prompts - FORGET * self.asked
        self.answered += decodes - FORGET * self.answered

    def landed(self, plan: Plan, seconds: float, host: float = 0.0) -> None:
        """Learn from what a step took, and the host's part of it; 0: that is not known. With
        requests away a step says only that the device takes no longer than all of it."""
        shares = self.lanes.shares(plan)
        busy, reads = map(sum, self.lanes.parts(shares))
        alone = not reads and all(chunk.home != self.lanes.away for chunk in plan.chunks)
        if busy > 0 and seconds > 0 and (alone or seconds < self.device * busy):
            self.device = _nearer(self.device, seconds / busy)
        if not reads:
            self.host += FORGET * (1 - self.host)
            self.both += FORGET * (1 - self.both)
            return
        if host > 0:
            self.host = _nearer(self.host, host / reads)
        if seconds > 0:
            expected = self.lanes.seconds(shares, self.device, self.host)
            self.both = _nearer(self.both, seconds / expected)

    def most(self, here: Sequence[int], there: int = MOST) -> int:
        """How many decodes away, `there` at most, make most tokens a second beside those at home,
        given by context, once prompts come as fast as answers end. A pass costs nearly the same
        for few and for many, so it is not enough to ask whether one more would pay."""
        counts = {min(there, MOST, len(here) << i >> 2) for i in range(9)} - {0}
        best = max(counts, key=lambda count: self._rate(here, count), default=0)
        return best if best and self._rate(here, best) > GAIN * self._rate(here, 0) else 0

    def _rate(self, here: Sequence[int], count: int) -> float:
        """Tokens a second with so many away, like those here."""
        each = self.asked / max(1.0, self.answered)
        tokens, plans, step = count * sum(here) // max(1, len(here)), 1.0, 0.0
        for _ in range(3):  # a step has more prompts if it has more decodes, so it hides more
            decodes = len(here) + count / plans
            some = 1 - (1 - self.begun / self.steps) ** (decodes / len(here))  # of them have any
            some = max(some, SELDOM)
            step = some * self._step(here, int(each * decodes / some))
            step += (1 - some) * self._step(here, 0)
            plans = max(1.0, self._reads(tokens) / step)
        if count and plans > self.longest:
            return 0.0
        seconds = plans * step + (self._linear(count) if count else 0.0)
        return (plans * len(here) + count) / (seconds * (self.both if count else 1.0))

    def chosen(self, here: Sequence[int], away: Sequence[Request], prompts: int) -> Collection[int]:
        """The uids of those away that begin a pass in a step with so many prompt tokens."""
        step = self._step(here, prompts)
        left = {r.uid: self.left.get(r.uid, 0) for r in away}
        uids: list[int] = []
        total = 0
        for r in sorted(away, key=lambda r: -left[r.uid]):
            total += r.computed
            if uids and step and self._reads(total) > self.longest * step:
                break
            uids.append(r.uid)
        value = len(here) + prompts * self.answered / max(1.0, self.asked)
        pays = step * len(uids) > value * self._linear(len(uids)) * self.both
        if not (pays or step == 0 or max(left.values(), default=0) >= self.patience):
            uids = []
        self.left = {uid: steps + 1 for uid, steps in left.items()} | dict.fromkeys(uids, 0)
        return set(uids)

    def layers(self, here: Iterable[Chunk], latest: Segment) -> int:
        """How many more of a pass the host ends while the device computes the chunks here, so that
        these do not wait for it; one, if not even that."""
        step = self.device * self.lanes.device.seconds(Share.of(here, self.lanes.away).work)
        if self.longest == 1 or not step:
            return latest.layers
        reads = self._reads(sum(chunk.start + 1 for chunk in latest.chunks))
        return max(1, int(latest.layers * step / reads)) if reads else latest.layers

    def _step(self, here: Sequence[int], prompts: int) -> float:
        work = Work(len(here), list(here), [(prompts, 0)] if prompts > 1 else [])
        return self.device * self.lanes.device.seconds(work)

    def _linear(self, count: int) -> float:
        return self.device * self.lanes.device.seconds(Work(count, [0] * count))

    def _reads(self, tokens: int) -> float:
        host = self.lanes.host
        return self.host * host.seconds(tokens) if host is not None else 0.0


def _nearer(mean: float, latest: float) -> float:
    """A running mean. One step that was held up says little of the next."""
    return mean + RECENT * (min(latest, 4 * mean) - mean)


@dataclass(slots=True)
class Hybrid(OnDemand):
    """Newcomers for whom `home` has no room start on the tier `away`, whose decodes the host
    attends to; so does a request that was evicted, when its prefix has sunk there. It comes home
    when there is room for all of it. Without a `balance` that is always better than waiting."""

    away: Tier = Tier.CPU
    balance: Balance | None = None
    here: list[int] = field(default_factory=list)  # contexts of decodes at home
    there: int = 0  # requests away
    waiting: int = 0  # that hold no pages
    candidates: Sequence[Request] = ()  # decodes away that may begin a pass
    most: int = -1  # decodes that may be away; -1: not asked in this plan
    segment: Segment | None = None  # the latest of a pass under way
    passing: set[int] = field(default_factory=set)  # whose that is
    coming: Request | None = None  # who was let go last, to come home
    starting: bool = False  # whether somebody's prompt is computed away

    def begin(
        self, running: Collection[Request], waiting: int, cache: Cache
    ) -> Collection[Request]:
        self.passing = {c.uid for c in self.segment.chunks} if self.segment is not None else set()
        away = [r for r in running if r.pages and r.pages[-1].tier == self.away]
        self.here = [r.computed for r in running if r.decoding and r.pages[-1].tier == self.home]
        self.there, self.waiting = len(away), waiting
        self.starting = not all(r.decoding for r in away)
        self.resting, self.most = (), -1
        back = self._returning(away, cache)
        if self.balance is not None:
            self.candidates = [r for r in away if r.decoding and r not in back]
            self.resting = {r.uid for r in self.candidates} | self.passing
        return back

    def wake(self, chunks: Sequence[Chunk]) -> None:
        if self.balance is not None and self.segment is None:
            here = [chunk.start + 1 for chunk in chunks if chunk.length == 1]
            prompts = sum(chunk.length for chunk in chunks if chunk.length > 1)
            chosen = self.balance.chosen(here, self.candidates, prompts)
            self.resting = {r.uid for r in self.candidates} - set(chosen)

    def _returning(self, away: Sequence[Request], cache: Cache) -> list[Request]:
        """The first of those away that fits at home twice, once the one before it is there."""
        if self.coming is not None and not (self.coming.running or self.coming.done):
            return []
        for r in (r for r in away if r.uid not in self.passing):
            room = cache.room(self.home) >= 2 * cache.pages(len(r.tokens) + 1)
            if room and cache.reuse and r.decoding and self._holds(r, cache, self.home):
                self.coming = r
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

    def place(self, r: Request, length: int, cache: Cache, moves: list[Move]) -> Tier | None:
        tier = OnDemand.place(self, r, length, cache, moves)
        self.starting |= tier == self.away and not r.decoding
        return tier

    def _pays(self) -> bool:
        """May one more be away?"""
        if self.balance is None:
            return True
        if self.starting and self.here:  # prompts one by one: decodes at home wait for all of them
            return False
        if self.most < 0:
            crowd = (self.there + self.waiting) // 2  # as many wait, so prompts go on coming
            self.most = self.balance.most(self.here, crowd)
        return self.there < self.most

    @staticmethod
    def _holds(r: Request, cache: Cache, tier: Tier) -> bool:
        """Could a tier hold the request alone, to its last token?"""
        return cache.pages(r.prompt + r.sampling.max_tokens) <= cache.pools[tier].size

    def yields(self, other: Request, r: Request, cache: Cache) -> bool:
        """Only who holds pages of the tier that `r` would have, and is in no plan under way."""
        tier = self.tier(r, cache)
        return other.uid not in self.passing and any(page.tier == tier for page in other.pages)

    def landed(self, plan: Plan, seconds: float, host: float) -> None:
        if self.balance is not None:
            self.balance.landed(plan, seconds, host)

    def lanes(self, chunks: Sequence[Chunk]) -> tuple[list[list[Chunk]], Segment | None]:
        """Decodes away beside all others, at the pace of the host."""
        here, away = parted(chunks, self.away)
        if self.balance is None:
            return [here, away], None
        self.balance.observe(chunks)
        begun = self.segment
        if begun is None and not away:
            return [here], None
        latest = begun or Segment(away, 0, 0, self.balance.lanes.layers)
        end = min(latest.layers, latest.end + self.balance.layers(here, latest))
        segment = Segment(latest.chunks, latest.end, end, latest.layers)
        self.segment = None if segment.last else segment
        if segment.share == 1:
            return [here, away], None
        return [here, [] if begun is None else away], segment
