"""How long a step waits for masks: for what comes soon, while the device is at work anyway.

Knows no grammar, and no more of what it waits for than that it takes time.
"""

import time
from collections.abc import Callable
from typing import Protocol, TypeVar

QUICK = 5e-4
"""Seconds that any step may spend so, all together."""
PATIENT = 2e-2
"""Seconds that it waits for one thing where it is for nobody else."""

T = TypeVar("T")


class Awaited(Protocol):
    """What is made elsewhere."""

    @property
    def done(self) -> bool: ...


class Patience:
    """Of one engine's thread."""

    def __init__(self) -> None:
        self._slow: list[Awaited] = []
        self._left = QUICK

    def renew(self, seconds: float) -> None:
        """A step begins, and may wait so long, if that is more than `QUICK`."""
        self._left = max(QUICK, seconds)

    def end(self) -> None:
        """The step has tokens to tell: what can wait waits for the next one."""
        self._left = 0.0

    def make(self, job: Callable[[], T], alone: bool) -> T | None:
        """What a job makes at once, if there is any time left, or nobody else waits for it."""
        if self._left <= 0 and not alone:
            return None
        began = time.perf_counter()
        made = job()
        self._left -= time.perf_counter() - began
        return made

    def wait(self, one: Awaited, alone: bool, wait: Callable[[float], object]) -> None:
        """Wait until something is done while this step may, or `PATIENT` if `alone`; ask again in a
        later step. Once one took longer nobody waits before it is done: however many are slow, a
        step loses that time once. wait: for it, so many seconds at most."""
        if (alone or self._left > 0) and not self._waited():
            began = time.perf_counter()
            wait(PATIENT if alone else self._left)
            self._left -= time.perf_counter() - began
            if not one.done:
                self._slow.append(one)

    def _waited(self) -> bool:
        """Whether one that was waited for in vain is still not there."""
        self._slow = [one for one in self._slow if not one.done]
        return bool(self._slow)
