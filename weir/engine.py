"""The control loop: plan, submit, settle.

The engine knows requests and plans, and neither text, tensors nor clients.
"""

import logging
import math
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Protocol

from weir.core import Capacity, Delta, Matcher, Plan, Request, Result, Tier
from weir.cost.fetch import Fetch
from weir.cost.target import Target
from weir.errors import EngineDead
from weir.executor.base import Executor, Handle
from weir.grammar.library import Library
from weir.kv import snapshot
from weir.sched.scheduler import Scheduler
from weir.sched.shortest import Told
from weir.wire import Lengths, Stats

log = logging.getLogger(__name__)


class Keeper(Protocol):
    """Keeps pages of the coldest tier beyond the engine's life. Once `failed`, they are lost."""

    @property
    def failed(self) -> bool: ...

    def save(self, pages: list[int], kept: bytes) -> None:
        """Save these pages and the snapshot that describes them. Nothing is written after."""
        ...

    def forget(self, pages: list[int]) -> None:
        """Stop reading these pages ahead: the request that would have found them is gone."""
        ...

    def close(self) -> None: ...


PAUSE = 1e-4
"""Seconds to sleep when no request can be planned yet."""


class Engine:
    """The control loop over a scheduler and an executor.

    info: what it runs on, for people to read. target: the latency target of the scheduler; learns
    how long steps take. library: opens grammars. told: the ranking's predicted lengths, if it
    ranks by them. fetch: learns how long prompts take to compute. keeper: saves the coldest tier
    for the next engine.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        executor: Executor,
        clock: Callable[[], float] = time.monotonic,  # the same in every process
        info: dict[str, Any] | None = None,
        target: Target | None = None,
        library: Library | None = None,
        told: Told | None = None,
        fetch: Fetch | None = None,
        keeper: Keeper | None = None,
    ):
        self.info = info or {}
        self.fetch = fetch
        self.keeper = keeper
        self.lost: Keeper | None = None  # the keeper, once it has failed
        self.library = library
        self.told = told
        self.opening: dict[int, tuple[Request, Future[Matcher]]] = {}  # wait for their grammar
        self.scheduler = scheduler
        self.executor = executor
        self.target = target
        self.clock = clock
        self.capacity: Capacity = executor.capacity
        self.flying: deque[tuple[Plan, Handle]] = deque()
        self.unmasked: Plan | None = None  # the oldest in flight, if it waits for masks
        self.spent = 0.0  # host seconds for the plan that lands next
        self.shadow = 0.0  # seconds for which the device surely has work
        self._stats = Stats(pages_total=self.capacity.pages[scheduler.cache.hot])

    def add(self, request: Request) -> None:
        """Accept a request. One that can never run ends at once with a Delta that says why."""
        longest = request.prompt + request.sampling.max_tokens
        if not request.prompt or longest > self.capacity.context:
            why = f"{longest} tokens were asked for; this engine holds 1 to {self.capacity.context}"
            return self._refuse(request.uid, why)
        if why := self._unpinnable(request):
            return self._refuse(request.uid, why)
        if request.grammar is None:
            self.scheduler.add(request)
        elif self.library is None:
            return self._refuse(request.uid, "this engine was started without grammars")
        else:
            jumps = request.sampling.logprobs is None  # a forced token was not sampled: it has none
            most = request.sampling.max_tokens - 1
            opened = self.library.open(request.grammar, request.tokens, most, jumps)
            self.opening[request.uid] = request, opened
            self._open()
        self._stats.prompt_tokens += request.prompt

    def _unpinnable(self, request: Request) -> str:
        """Why the prompt of a request cannot be pinned; empty if it can or need not. An accepted
        request keeps the room for its pin, although it pins only at its end."""
        cache, name = self.scheduler.cache, request.sampling.pin
        if not name:
            return ""
        due: dict[str, int] = {}
        for one in (*self.scheduler.live.values(), *(one for one, _ in self.opening.values())):
            if (pin := one.sampling.pin) not in ("", name):
                due[pin] = max(due.get(pin, 0), cache.pages(one.prompt))
        room = cache.pinnable(self.capacity.context, name) - sum(due.values())
        if cache.reuse and cache.pages(request.prompt) <= room:
            return ""
        return (
            f"{request.prompt} tokens cannot be pinned as {name!r}: there is room for "
            f"{max(0, room) * cache.page if cache.reuse else 0}; unpin something, or give the KV "
            "cache more memory"
        )

    def unpin(self, name: str) -> None:
        """Allow a pinned prefix to be evicted again."""
        self.scheduler.cache.unpin(name)

    def _refuse(self, uid: int, why: str) -> None:
        self.scheduler.ended.append(Delta(uid, done="error", error=why, refused=True))

    def _open(self) -> None:
        """Pass requests whose grammar has been opened to the scheduler."""
        for uid, (request, opened) in list(self.opening.items()):
            if not opened.done():
                continue
            del self.opening[uid]
            try:
                request.matcher = opened.result()
                self.scheduler.add(request)
            except Exception as error:
                self._refuse(uid, f"the grammar could not be opened: {error}")

    def expect(self, lengths: Lengths) -> None:
        """Accept predicted lengths of requests that were added; they are ranked by them."""
        if self.told is None:
            return
        self.told.failure = self.told.failure or lengths.error
        for uid, tokens in lengths.tokens.items():
            if uid in self.opening:
                self.opening[uid][0].score = tokens
            else:
                self.told.expected.append((uid, tokens))

    def abort(self, uid: int) -> None:
        """End a request now. The next step returns its last Delta."""
        if self.opening.pop(uid, None) is not None:
            self.scheduler.ended.append(Delta(uid, done="abort"))
        request = self.scheduler.live.get(uid)
        if self.keeper is not None and request is not None:
            self.keeper.forget(self.scheduler.cache.cold(request))
        self.scheduler.abort(uid)

    def flush(self) -> None:
        """Drop every cached prefix that no request uses."""
        self.scheduler.cache.flush()

    @property
    def busy(self) -> bool:
        s = self.scheduler
        return bool(s.live or self.flying or s.ended or s.running.forget or self.opening)

    def step(self) -> list[Delta]:
        """Plan and submit one iteration, then settle the oldest one if `depth` are in flight.
        Returns what that one brought; nothing while fewer are in flight."""
        began = time.perf_counter()
        plan = None
        if self.library is not None:
            self.library.renew(self.shadow)
        if self.opening:
            self._open()
        if self.keeper is not None and self.keeper.failed:
            self._drop_disk(self.keeper)
        self._choose()
        if len(self.flying) < self.executor.depth:
            plan = self.scheduler.plan(self.clock())
            if plan is not None:
                self.flying.append((plan, self.executor.submit(plan)))
                known = any(delta.tokens for delta in self.scheduler.ended)  # of owed tokens
                if known or len(self.flying) < self.executor.depth:
                    self.spent += time.perf_counter() - began
                    return self._ended()
        self.spent += time.perf_counter() - began
        if not self.flying:
            deltas = self._ended()
            if plan is None and not deltas:
                time.sleep(PAUSE)  # every request waits for its mask
            return deltas
        plan, handle = self.flying.popleft()
        result = handle.result()
        landed = time.perf_counter()
        deltas = self._settle(plan, result)
        self._count(plan, result.seconds, deltas)
        self._stats.host_seconds.add(self.spent + time.perf_counter() - landed)
        self.spent = 0.0
        return deltas

    def _ended(self) -> list[Delta]:
        """Deltas that come from no plan's result."""
        deltas, self.scheduler.ended = self.scheduler.ended, []
        self._stats.generated_tokens += sum(len(delta.tokens) for delta in deltas)
        return deltas

    def _settle(self, plan: Plan, result: Result) -> list[Delta]:
        """Commit a plan that landed. The next one may wait for masks that depend on it."""
        if self.library is not None:
            self.library.hurry()
        deltas = self.scheduler.commit(plan, result)
        self.shadow = 0.0
        if self.flying:
            running = self.flying[0][0]
            self.unmasked = running if running.late else None
            if self.library is not None:  # a guess from below: half of its share by tokens
                share = min(1.0, running.tokens / max(1, plan.tokens))
                self.shadow = share * result.seconds / 2
        return deltas

    def _choose(self) -> None:
        """Send the plan that the device is computing the masks it lacked."""
        if self.unmasked is not None:
            plan, self.unmasked = self.unmasked, None
            self.executor.choose(self.scheduler.masks(plan))

    def _drop_disk(self, keeper: Keeper) -> None:
        """Drop the coldest tier. Plans in flight read only what was ready before they were made."""
        self.keeper = None
        self.lost = keeper
        self.scheduler.cache.disable(self.scheduler.cache.tiers[-1])

    def _count(self, plan: Plan, seconds: float, deltas: list[Delta]) -> None:
        stats, chunks = self._stats, plan.chunks
        tokens = prefill = 0
        for chunk in chunks:
            length = chunk.length
            tokens += length
            if chunk.start < chunk.prompt:
                prefill += length
        stats.step = plan.step
        stats.generated_tokens += sum(len(delta.tokens) for delta in deltas)
        if not chunks:  # only moves or forgets
            return
        stats.step_seconds.add(seconds)
        if self.target is not None:
            stats.target_seconds = self.target.seconds if self.target.seconds < math.inf else 0.0
            hot = self.scheduler.cache.hot
            if all(chunk.home == hot for chunk in chunks):  # else the host set its pace
                stats.predicted_seconds.add(self.target.observe(plan, seconds))
        if self.fetch is not None and prefill == tokens and not plan.moves:
            self.fetch.observe(prefill, seconds)
        stats.step_requests.add(len(chunks))
        stats.step_tokens.add(tokens)
        stats.step_prefill.add(prefill)
        stats.step_decode.add(tokens - prefill)

    def stats(self) -> Stats:
        """The current counters; always the same object."""
        stats, s = self._stats, self.scheduler
        hot = s.cache.hot
        stats.running = len(s.running)
        stats.waiting = len(s.waiting) + len(self.opening)
        stats.pages_pinned = s.cache.pinned
        stats.pages_cached = s.cache.tree.unlocked[hot]
        stats.pages_used = stats.pages_total - s.cache.room(hot)
        stats.hit_tokens = s.running.hits
        stats.cpu_hit_tokens = s.running.loaded[Tier.CPU]
        stats.disk_hit_tokens = s.running.loaded[Tier.DISK]
        stats.pages_cold = sum(n for tier, n in s.cache.tree.held.items() if tier != hot)
        stats.loaded_tokens = sum(s.cache.loaded.values())
        stats.saved_tokens = sum(s.cache.saved.values())
        stats.preemptions = s.running.preemptions
        stats.recomputed_tokens = s.running.recomputed
        stats.degraded = s.ranking.degraded
        return stats

    def close(self) -> None:
        """End all requests and close the executor. A keeper saves the cache for the next engine,
        unless the executor is dead. May be called twice."""
        keeper, self.keeper = self.keeper, None
        if keeper is not None:
            try:
                self._save(keeper)
            except (EngineDead, OSError) as error:
                log.warning("the KV cache was not saved: %s", error)
        self.executor.close()
        for one in (keeper, self.lost):
            if one is not None:
                one.close()
        if self.library is not None:
            self.library.close()

    def _save(self, keeper: Keeper) -> None:
        s = self.scheduler
        while self.flying:
            self._choose()
            plan, handle = self.flying.popleft()
            self._settle(plan, handle.result())
        for uid in list(s.live):
            s.abort(uid)
        plan = Plan(s.step, [], [], s.running.forget)
        s.cache.demote_all(plan.moves)
        self.executor.submit(plan).result()
        keeper.save(*snapshot.take(s.cache))
