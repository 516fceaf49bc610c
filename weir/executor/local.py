"""The executor of one device in this process: a thread that runs plans in the order submitted.

The caller plans the next iteration meanwhile. Kernels and PyTorch let go of the interpreter's lock
while they compute.
"""

from __future__ import annotations

import threading
from concurrent.futures import Future
from queue import SimpleQueue

import torch

from weir.core import Capacity, Plan, Result
from weir.errors import EngineDead
from weir.runtime.outputs import Landing
from weir.runtime.runner import Runner


class LocalHandle:
    """One plan under way."""

    def __init__(self) -> None:
        self.launched: Future[Landing] = Future()

    def result(self) -> Result:
        """Wait for the plan to land. Raises `EngineDead` if this or an earlier plan broke."""
        return self.launched.result().result()


class Local:
    """runner: owns the model and its pages; used by this executor's thread alone.

    depth: plans in flight, 1 or 2. tokens, requests: most in one plan. context: the longest
    sequence. threads: PyTorch's own, for what no native kernel computes; 0: as it is.
    """

    def __init__(
        self,
        runner: Runner,
        *,
        tokens: int,
        requests: int,
        context: int,
        depth: int = 2,
        threads: int = 0,
    ):
        self.runner = runner
        self.depth = depth
        self.chains = True
        store = runner.store
        self.capacity = Capacity(store.page, dict(store.pages), tokens, requests, context)
        self.error: Exception | None = None  # once set, nothing runs any more
        self.closed = False
        self.queue: SimpleQueue[tuple[Plan, LocalHandle] | None] = SimpleQueue()
        self.thread = threading.Thread(
            target=self._work, args=(threads,), name="weir-executor", daemon=True
        )
        self.thread.start()

    def submit(self, plan: Plan) -> LocalHandle:
        """Queue a plan. Plans run in the order submitted."""
        if self.closed:
            raise EngineDead("the executor is closed")
        handle = LocalHandle()
        self.queue.put((plan, handle))
        return handle

    def close(self) -> None:
        """Finish the plans in hand, then end the thread. May be called twice."""
        self.closed = True
        self.queue.put(None)
        self.thread.join()

    def _work(self, threads: int) -> None:
        if threads:
            torch.set_num_threads(threads)  # counts for the thread that calls it
        if self.runner.device.index is not None:
            torch.cuda.set_device(self.runner.device)  # likewise
        while (item := self.queue.get()) is not None:
            plan, handle = item
            if self.error is None:
                try:
                    handle.launched.set_result(self.runner.launch(plan))
                    continue
                except Exception as error:
                    self.error = error
            dead = EngineDead(f"a plan could not be run: {self.error!r}")
            dead.__cause__ = self.error
            handle.launched.set_exception(dead)
