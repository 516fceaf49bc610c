"""An engine in this process, on a thread of its own."""

import asyncio
import queue
import threading
from typing import Any, Unpack

from weir.client.base import CLOSED, Client, Options
from weir.client.drive import Engine, Loop
from weir.text import Text
from weir.wire import Deltas, Stop, Up


class Local(Client):
    """A `Client` of an engine in this process. It owns the engine: `close` ends it.

    A step that hangs cannot be ended, and an engine that fails is not replaced; `Remote` can both.
    """

    def __init__(self, engine: Engine, text: Text, names: list[str], **options: Unpack[Options]):
        self._inbox: queue.SimpleQueue[Up] = queue.SimpleQueue()
        super().__init__(text, names, self._inbox.put, options)
        self.model.context = engine.capacity.context
        self.model.info = engine.info
        self._engine = engine
        self._thread = threading.Thread(target=self._run, name="weir-engine", daemon=True)
        self._ended = asyncio.Event()

    async def start(self) -> None:
        self._events = asyncio.get_running_loop()
        self._thread.start()
        self._health = "ready"

    async def close(self, drain: float = 0) -> None:
        if self._health == CLOSED:
            return
        await self._drain(drain)
        self._health = CLOSED
        if self._thread.is_alive():
            self._inbox.put(Stop())
            await self._ended.wait()
        self._engine.close()

    def _run(self) -> None:
        """The engine's thread."""
        reason = ""
        try:
            Loop(self._engine, self._receive, self._post).run()
        except Exception as error:
            reason = f"the engine failed: {error!r}"
        self._call(self._stopped, reason)

    def _receive(self, wait: bool) -> list[Up]:
        messages = [self._inbox.get()] if wait else []
        while not self._inbox.empty():
            messages.append(self._inbox.get())
        return messages

    def _post(self, message: Deltas) -> None:
        """Wake the event loop once per step, however many requests it served."""
        self._call(self._deliver, message.deltas, message.stats)

    def _call(self, function: Any, *arguments: Any) -> None:
        try:
            self._events.call_soon_threadsafe(function, *arguments)
        except RuntimeError:  # the event loop was closed before this client: nobody listens
            self._inbox.put(Stop())

    def _stopped(self, reason: str) -> None:
        if reason:
            self._health = f"dead: {reason}"
            self._lose_all(reason)
        self._ended.set()
