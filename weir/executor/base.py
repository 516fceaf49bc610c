"""What the engine asks of whatever runs its plans: a device, several ranks, or virtual time."""

from typing import Protocol

from weir.core import Capacity, Plan, Result


class Handle(Protocol):
    def result(self) -> Result:
        """Wait for the plan to land. Raises only if the executor as a whole is lost."""
        ...


class Executor(Protocol):
    depth: int  # plans in flight: 1 plain, 2 overlapped, the number of stages for a pipeline
    chains: bool  # may a request fly twice at once (its next token read on the device)?
    capacity: Capacity

    def submit(self, plan: Plan) -> Handle:
        """Queue a plan. Plans run in the order submitted."""
        ...

    def choose(self, masks: dict[int, bytes]) -> None:
        """The masks, by uid, that the oldest plan in flight lacked, once the one before it has
        landed; who has none needs no token."""
        ...

    def close(self) -> None: ...
