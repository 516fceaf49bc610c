"""Replays a workload on engines in virtual time: one replica, or many behind a router.

Engines, schedulers and caches are the real ones; only the executor is simulated. Between arrivals
replicas are independent, so each simply runs until the next arrival.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from weir.balance import RoundRobin, Router
from weir.core import Delta, Request, Sampling
from weir.engine import Engine
from weir.errors import ConfigError, EngineDead
from weir.executor.sim import VirtualClock
from weir.sim.report import Record
from weir.sim.workload import Workload


@dataclass(slots=True)
class Replica:
    """An engine whose executor moves `clock`, and the requests it was given.

    watch: called with this replica after each step that landed."""

    engine: Engine
    clock: VirtualClock
    watch: Callable[[Replica], None] | None = None
    live: dict[int, Record] = field(default_factory=dict)
    given: int = 0
    ended: int = 0
    ends: deque[float] = field(default_factory=deque)  # times, of requests not yet in `ended`

    def submit(self, request: Request, record: Record) -> None:
        """Take a request at its arrival or, if a step is running then, when that lands."""
        self.clock.advance(request.arrival)
        self.live[request.uid] = record
        self.given += 1
        self.engine.add(request)

    def load(self, now: float) -> int:
        """Requests given but not ended by `now`."""
        while self.ends and self.ends[0] <= now:
            self.ends.popleft()
            self.ended += 1
        return self.given - self.ended

    def run(self, until: float) -> None:
        """Step while there is work and the clock is before `until`."""
        engine, clock = self.engine, self.clock
        while clock.time < until and engine.busy:
            planned, flying = engine.scheduler.step, len(engine.flying)
            deltas = engine.step()
            for delta in deltas:
                self._note(delta)
            if flying and self.watch is not None:
                self.watch(self)
            if not deltas and engine.scheduler.step == planned and not flying:
                raise EngineDead(f"{len(self.live)} requests cannot be scheduled: too little room")

    def _note(self, delta: Delta) -> None:
        record, now = self.live[delta.uid], self.clock.time
        if delta.tokens:
            record.arrivals.append(now)
            record.output_tokens += len(delta.tokens)
        if delta.cached >= 0:
            record.cached_tokens, record.started = delta.cached, delta.started
        if delta.done is not None:
            record.end, record.preempted, record.error = now, delta.preempted, delta.error
            del self.live[delta.uid]
            self.ends.append(now)


def replay(
    workload: Workload, replicas: Sequence[Replica], router: Router | None = None
) -> tuple[list[Record], float]:
    """Returns a record of each item in order of arrival, and the time of the last end. Arrivals are
    seconds from the clocks' zero. Raises `ConfigError` for text prompts and for several turns."""
    router = router or RoundRobin()
    wishes: dict[int, Sampling] = {}
    records = []
    for uid, item in enumerate(sorted(workload.items, key=lambda item: item.arrival)):
        if isinstance(item.prompt, str) or item.turns:
            raise ConfigError(
                f"{workload.name}: a simulation needs prompts of tokens in single turns: use a "
                "trace or a synthetic workload"
            )
        for replica in replicas:
            replica.run(item.arrival)
        loads = {at: replica.load(item.arrival) for at, replica in enumerate(replicas)}
        chosen = replicas[router.route(item.prompt, loads)]
        sampling = wishes.setdefault(item.output, Sampling(max_tokens=item.output))
        record = Record(item.arrival, prompt_tokens=len(item.prompt))
        records.append(record)
        chosen.submit(Request(uid, list(item.prompt), sampling, item.arrival), record)
    for replica in replicas:
        replica.run(float("inf"))
    return records, max((record.end for record in records), default=0.0)
