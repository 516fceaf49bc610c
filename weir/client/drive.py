"""The loop around an engine, the same on a thread of the frontend and in a process of its own."""

import time
from collections.abc import Callable
from typing import Any, Protocol

from msgspec.structs import asdict, replace

from weir.core import Capacity, Delta, Request
from weir.wire import Abort, Deltas, Flush, Lengths, Stats, Stop, Submit, Unpin, Up


class Engine(Protocol):
    """What the loop asks of an engine; see `weir.engine`."""

    capacity: Capacity
    info: dict[str, Any]  # device, dtype, kernels: for /server_info

    def add(self, request: Request) -> None: ...
    def expect(self, lengths: Lengths) -> None: ...
    def abort(self, uid: int) -> None: ...
    def flush(self) -> None: ...
    def unpin(self, name: str) -> None: ...
    def step(self) -> list[Delta]: ...
    @property
    def busy(self) -> bool: ...
    def stats(self) -> Stats: ...
    def close(self) -> None: ...


def request(submit: Submit) -> Request:
    """The engine's request. Copies tokens: the list grows, and choices of a prompt share it."""
    return Request(**asdict(replace(submit, tokens=list(submit.tokens))))


class Loop:
    """Receives messages, steps the engine and sends the deltas.

    receive: returns the messages that have arrived; given True, it waits for the first.
    send: called with the deltas of a step, if there are any.
    """

    def __init__(
        self, engine: Engine, receive: Callable[[bool], list[Up]], send: Callable[[Deltas], None]
    ):
        self._engine = engine
        self._receive = receive
        self._send = send
        self._stats = engine.stats()
        self._busy_since = 0.0

    def run(self) -> None:
        """Run until a `Stop` arrives. Raises only if the engine as a whole fails."""
        engine = self._engine
        while True:
            deltas: list[Delta] = []
            for message in self._receive(not engine.busy):
                if isinstance(message, Stop):
                    return
                self._busy_since = time.monotonic()
                self._take(message, deltas)
            if engine.busy:
                self._busy_since = time.monotonic()
                deltas += engine.step()
            self._stats = replace(engine.stats())
            if deltas:
                self._send(Deltas(deltas, self._stats))
            self._busy_since = 0.0

    def report(self) -> Stats:
        """The latest stats, and since when the loop has been busy. May be called on any thread."""
        return replace(self._stats, busy_since=self._busy_since)

    def _take(self, message: Submit | Lengths | Abort | Flush | Unpin, deltas: list[Delta]) -> None:
        """Apply one message. If the engine cannot take a request, only that request ends."""
        if isinstance(message, Abort):
            for uid in message.uids:
                self._engine.abort(uid)
        elif isinstance(message, Flush):
            self._engine.flush()
        elif isinstance(message, Unpin):
            self._engine.unpin(message.name)
        elif isinstance(message, Lengths):
            self._engine.expect(message)
        else:
            try:
                self._engine.add(request(message))
            except Exception as error:
                reason = f"the engine could not take this request: {error!r}"
                deltas.append(Delta(message.uid, done="error", error=reason))
