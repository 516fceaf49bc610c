"""An executor in virtual time: it prices plans instead of running them.

Time is an argument everywhere, so the scheduler that a simulation runs is the real one.
"""

from __future__ import annotations

from collections.abc import Callable

from weir.core import Capacity, Plan, Result
from weir.cost.transfer import Transfers


class VirtualClock:
    def __init__(self, now: float = 0.0):
        self.time = now

    def now(self) -> float:
        return self.time

    def advance(self, to: float) -> None:
        self.time = max(self.time, to)


class SimHandle:
    def __init__(self, clock: VirtualClock, landed: float, result: Result):
        self.clock = clock
        self.landed = landed
        self._result = result

    def result(self) -> Result:
        self.clock.advance(self.landed)
        return self._result


class Sim:
    """seconds: what a plan costs. token: the token that a request samples at a position. transfers:
    the ways between tiers; without them moves take no time."""

    def __init__(
        self,
        capacity: Capacity,
        clock: VirtualClock,
        seconds: Callable[[Plan], float],
        token: Callable[[int, int], int],
        *,
        depth: int = 2,
        chains: bool = True,
        transfers: Transfers | None = None,
    ):
        self.transfers = transfers
        self.capacity = capacity
        self.clock = clock
        self.seconds = seconds
        self.token = token
        self.depth = depth
        self.chains = chains
        self.free_at = 0.0  # when the device will have finished every plan submitted

    def submit(self, plan: Plan) -> SimHandle:
        now = self.clock.now()
        free = begin = max(self.free_at, now)
        if self.transfers is not None and plan.moves:
            begin = self.transfers.begin(plan.moves, now, free)
        self.free_at = begin + self.seconds(plan)
        tokens = {
            chunk.uid: self.token(chunk.uid, chunk.start + chunk.length)
            for lane in plan.lanes
            for chunk in lane
            if chunk.sample is not None
        }
        return SimHandle(self.clock, self.free_at, Result(tokens, seconds=self.free_at - free))

    def choose(self, masks: dict[int, bytes]) -> None:
        """Tokens are what they are."""

    def close(self) -> None:
        pass
