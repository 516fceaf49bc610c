"""The interface between the engine and what runs its plans: a device or virtual time."""

from typing import Protocol

from weir.core import Capacity, Plan, Result


class Handle(Protocol):
    def result(self) -> Result:
        """Wait for the plan to land. Raises only if the executor as a whole is lost."""
        ...


class Executor(Protocol):
    depth: int  # plans in flight: 1 plain, 2 overlapped, the number of stages for a pipeline
    chains: bool  # a request may be in two flying plans: its last token is read on the device
    capacity: Capacity

    def submit(self, plan: Plan) -> Handle:
        """Queue a plan. Plans run in the order submitted."""
        ...

    def choose(self, masks: dict[int, bytes]) -> None:
        """Pass the masks, by uid, that the oldest plan in flight lacked; the one before it has
        landed. Late requests without a mask need no token."""
        ...

    def close(self) -> None: ...
