"""Iteration-level scheduling: a time makes a plan, a result makes deltas.

Pure Python: no clock, no tensors, no device. Advance at plan, settle at commit: `computed` moves
when a plan is made, so the next plan can be made before this one has run, and a token scheduled to
be sampled stands as PENDING until its value is known.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterator

from weir.core import (
    PENDING,
    Budget,
    Capacity,
    Chunk,
    Delta,
    Move,
    Pick,
    Plan,
    Request,
    Result,
    Score,
    Tier,
)
from weir.errors import GrammarError
from weir.kv.cache import Cache
from weir.sched.composer import Composer
from weir.sched.placement import Placement
from weir.sched.ranking import Key, Ranking

Entry = tuple[Key, int, Request]  # the uid decides between equal keys; requests do not compare


class Scheduler:
    """A Ranking, a Composer and a Placement over one Cache.

    chains: whether a request may be planned again before its last token is known."""

    def __init__(
        self,
        cache: Cache,
        ranking: Ranking,
        composer: Composer,
        placement: Placement,
        capacity: Capacity,
        *,
        chains: bool = True,
    ):
        self.cache = cache
        self.ranking = ranking
        self.composer = composer
        self.placement = placement
        self.capacity = capacity
        self.chains = chains
        self.live: dict[int, Request] = {}
        self.running: dict[int, Request] = {}  # those that hold a lease
        self.waiting: list[Entry] = []  # those that do not, in order
        self.new: list[Request] = []
        self.forget: list[int] = []  # tables the executor may drop
        self.ended: list[Delta] = []  # ends that no result brings
        self.step = 0
        self.preemptions = 0
        self.recomputed = 0
        self.hits = 0

    # -- arrivals and departures ---------------------------------------------------------------

    def add(self, r: Request) -> None:
        if r.matcher is not None:
            r.tokens += r.matcher.begin(r.sampling.max_tokens - 1)
            r.settled = len(r.tokens)
        self.live[r.uid] = r
        self.new.append(r)

    def abort(self, uid: int) -> None:
        """End a request; unknown and ended uids are ignored."""
        r = self.live.get(uid)
        if r is not None and r.done is None:
            r.done = "abort"
            self.ended.append(Delta(uid, done=r.done, preempted=r.preempted))
            self._retire(r)

    # -- plan ----------------------------------------------------------------------------------

    def plan(self, now: float) -> Plan | None:
        """The next iteration, or None if nothing can be computed until a plan lands."""
        self._enqueue(now)
        key = self.ranking.key
        running = sorted((key(r, now), r.uid, r) for r in self.running.values())
        ready = [entry for entry in running if self._ready(entry[2])]
        it = _Iteration(running)
        decodes = [r.computed for _, _, r in ready if r.decoding]
        self._compose(ready, len(decodes), sum(decodes), it, now)
        if not it.chunks and ready:  # the decodes that the budget was kept for found no room
            self._compose(ready, 0, 0, it, now)
        self.waiting[: it.seen] = [e for e in self.waiting[: it.seen] if not e[2].running]
        for victim in it.evicted.values():
            insort(self.waiting, (key(victim, now), victim.uid, victim))
        if not (it.chunks or it.moves or self.forget):
            return None
        lanes = [lane for lane in self.placement.lanes(it.chunks) if lane]
        plan = Plan(self.step, it.moves, lanes, self.forget)
        self.step += 1
        self.forget = []
        return plan

    def _compose(
        self, ready: list[Entry], owed: int, context: int, it: _Iteration, now: float
    ) -> None:
        """Fill the iteration as the composer says, leaving `owed` tokens to decodes to come."""
        budget = it.budget = Budget(self.capacity.tokens, self.capacity.requests, owed, context)
        for r, length in self.composer.compose(self._ranked(ready, it), budget):
            chunk = self._schedule(r, min(length, budget.tokens), it, now)
            if chunk is not None:
                budget.take(chunk.length)
                it.chunks.append(chunk)
            if budget.tokens <= 0 or budget.requests <= 0:
                break

    def _enqueue(self, now: float) -> None:
        key = self.ranking.key
        if self.new:
            self.ranking.observe(self.new)
        if self.ranking.stale(len(self.waiting) + len(self.new)):
            self.waiting = sorted((key(r, now), uid, r) for _, uid, r in self.waiting)
        for r in self.new:
            insort(self.waiting, (key(r, now), r.uid, r))
        self.new = []

    def _ready(self, r: Request) -> bool:
        """Whether its next tokens can be computed now."""
        if r.done is not None or r.todo <= 0:
            return False
        if r.settled == len(r.tokens):
            return r.flying == 0 or self.chains
        wants = len(r.tokens) - r.prompt < r.sampling.max_tokens
        return self.chains and r.sampled and wants and r.matcher is None

    def _ranked(self, ready: list[Entry], it: _Iteration) -> Iterator[Request]:
        """Ready and waiting requests, merged in order. No more waiting ones come once what is left
        of the budget belongs to decodes, one of them found no room, or no more may run."""
        waiting, budget = self.waiting, it.budget

        def admits() -> bool:
            return (
                it.seen < len(waiting)
                and not it.full
                and budget.tokens > budget.owed
                and len(self.running) < self.capacity.requests
            )

        for entry in ready:
            while admits() and waiting[it.seen] < entry:
                it.seen += 1
                yield waiting[it.seen - 1][2]
            if entry[1] not in it.evicted:
                yield entry[2]
        while admits():
            it.seen += 1
            yield waiting[it.seen - 1][2]

    def _schedule(self, r: Request, length: int, it: _Iteration, now: float) -> Chunk | None:
        """Find `r`'s prefix, reserve its pages, and advance it by at most `length`."""
        if r.matcher is not None and r.matcher.mask() is None:
            return None  # its mask is being computed; nobody waits for it
        fresh = not r.running
        if fresh and (r.done is not None or r.settled < len(r.tokens)):
            return None  # evicted with a token in flight: wait until it has landed
        before = r.computed
        if fresh or (r.computed < r.prompt and not r.sampling.penalised):
            self.cache.attach(r, self.placement.coldest, it.moves)
        length = self._align(r, min(length, r.todo), it)
        home = self._place(Pick(r, length), it, now) if length else None
        if home is None:
            if fresh:
                self.cache.release(r)
                it.full = True  # nobody overtakes it
            return None
        self._account(r, before, fresh, now)
        if r.computed < r.prompt:
            it.prompts += 1
            if r.sampling.uncached is None:
                self.cache.share(r, r.computed + length)
        return self._advance(r, length, home)

    def _align(self, r: Request, length: int, it: _Iteration) -> int:
        """End a chunk on a page boundary unless it ends the tokens, so that others can go on from
        it. What is left of a budget under one page goes to the first prompt of a plan only."""
        if length == r.todo:
            return length
        over = (r.computed + length) % self.capacity.page
        if over < length:
            return length - over
        return 0 if it.prompts else length

    def _place(self, pick: Pick, it: _Iteration, now: float) -> Tier | None:
        """Reserve pages, taking them from whoever ranks last, after the pick, and is not yet in
        this plan."""
        r = pick.request
        while (home := self.placement.place(pick, self.cache, it.moves)) is None:
            victim = it.last(after=(self.ranking.key(r, now), r.uid, r))
            if victim is None:
                return None
            decoding = victim.decoding and self._ready(victim)
            victim.peak = max(victim.peak, victim.computed)
            self.placement.evict(victim, self.cache, it.moves)
            if not victim.running:
                it.budget.owed -= decoding
                it.evicted[victim.uid] = victim
                victim.preempted += 1
                self.preemptions += 1
                self._stop(victim)
        return home

    def _account(self, r: Request, before: int, fresh: bool, now: float) -> None:
        """Note what the cache gave `r`, and that it runs."""
        if fresh:
            self.running[r.uid] = r
        if r.preempted == 0:
            gained = min(r.computed, r.prompt) - min(before, r.prompt)
            r.cached += gained
            self.hits += gained
        elif fresh:
            self.recomputed += max(0, min(r.peak, len(r.tokens)) - r.computed)
        if r.started < 0:
            r.started = now

    def _stop(self, r: Request) -> None:
        del self.running[r.uid]
        r.sampled = False
        self.forget.append(r.uid)

    def _advance(self, r: Request, length: int, home: Tier) -> Chunk:
        """The chunk that computes `length` more tokens of `r`, which are computed from here on."""
        start, end = r.computed, r.computed + length
        final = end == len(r.tokens)
        samples = final and r.sampling.max_tokens > 0 and r.sampling.pool is None
        chunk = Chunk(
            uid=r.uid,
            start=start,
            ids=[] if r.sampled and final and length == 1 else r.tokens[start:end],
            pages=r.pages[r.sent :],
            home=home,
            sample=r.sampling if samples else None,
            prompt=r.prompt,
            history=r.tokens[:start] if r.sent == 0 and r.sampling.penalised else None,
            score=_score(r, start, end),
            pool=r.sampling.pool,
            final=final,
            mask=r.matcher.mask() if samples and r.matcher is not None else None,
        )
        r.sent = len(r.pages)
        r.computed = end
        r.flying += 1
        if samples:
            r.sampled = True
            r.tokens.append(PENDING)
        return chunk

    # -- commit --------------------------------------------------------------------------------

    def commit(self, plan: Plan, result: Result) -> list[Delta]:
        """Settle what a plan produced. Plans are committed in the order they were made."""
        deltas, self.ended = self.ended, []
        for lane in plan.lanes:
            for chunk in lane:
                r = self.live[chunk.uid]
                r.flying -= 1
                if r.done is None:
                    delta = self._settle(r, chunk, result)
                    if delta is not None:
                        deltas.append(delta)
                if r.done is not None:
                    self._retire(r)
        return deltas

    def _settle(self, r: Request, chunk: Chunk, result: Result) -> Delta | None:
        uid = r.uid
        if uid in result.failed:
            r.done = "error"
            return Delta(uid, done=r.done, error=result.failed[uid], preempted=r.preempted)
        scores = result.scores.get(uid, [])
        if not (chunk.sample or chunk.final or scores):
            return None
        delta = Delta(uid, scores=scores)
        first = r.told == r.prompt
        if chunk.sample is not None:
            if uid in result.logprobs:
                delta.logprobs = [result.logprobs[uid]]
            try:
                _append(r, result.tokens[uid])
            except GrammarError as error:
                r.done, delta.error = "error", str(error)
            delta.tokens = r.tokens[r.told : r.settled]
            r.told = r.settled
        elif chunk.final:
            delta.vector = result.vectors.get(uid)
            r.done = "stop" if r.sampling.pool else "length"
        if first:
            delta.cached, delta.started = r.cached, r.started
        if r.done is not None:
            delta.done, delta.preempted = r.done, r.preempted
        return delta

    def _retire(self, r: Request) -> None:
        """Give back what an ended request holds, once no plan in flight carries it."""
        if r.flying:
            return
        del self.live[r.uid]
        if r.running:
            del r.tokens[r.settled :]
            r.computed = min(r.computed, r.settled)
            self.cache.release(r)
            self._stop(r)
        elif r in self.new:
            self.new.remove(r)
        else:
            self.waiting = [entry for entry in self.waiting if entry[2] is not r]


class _Iteration:
    """What one call of `plan` gathers."""

    __slots__ = ("budget", "chunks", "evicted", "full", "moves", "prompts", "running", "seen")

    def __init__(self, running: list[Entry]):
        self.running = running  # in order; victims are taken from the end
        self.budget = Budget(0, 0)
        self.chunks: list[Chunk] = []
        self.moves: list[Move] = []
        self.evicted: dict[int, Request] = {}
        self.prompts = 0  # chunks of prompts
        self.seen = 0  # waiting requests that were offered
        self.full = False  # a waiting request found no room

    def last(self, after: Entry) -> Request | None:
        """The last running request, if it ranks after the given one and is not in the plan."""
        taken = {chunk.uid for chunk in self.chunks}
        while self.running and self.running[-1] > after:
            r = self.running.pop()[2]
            if r.uid not in taken and r.done is None and r.running:
                return r
        return None


def _append(r: Request, token: int) -> None:
    """Settle a sampled token, and with a grammar also what must follow it, up to where the answer
    ends. Raises `GrammarError`."""
    stops, room = r.sampling.stops, r.prompt + r.sampling.max_tokens - r.settled
    tokens = [token]
    if token in stops:
        r.done = "stop"
    elif r.matcher is not None:
        tokens = r.matcher.advance(token)
        r.sampled = r.sampled and tokens == [token]  # else the executor's token is not ours
        if r.matcher.complete:
            r.done = "stop"
        stopped = next((at for at, one in enumerate(tokens[:room], 1) if one in stops), 0)
        if stopped:
            tokens, r.done = tokens[:stopped], "stop"
        elif len(tokens) > room:
            tokens, r.done = tokens[:room], "length"
    r.tokens[r.settled : r.settled + 1] = tokens
    r.settled += len(tokens)
    if r.done is None and len(tokens) >= room:
        r.done = "length"


def _score(r: Request, start: int, end: int) -> Score | None:
    """Prompt logprobs that the chunk [start, end) can give and that were not given before."""
    top = r.sampling.prompt_logprobs
    if top is None:
        return None
    first = max(start, r.scored, r.sampling.score_from - 1)
    targets = r.tokens[first + 1 : min(end, r.prompt - 1) + 1]
    r.scored = max(r.scored, first + len(targets))
    return Score(first - start, targets, top) if targets else None
