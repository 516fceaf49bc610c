"""How long a step waits for masks: for those that come soon, while the device is busy anyway.

Independent of grammars and of what is waited for.
"""

import time
from collections.abc import Callable
from typing import Protocol, TypeVar

QUICK = 5e-4
"""Seconds that each step may wait in total."""
PATIENT = 2e-2
"""Seconds that a step waits for one item if it delays no other request."""

T = TypeVar("T")


class Awaited(Protocol):
    """A result computed elsewhere."""

    @property
    def done(self) -> bool: ...


class Patience:
    """The waiting time of an engine's current step. Used from its thread only."""

    def __init__(self) -> None:
        self._slow: list[Awaited] = []
        self._left = QUICK

    def renew(self, seconds: float) -> None:
        """Begin a step, which may wait `seconds`, or `QUICK` if that is longer."""
        self._left = max(QUICK, seconds)

    def end(self) -> None:
        """Stop waiting in this step, which has tokens to report."""
        self._left = 0.0

    def make(self, job: Callable[[], T], alone: bool) -> T | None:
        """Run a job if time is left or no other request waits (`alone`). None: not run."""
        if self._left <= 0 and not alone:
            return None
        began = time.perf_counter()
        made = job()
        self._left -= time.perf_counter() - began
        return made

    def wait(self, one: Awaited, alone: bool, wait: Callable[[float], object]) -> None:
        """Wait for `one` as long as this step may, or `PATIENT` if `alone`; if it is not done, ask
        again in a later step. Once a wait was in vain, none waits until that item is done: however
        many are slow, that time is lost once. wait: waits for it, given the most seconds."""
        if (alone or self._left > 0) and not self._waited():
            began = time.perf_counter()
            wait(PATIENT if alone else self._left)
            self._left -= time.perf_counter() - began
            if not one.done:
                self._slow.append(one)

    def _waited(self) -> bool:
        """Whether an item that was waited for in vain is still not done."""
        self._slow = [one for one in self._slow if not one.done]
        return bool(self._slow)
