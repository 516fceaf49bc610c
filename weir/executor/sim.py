"""An executor in virtual time: it prices plans instead of running them.

The scheduler takes time as an argument, so a simulation runs the real one.
"""

from collections.abc import Callable
from dataclasses import dataclass

from weir.core import Capacity, Plan, Result
from weir.cost.transfer import Transfers


class VirtualClock:
    """Returns seconds when called; `advance` moves them."""

    time = 0.0

    def __call__(self) -> float:
        return self.time

    def advance(self, to: float) -> None:
        self.time = max(self.time, to)


@dataclass(slots=True)
class SimHandle:
    clock: VirtualClock
    landed: float
    outcome: Result

    def result(self) -> Result:
        self.clock.advance(self.landed)
        return self.outcome


@dataclass(slots=True, eq=False)
class Sim:
    """seconds: the time a plan takes. token: the token that a request samples at a position.
    transfers: the links between tiers; None: moves take no time."""

    capacity: Capacity
    clock: VirtualClock
    seconds: Callable[[Plan], float]
    token: Callable[[int, int], int]
    depth: int = 2
    transfers: Transfers | None = None
    chains: bool = True
    free_at: float = 0.0  # when the device will have finished every plan submitted

    def submit(self, plan: Plan) -> SimHandle:
        now = self.clock()
        free = begin = max(self.free_at, now)
        if self.transfers is not None and plan.moves:
            begin = self.transfers.begin(plan.moves, now, free)
        self.free_at = begin + self.seconds(plan)
        tokens = {
            chunk.uid: self.token(chunk.uid, chunk.start + chunk.length)
            for chunk in plan.chunks
            if chunk.sample is not None
        }
        return SimHandle(self.clock, self.free_at, Result(tokens, seconds=self.free_at - free))

    def choose(self, masks: dict[int, bytes]) -> None:
        """Simulated tokens do not depend on masks."""

    def close(self) -> None:
        pass
