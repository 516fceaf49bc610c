"""The event loop that runs programs' nodes, on a thread of its own, and how a program waits for it.

A program's body is ordinary code that may block at any read. When many run at once, each is a
greenlet on the caller's thread, and a read switches to another one: a thousand programs take a
thousand small stacks, not a thousand threads.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Iterator
from concurrent.futures import Future
from functools import cache
from queue import SimpleQueue
from typing import Any, TypeVar

import greenlet

T = TypeVar("T")


@cache
def loop() -> asyncio.AbstractEventLoop:
    """The event loop of all programs in this process, started at first use."""
    made = asyncio.new_event_loop()
    threading.Thread(target=made.run_forever, name="weir-programs", daemon=True).start()
    return made


def spawn(work: Coroutine[Any, Any, T]) -> Future[T]:
    """Start `work` on the event loop."""
    return asyncio.run_coroutine_threadsafe(work, loop())


def wait(future: Future[T]) -> T:
    """Block the thread or greenlet until `future` is done. Returns its value or raises its error;
    RuntimeError on the event loop itself."""
    if not future.done():
        crew = getattr(greenlet.getcurrent(), "crew", None)
        if crew is not None:
            crew.sleep(future)
        elif threading.current_thread().name == "weir-programs":
            raise RuntimeError("a value was read on the event loop: await s.get(name) there")
    return future.result()


class Member(greenlet.greenlet):  # type: ignore[misc]
    """A greenlet that runs one body of a crew."""

    crew: Crew


class Crew:
    """Runs bodies on the thread that calls `run`, at most `size` at once."""

    def __init__(self, size: int):
        self._size = size
        self._awake: SimpleQueue[Member] = SimpleQueue()
        self._hub = greenlet.getcurrent()

    def sleep(self, future: Future[Any]) -> None:
        """Called by a member: let others run until `future` is done."""
        member = greenlet.getcurrent()
        assert isinstance(member, Member)
        future.add_done_callback(lambda _: self._awake.put(member))
        self._hub.switch()

    def run(self, bodies: Iterable[Callable[[], T]]) -> Iterator[T]:
        """Yield what the bodies return, in order, each as soon as it and all before it are done."""
        left, results, working = iter(bodies), deque[list[T]](), 0
        more = True
        self._hub = greenlet.getcurrent()
        while True:
            while more and working < self._size:
                body = next(left, None)
                more = body is not None
                if body is not None:
                    slot: list[T] = []
                    results.append(slot)
                    working += not self._begin(body, slot)
            while results and results[0]:
                yield results.popleft()[0]
            if not working:
                return
            member = self._awake.get()
            member.switch()
            working -= member.dead

    def _begin(self, body: Callable[[], T], slot: list[T]) -> bool:
        """Run a body until it waits or ends; returns whether it ended."""
        member = Member(lambda: slot.append(body()))
        member.crew = self
        member.switch()
        return bool(member.dead)
