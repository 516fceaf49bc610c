"""Threads beside the engine's, for masks: a step waits for what comes soon, never for others.

Knows no grammar: a job is anything that makes something a request needs to go on.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any, TypeVar

QUICK = 5e-4
"""Seconds that a step waits for such jobs, all together."""
PATIENT = 2e-2
"""The same of one where the step is for nobody else."""

T = TypeVar("T")


def threads() -> int:
    """Jobs under way at once: several, so that one that takes long holds up few others, but fewer
    than there are cores. A thread that has the interpreter's lock but no core has the engine
    wait for both."""
    return max(1, min(4, len(os.sched_getaffinity(0)) - 1))


class Beside:
    """Used from the engine's thread, but for `start`."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(threads(), "weir-masks")
        self._slow: list[Future[Any]] = []
        self._left = QUICK

    def start(self, job: Callable[[], T]) -> Future[T]:
        return self._pool.submit(job)

    def renew(self, seconds: float) -> None:
        """A step begins, and may wait again: so long, if that is more than `QUICK`."""
        self._left = max(QUICK, seconds)

    def take(
        self,
        made: Future[T],
        alone: bool,
        await_: Callable[[Future[T], float], object] = lambda made, seconds: wait([made], seconds),
    ) -> T | None:
        """What a job makes, waited for while this step may, or `PATIENT` if `alone`; None: ask
        again in a later step. Once one took longer nobody waits before it is done: however many are
        slow, a step loses that time once. await_: waits for it so many seconds at most."""
        if not made.done() and (alone or self._left > 0) and not self._waited():
            began = time.perf_counter()
            await_(made, PATIENT if alone else self._left)
            self._left -= time.perf_counter() - began
            if not made.done():
                self._slow.append(made)
        return made.result() if made.done() else None

    def _waited(self) -> bool:
        """Whether one that was waited for in vain is still not there."""
        self._slow = [made for made in self._slow if not made.done()]
        return bool(self._slow)

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)
