"""Threads beside the engine's, for masks: a step waits for one that comes soon, never for others.

Knows no grammar: a job is anything that makes a mask.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, TimeoutError

QUICK = 8e-4
"""Seconds that a step waits for a mask."""
PATIENT = 2e-2
"""The same where the step is for nobody else."""
THREADS = 4
"""Masks under way at once, so that one that takes long holds up few others."""


class Beside:
    """Used from the engine's thread alone."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(THREADS, "weir-masks")
        self._slow: list[Future[bytes]] = []

    def start(self, job: Callable[[], bytes]) -> Future[bytes]:
        return self._pool.submit(job)

    def take(self, mask: Future[bytes], alone: bool) -> bytes | None:
        """The mask, waited for at most `QUICK`, or `PATIENT` if `alone`; None: ask again in a later
        step. Once one took longer nobody waits before it is done: however many are slow, a step
        loses that time once."""
        if not mask.done() and not self._waited():
            try:
                return mask.result(PATIENT if alone else QUICK)
            except TimeoutError:
                self._slow.append(mask)
        return mask.result() if mask.done() else None

    def _waited(self) -> bool:
        """Whether a mask that was waited for in vain is still not there."""
        self._slow = [mask for mask in self._slow if not mask.done()]
        return bool(self._slow)

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)
