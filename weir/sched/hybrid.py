"""Keeps KV on the device while there is room. Beyond that, KV of some requests stays in main
memory, where the host's cores compute their decode attention (NEO, arXiv 2411.01142). Works on
costs alone.
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field

from weir.core import Chunk, Move, Plan, Request, Segment, Tier
from weir.cost.lanes import PARTS, Lanes, Share
from weir.cost.work import Work
from weir.kv.cache import Cache
from weir.sched.placement import OnDemand, parted

RECENT = 0.05
"""Weight of the newest step in running means."""
FORGET = 0.002
"""How fast older steps are forgotten: in the mix of prompts and decodes, and, while no decode is
away, in what was learned about steps that have some."""

GAIN = 1.05
"""Predicted gain in tokens/s below which no request is sent away: predictions are no better."""
SELDOM = 0.01
"""Lower bound of the assumed share of steps with prompts."""
PASS = 12
"""Plans that decodes away may take for one token, while others get one token from each plan."""
MOST = 1024
"""Upper bound of the number of decodes away that is considered."""
PATIENT = 8
"""Plans that newcomers wait for room to compute their prompts at home. Away they take longer: each
layer's KV is written to the host while the device computes, and launched one by one."""


@dataclass(slots=True)
class Balance:
    """Decides whether decodes away pay. They cost the device one more pass over the weights, which
    is spread over as many plans as the host needs for its part.

    device, host: measured over predicted time of each side, as running means. both: the same for
    whole steps with decodes away, after correcting each side.
    patience: steps after which a decode that was left out goes first, whatever it costs.
    longest: plans that a pass may take; 1 if weights are streamed, one layer after another."""

    lanes: Lanes
    patience: int = 32
    longest: int = PASS
    asked: float = 50_000.0  # recent prompt tokens; the initial value is a guess
    answered: float = 10_000.0  # recent decodes
    steps: float = 20.0  # recent steps with decodes at home
    begun: float = 20.0  # those of them with prompts at home
    left: dict[int, int] = field(default_factory=dict)  # uid → steps for which it was left out
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
        """Learn from the seconds of a step and of the host's part of it (0: unknown). A step with
        requests away only bounds the device's time from above."""
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
        """The number of decodes away, at most `there`, with the highest predicted tokens/s beside
        decodes at home of these contexts, in a steady state where prompts arrive as fast as answers
        end. A pass costs nearly the same for few decodes as for many, so adding one at a time would
        never seem to pay."""
        counts = {min(there, MOST, len(here) << i >> 2) for i in range(9)} - {0}
        best = max(counts, key=lambda count: self._rate(here, count), default=0)
        return best if best and self._rate(here, best) > GAIN * self._rate(here, 0) else 0

    def _rate(self, here: Sequence[int], count: int) -> float:
        """Predicted tokens/s with `count` decodes away whose contexts are like those at home."""
        each = self.asked / max(1.0, self.answered)
        tokens, plans, step = count * sum(here) // max(1, len(here)), 1.0, 0.0
        for _ in range(3):  # more decodes mean more prompts, so longer steps, which hide more
            decodes = len(here) + count / plans
            some = 1 - (1 - self.begun / self.steps) ** (decodes / len(here))  # steps with prompts
            some = max(some, SELDOM)
            step = some * self._step(here, int(each * decodes / some))
            step += (1 - some) * self._step(here, 0)
            plans = max(1.0, self._reads(tokens) / step)
        if count and plans > self.longest:
            return 0.0
        seconds = plans * step + (self._linear(count) if count else 0.0)
        return (plans * len(here) + count) / (seconds * (self.both if count else 1.0))

    def chosen(self, here: Sequence[int], away: Sequence[Request], prompts: int) -> Collection[int]:
        """The uids of the decodes away that begin a pass in a step with so many prompt tokens."""
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

    def layers(self, here: Collection[Chunk], latest: Segment) -> int:
        """How many more layers of a pass the host finishes while the device computes the chunks at
        home, so that these do not wait; at least one, and beside decodes alone at most `PARTS`."""
        step = self.device * self.lanes.device.seconds(Share.of(here, self.lanes.away).work)
        if self.longest == 1 or not step:
            return latest.layers
        most = PARTS if all(chunk.length == 1 for chunk in here) else latest.layers
        reads = self._reads(sum(chunk.start + 1 for chunk in latest.chunks))
        return min(most, max(1, int(latest.layers * step / reads))) if reads else most

    def _step(self, here: Sequence[int], prompts: int) -> float:
        work = Work(len(here), list(here), [(prompts, 0)] if prompts > 1 else [])
        return self.device * self.lanes.device.seconds(work)

    def _linear(self, count: int) -> float:
        return self.device * self.lanes.device.seconds(Work(count, [0] * count))

    def _reads(self, tokens: int) -> float:
        host = self.lanes.host
        return self.host * host.seconds(tokens) if host is not None else 0.0


def _nearer(mean: float, latest: float) -> float:
    """The running mean after one more value, which is capped: one delayed step proves little."""
    return mean + RECENT * (min(latest, 4 * mean) - mean)


@dataclass(slots=True)
class Hybrid(OnDemand):
    """Has the host compute the decode attention of some requests, whose KV is on the tier `away`.

    Once `home` has room for only one more newcomer, those for whom it pays leave `home` when their
    prompts are computed, so the next one finds that room again. Newcomers that wait too long for it
    are computed away. An evicted request whose prefix has moved there continues there too. It comes
    home when there is room for all of it. Without a `balance`, leaving always pays."""

    away: Tier = Tier.CPU
    balance: Balance | None = None
    here: list[int] = field(default_factory=list)  # contexts of decodes at home
    there: int = 0  # requests away
    waiting: int = 0  # requests without pages
    candidates: Sequence[Request] = ()  # decodes away that may begin a pass
    most: int = -1  # how many decodes may be away; -1: not computed in this plan
    segment: Segment | None = None  # the latest segment of a pass under way
    passing: set[int] = field(default_factory=set)  # uids in that pass
    coming: Request | None = None  # the last request that was sent home
    starting: bool = False  # whether the prompt of a request that will be away is being computed
    leaving: set[int] = field(default_factory=set)  # uids that leave home after their prompts
    left: set[int] = field(default_factory=set)  # those that left home in this plan
    blocked: int = 0  # plans in which requests waited and none of them could start
    patience: int = PATIENT  # 0: prompts are computed where their KV stays, as large steps allow

    def begin(
        self, running: Collection[Request], waiting: int, cache: Cache, moves: list[Move]
    ) -> Collection[Request]:
        self.passing = {c.uid for c in self.segment.chunks} if self.segment is not None else set()
        self._send(running, cache, moves)
        self._count(running, cache)
        away = [r for r in running if r.pages and r.pages[-1].tier == self.away]
        self.here = [r.computed for r in running if r.decoding and r.pages[-1].tier == self.home]
        self.there, self.waiting = len(away) + len(self.leaving), waiting
        self.starting = bool(self.leaving) or not all(r.decoding for r in away)
        self.blocked = self.blocked + 1 if waiting else 0
        self.resting, self.most = self.left, -1
        back = self._returning(away, cache)
        if self.balance is not None:
            stay = {r.uid for r in back} | self.left
            self.candidates = [r for r in away if r.decoding and r.uid not in stay]
            self.resting = {r.uid for r in self.candidates} | self.passing | self.left
        return back

    def _send(self, running: Iterable[Request], cache: Cache, moves: list[Move]) -> None:
        """Move the pages of those whose prompts are computed. Their next tokens wait for the next
        plan, so that the host need not wait for the pages."""
        leaving = [r for r in running if r.uid in self.leaving]
        done = [r for r in leaving if r.decoding]
        self.left = {r.uid for r in done if cache.send(r, self.away, moves)}
        self.leaving = {r.uid for r in leaving if not r.decoding}

    def wake(self, chunks: Sequence[Chunk]) -> None:
        if self.balance is not None and self.segment is None:
            here = [chunk.start + 1 for chunk in chunks if chunk.length == 1]
            prompts = sum(chunk.length for chunk in chunks if chunk.length > 1)
            chosen = self.balance.chosen(here, self.candidates, prompts)
            self.resting = {r.uid for r in self.candidates} - set(chosen) | self.left

    def _returning(self, away: Sequence[Request], cache: Cache) -> list[Request]:
        """The first request away that fits at home twice over, once the one before it is there."""
        if self.coming is not None and not (self.coming.running or self.coming.done):
            return []
        for r in (r for r in away if r.uid not in self.passing):
            room = cache.room(self.home) >= 2 * cache.pages(len(r.tokens) + 1)
            if room and cache.reuse and r.decoding and self._holds(r, cache, self.home):
                self.coming = r
                return [r]
        return []

    def tier(self, r: Request, cache: Cache) -> Tier:
        if r.pages and (r.sent >= 0 or r.pages[-1].tier == self.away):
            return Tier(r.pages[-1].tier)
        if not self._holds(r, cache, self.away):
            return self.home
        if not self._holds(r, cache, self.home):
            return self.away
        if self.blocked < self.patience or self._left(r, cache) >= self._kept(r, self.home, cache):
            return self.home
        return self.away if self._pays() else self.home

    def admits(self, r: Request, cache: Cache) -> bool:
        return self._leaves(r, cache) or OnDemand.admits(self, r, cache)

    def place(self, r: Request, length: int, cache: Cache, moves: list[Move]) -> Tier | None:
        fresh, leaves = r.sent < 0, self._leaves(r, cache)
        tier = OnDemand.place(self, r, length, cache, moves)
        if tier is not None and fresh:
            self.blocked = 0
            if leaves:
                self.leaving.add(r.uid)
            self.starting |= leaves or (tier == self.away and not r.decoding)
        return tier

    def _leaves(self, r: Request, cache: Cache) -> bool:
        """Whether a newcomer is to leave home after its prompt."""
        if r.sent >= 0 or r is self.coming or not self.patience:
            return False
        if self.tier(r, cache) == self.away:
            return False
        if not self._holds(r, cache, self.away):
            return False
        one_more = cache.pages(len(r.tokens)) + self._kept(r, self.home, cache)
        return 0 <= self._left(r, cache) < one_more and self._pays()

    def _left(self, r: Request, cache: Cache) -> int:
        """Pages that stay free at home beside all known tokens of a newcomer."""
        return cache.room(self.home) + len(r.pages) - cache.pages(len(r.tokens))

    def _pays(self) -> bool:
        """Whether one more request may be away."""
        if self.balance is None:
            return True
        if self.starting and self.here:  # one prompt at a time: decodes at home wait for it
            return False
        if self.most < 0:
            crowd = (self.there + self.waiting) // 2  # as many must wait, so that prompts follow
            self.most = self.balance.most(self.here, crowd)
        return self.there < self.most

    @staticmethod
    def _holds(r: Request, cache: Cache, tier: Tier) -> bool:
        """Whether a tier could hold the request alone, up to its last token."""
        return cache.pages(r.prompt + r.sampling.max_tokens) <= cache.pools[tier].size

    def yields(self, other: Request, r: Request, cache: Cache) -> bool:
        """Only a request with pages of the tier that `r` needs, and not in a pass under way."""
        tier = self.tier(r, cache)
        return other.uid not in self.passing and any(page.tier == tier for page in other.pages)

    def landed(self, plan: Plan, seconds: float, host: float) -> None:
        if self.balance is not None:
            self.balance.landed(plan, seconds, host)

    def lanes(self, chunks: Sequence[Chunk]) -> tuple[list[list[Chunk]], Segment | None]:
        """Decodes away run beside all others, at the host's pace."""
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
