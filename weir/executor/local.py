"""The executors of one device in this process.

A GPU has a queue of its own, so the caller launches a plan and continues. On a CPU a thread runs
the plans while the caller makes the next: kernels and PyTorch release the interpreter's lock.
"""

import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from queue import SimpleQueue

import torch

from weir.core import Capacity, Plan, Result
from weir.cost.transfer import loads
from weir.errors import EngineDead
from weir.executor.base import Handle
from weir.runtime.runner import Runner


class Lost:
    """A plan that could not be run."""

    def __init__(self, error: Exception):
        self.error = error

    def result(self) -> Result:
        raise EngineDead(f"a plan could not be run: {self.error!r}") from self.error


class Direct:
    """Launches plans in the thread that submits them, on a device that runs asynchronously.

    runner: owns the model and its pages; used by this executor only. depth: plans in flight, 1 or
    2. tokens, requests: limits of a plan. context: the longest sequence. lane: tokens per lane.
    """

    def __init__(
        self,
        runner: Runner,
        *,
        tokens: int,
        requests: int,
        context: int,
        depth: int = 2,
        lane: int = sys.maxsize,
    ):
        self.runner = runner
        self.depth = depth
        self.chains = True
        store = runner.store
        most, moved = (tokens, requests, context), loads(store.record, store.pages)
        self.capacity = Capacity(store.page, dict(store.pages), *most, moved, lane)
        self.error: Exception | None = None  # once set, no plan runs
        self.closed = False

    def submit(self, plan: Plan) -> Handle:
        """Launch a plan. Its result raises `EngineDead` if this or an earlier plan failed."""
        if self.closed:
            raise EngineDead("the executor is closed")
        return self._launch(plan)

    def choose(self, masks: dict[int, bytes]) -> None:
        """Choose the tokens of the plan submitted last. Raises `EngineDead` if that fails."""
        try:
            if self.error is None:
                return self.runner.choose(masks)
        except Exception as error:
            self.error = error
        Lost(self.error).result()

    def close(self) -> None:
        """Accept no more plans. May be called twice."""
        self.closed = True
        self.runner.close()

    def _launch(self, plan: Plan, prepared: Callable[[], None] | None = None) -> Handle:
        if self.error is None:
            try:
                return self.runner.launch(plan, prepared)
            except Exception as error:
                self.error = error
        return Lost(self.error)


class Awaited:
    """The handle of a plan that the thread has yet to finish."""

    def __init__(self) -> None:
        self.launched: Future[Handle] = Future()

    def result(self) -> Result:
        return self.launched.result().result()


class Local(Direct):
    """As `Direct`, with a thread that runs the plans in the order submitted.

    A result is delivered once the arrays of the next plan, if there is one, are prepared. Settling
    and preparing both need the interpreter's lock, and the computation should not wait for it.

    threads: of PyTorch, for what no native kernel computes; 0: leave its default.
    """

    def __init__(self, runner: Runner, *, threads: int = 0, **capacity: int):
        super().__init__(runner, **capacity)
        self.queue: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self.late: tuple[Awaited, Handle] | None = None  # waits for its masks
        self.done: tuple[Awaited, Handle] | None = None  # not delivered yet
        self.thread = threading.Thread(
            target=self._work, args=(threads,), name="weir-executor", daemon=True
        )
        self.thread.start()

    def submit(self, plan: Plan) -> Handle:
        """Queue a plan."""
        if self.closed:
            raise EngineDead("the executor is closed")
        handle = Awaited()
        self.queue.put(partial(self._submit, plan, handle))
        return handle

    def choose(self, masks: dict[int, bytes]) -> None:
        """Queue the rest of the plan submitted last."""
        self.queue.put(partial(self._choose, masks))

    def close(self) -> None:
        """Finish the queued plans, then end the thread. May be called twice."""
        self.closed = True
        self.queue.put(None)
        self.thread.join()
        super().close()

    def _work(self, threads: int) -> None:
        if threads:
            torch.set_num_threads(threads)  # counts for the thread that calls it
        while (work := self._next()) is not None:
            work()
        self._tell()

    def _next(self) -> Callable[[], None] | None:
        if self.queue.empty():
            self._tell()
        return self.queue.get()

    def _tell(self) -> None:
        if self.done is not None:
            (handle, launched), self.done = self.done, None
            handle.launched.set_result(launched)

    def _submit(self, plan: Plan, handle: Awaited) -> None:
        launched = self._launch(plan, self._tell)
        self._tell()
        if plan.late:
            self.late = handle, launched
        else:
            self.done = handle, launched

    def _choose(self, masks: dict[int, bytes]) -> None:
        assert self.late is not None
        (handle, launched), self.late = self.late, None
        try:
            super().choose(masks)
        except EngineDead:
            assert self.error is not None
            launched = Lost(self.error)
        handle.launched.set_result(launched)
