"""Iteration-level scheduling: plans from the current time, deltas from results.

No clock, tensors or device. Requests advance when planned and settle when committed: `computed`
moves when a plan is made, so the next plan can be made before this one has run. A token to be
sampled is PENDING until its plan is committed.
"""

from weir.core import IDLE, Capacity, Chunk, Delta, Load, Plan, Request, Result, Tier
from weir.kv.cache import Cache
from weir.sched.advance import advance, decode, pay, recall, settle
from weir.sched.composer import Budget, Composer
from weir.sched.iteration import Iteration
from weir.sched.placement import OnDemand, cut
from weir.sched.ranking import Key, Ranking, order
from weir.sched.running import Running
from weir.sched.waiting import Entry, Waiting


class Scheduler:
    """Combines a Ranking, a Composer and a placement over one Cache.

    chains: whether a request may be planned again before its last token is known."""

    def __init__(
        self,
        cache: Cache,
        ranking: Ranking,
        composer: Composer,
        placement: OnDemand,
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
        layers = ranking.layers
        self.served = [one.served for one in layers if type(one).served is not Ranking.served]
        self.live: dict[int, Request] = {}
        self.running = Running(cache, ranking)
        self.waiting = Waiting(ranking)  # all others
        self.ended: list[Delta] = []  # deltas that come from no result, mostly ends
        self.owing: dict[int, Request] = {}  # those with `owed` tokens
        self.step = 0

    # -- arrivals and departures ---------------------------------------------------------------

    def add(self, r: Request) -> None:
        if r.matcher is not None:
            r.tokens += r.matcher.begin()
            r.settled = len(r.tokens)
        self.live[r.uid] = r
        self._wait(r)

    def abort(self, uid: int) -> None:
        """End a request. Unknown and ended uids are ignored."""
        r = self.live.get(uid)
        if r is not None and r.done is None:
            r.done = "abort"
            self.ended.append(Delta(uid, done=r.done, preempted=r.preempted))
            self._retire(r)

    def _wait(self, r: Request) -> None:
        for layer in self.ranking.layers:
            layer.enter(r)
        self.waiting.add((r,))

    # -- plan ----------------------------------------------------------------------------------

    def plan(self, now: float) -> Plan | None:
        """The next iteration; None if nothing can be computed until a plan lands."""
        if self.owing:
            self._pay()
        self.waiting.renew(self.ranking.before(self.step, self.waiting))
        it = Iteration(self.step, now, self.running, self.waiting, self.capacity.requests)
        self.cache.begin()
        waiting = len(self.waiting)
        for r in self.placement.begin(self.running, waiting, self.cache, it.moves):
            self._evict(r, it)
            it.kept = max(it.kept, self.cache.pages(len(r.tokens) + 1))
        ready = [entry for entry in it.began if self._ready(entry[1])]
        self._compose(ready, self._load(ready, now), it)
        if not it.chunks and ready:  # the decodes for which budget was reserved found no room
            self._compose(ready, IDLE, it)
        if self.placement.resting:
            self._wake(it)
        for r in it.evicted.values():
            self._wait(r)
        lanes, segment = self.placement.lanes(it.chunks)
        lanes = [lane for lane in lanes if lane]
        forget, self.running.forget = self.running.forget, []
        if not (lanes or segment or it.moves or forget):
            return None
        if (most := self.capacity.lane) < self.capacity.tokens:
            lanes = [part for lane in lanes for part in cut(lane, most)]
        self.step += 1
        return Plan(it.step, it.moves, lanes, forget, segment)

    def _wake(self, it: Iteration) -> None:
        """Add the resting requests that the placement wakes now that the plan is known."""
        self.placement.wake(it.chunks)
        planned = {chunk.uid for chunk in it.chunks}
        awake = [e for e in it.began if e[1].uid not in planned and self._ready(e[1])]
        self._compose(awake, IDLE, it, closed=True)

    def _load(self, ready: list[Entry], now: float) -> Load:
        begun = [r for _, r in ready if len(r.tokens) - r.computed > 1]
        decodes = [r.computed for _, r in ready if len(r.tokens) - r.computed == 1]
        backlog = sum(r.todo for r in begun) + self.waiting.todo
        first = self.waiting.first()
        next_up = begun if first is None else [*begun, first[1]]
        since = min((r.arrival for r in next_up if r.settled == r.prompt), default=now)
        return Load(len(decodes), sum(decodes), backlog, now - since)

    def _compose(self, ready: list[Entry], load: Load, it: Iteration, closed: bool = False) -> None:
        """Fill what is left of the iteration as the composer says, leaving tokens to decodes to
        come. closed: to those who wait."""
        tokens = self.capacity.tokens - sum(chunk.length for chunk in it.chunks)
        if closed and tokens <= 0:
            return
        tokens -= 0 if closed else len(self.placement.resting)
        requests = self.capacity.requests - len(it.chunks)
        ran = len(it.began)
        it.budget = budget = Budget(tokens, requests, load.decodes, load, ran, closed=closed)
        for r, length in self.composer.compose(it.ranked(ready), budget):
            chunk = self._schedule(r, min(length, budget.tokens, self.capacity.lane), it)
            if chunk is not None:
                length = r.computed - chunk.start
                it.take(chunk, length)
                r.last = self.step
                for served in self.served:
                    served(r, length)
            if budget.tokens <= 0 or budget.requests <= 0:
                break
        self.waiting.add([r for r in it.offered if not r.running])
        it.offered = []

    def _ready(self, r: Request) -> bool:
        """Whether the next tokens of `r` can be computed now."""
        if r.done is not None or r.owed is not None or r.todo <= 0 or not r.running:
            return False
        if r.uid in self.placement.resting:
            return False
        if r.settled == len(r.tokens):
            return r.flying == 0 or self.chains
        wants = len(r.tokens) - r.prompt < r.sampling.max_tokens
        # A matcher may replace the sampled token, and after a jump likely will; what penalties
        # have counted cannot be taken back.
        waits = r.matcher is not None and (r.jumped or r.sampling.penalised)
        return self.chains and r.sampled and wants and not waits

    def _schedule(self, r: Request, length: int, it: Iteration) -> Chunk | None:
        """Find the prefix of `r`, reserve pages and advance it by at most `length` tokens. None if
        it cannot be in this plan."""
        known = r.settled == len(r.tokens)
        if r.matcher is not None and known and (r.owed is not None or r.matcher.mask() is None):
            return None  # its mask is being computed; the others do not wait
        if r.prompt <= r.computed < r.sent * self.cache.page and r.decoding:
            return decode(r, r.pages[-1].tier)
        fresh = not r.running
        if fresh and (r.done is not None or not known):
            if r.done is None:
                it.kept = max(it.kept, self.cache.pages(len(r.tokens)))
            return None  # evicted with a token in flight: wait until it has landed
        key = order(self.ranking, (r,))[0] if fresh else None
        finds = fresh or (r.computed < r.prompt and not r.sampling.penalised)
        if finds and not self._attach(r, it):
            return None  # the next plan loads more of its prefix
        todo = r.todo
        length = todo if length >= todo else self._align(r, length, it)
        home = self._place(r, length, key, it) if length and self._leaves(r, it) else None
        if home is None:
            if fresh:
                self.cache.release(r)
                it.budget.closed = True  # no other newcomer may overtake it
            return None
        if fresh:
            self.running.start(r, it.now)
        if r.computed < r.prompt:
            it.prompts += 1
            end, needed = r.computed + length, r.sampling.uncached
            self.cache.share(r, end if needed is None else min(end, needed))
        return advance(r, length, home)

    def _attach(self, r: Request, it: Iteration) -> bool:
        """Attach the cached prefix of `r`. False if later plans load more of it: a newcomer then
        keeps waiting with room reserved, and others may overtake it only if it waits for a disk."""
        fresh, before, moved = not r.running, r.computed, len(it.moves)
        whole = self.cache.attach(r, self.placement.tier(r, self.cache), it.moves)
        if not fresh:
            self.running.found(r, before)
        elif not whole:
            self.cache.release(r)
            # Room for only one of them: a disk may be slow.
            it.kept = max(it.kept, self.cache.pages(len(r.tokens)))
            it.budget.closed |= len(it.moves) > moved
        return whole

    def _leaves(self, r: Request, it: Iteration) -> bool:
        """Whether a newcomer leaves room for those before it whose prefixes are being loaded."""
        if not it.kept or r in self.running:
            return True
        return self.placement.lacking(r, r.todo, self.cache) + it.kept <= 0

    def _align(self, r: Request, length: int, it: Iteration) -> int:
        """Shorten a chunk that does not reach the last token to end on a page boundary, so that
        others can share its pages. Only a plan's first prompt may have less than a page."""
        over = (r.computed + length) % self.capacity.page
        if over < length:
            return length - over
        return 0 if it.prompts else length

    def _place(self, r: Request, length: int, key: Key | None, it: Iteration) -> Tier | None:
        """Reserve pages and, for a newcomer that waited at `key`, a slot among those that may run.
        None if there is no room."""
        if key is None or not it.full:
            home = self.placement.place(r, length, self.cache, it.moves)
            if home is not None:
                return home
        return self._displace(r, length, key or order(self.ranking, (r,))[0], it)

    def _displace(self, r: Request, length: int, key: Key, it: Iteration) -> Tier | None:
        """Evict requests that rank after `key` and are not in this plan until `r` has room."""
        cache, placement, fresh = self.cache, self.placement, r not in self.running
        lacking = placement.lacking(r, length, cache)
        if lacking > 0 and sum(len(other.pages) for other in it.after(key, r)) < lacking:
            return None  # evicting all of them would not be enough
        for other in it.after(key, r):
            if not placement.yields(other, r, cache):
                continue
            self._evict(other, it)
            if not fresh or not it.full:
                home = placement.place(r, length, cache, it.moves)
                if home is not None:
                    return home
        return None

    def _evict(self, victim: Request, it: Iteration) -> None:
        it.budget.owed -= victim.decoding and self._ready(victim)
        it.evicted[victim.uid] = victim
        self.placement.evicted(victim)
        self.running.preempt(victim)

    # -- commit --------------------------------------------------------------------------------

    def commit(self, plan: Plan, result: Result) -> list[Delta]:
        """Settle what a plan produced. Plans are committed in the order they were made."""
        live, deltas, self.ended = self.live, self.ended, []
        self.placement.landed(plan, result.seconds, result.host)
        for chunk in plan.chunks:
            r = live[chunk.uid]
            r.flying -= 1
            if r.done is None:
                delta = settle(r, chunk, result)
                if delta is not None:
                    deltas.append(delta)
                elif r.owed is not None:
                    self.owing[r.uid] = r
                if r.lease is None:  # evicted in flight: its rank among the waiting has changed
                    self.waiting.renew((r,))
            if r.done is not None:
                self._retire(r)
        return deltas

    def _pay(self) -> None:
        """Settle owed tokens whose matchers have answered meanwhile."""
        for r in list(self.owing.values()):
            if r.done is not None:  # aborted meanwhile
                del self.owing[r.uid]
            elif (delta := pay(r, alone=len(self.live) == 1)) is not None:
                del self.owing[r.uid]
                self.ended.append(delta)
                if r.lease is None:
                    self.waiting.renew((r,))
                if r.done is not None:
                    self._retire(r)

    def masks(self, plan: Plan) -> dict[int, bytes]:
        """The masks, by uid, that `plan`, the oldest in flight, lacked until the plan before it
        was settled. A request whose mask is still unknown is recalled and waits for it alone."""
        self._pay()
        found, chunks = {}, plan.chunks
        for chunk in (chunk for chunk in chunks if chunk.late):
            r = self.live[chunk.uid]
            if r.void or r.done is not None:
                continue
            assert r.matcher is not None
            mask = r.matcher.mask(alone=len(chunks) == 1) if r.owed is None else None
            if mask is None:
                recall(r, r.settled - (r.owed is None))
                self.waiting.renew((r,))  # if it was evicted while it flew
            else:
                found[r.uid] = mask
        return found

    def _retire(self, r: Request) -> None:
        """Free what an ended request holds, once no plan in flight carries it."""
        if r.flying:
            return
        del self.live[r.uid]
        self.waiting.discard(r)
        for layer in self.ranking.layers:
            layer.leave(r)
        if r.running:
            del r.tokens[r.settled :]
            r.computed = min(r.computed, r.settled)
            self.running.stop(r)
            if r.sampling.pin and r.done in ("stop", "length"):
                self.cache.pin(r.sampling.pin, r.tokens[: r.prompt])
