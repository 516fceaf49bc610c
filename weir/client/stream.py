"""A request's events, over which the caller of `submit` iterates."""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable

from weir.client.assemble import Assembly
from weir.client.events import Logprob, Output, Timing, Usage
from weir.errors import EngineDead


class Stream:
    """One submitted prompt: the events of all its choices, in order of arrival.

    `usage`, `timing` and `prompt_logprobs` are updated as events arrive; `vector` is set once the
    request has ended. Leaving the iteration early, by break, exception or cancellation, aborts the
    request.
    """

    def __init__(self, assembly: Assembly, abort: Callable[[Assembly], None]):
        self.id = assembly.id
        self.prompt_ids = assembly.prompt_ids
        self.usage: Usage = assembly.usage
        self.timing: Timing = assembly.timing
        self.assembly = assembly
        self._abort = abort
        self._events: deque[Output] = deque()
        self.arrived = asyncio.Event()  # readers of several streams may make them share one
        self._died: str | None = None

    @property
    def prompt_logprobs(self) -> list[Logprob | None] | None:
        """One entry per prompt position, complete with the first event; None: not scored."""
        return self.assembly.prompt_logprobs

    @property
    def vector(self) -> list[float] | None:
        return self.assembly.vector

    def put(self, output: Output) -> None:
        self._events.append(output)
        self.arrived.set()

    def die(self, reason: str) -> None:
        """The engine died, and this request with it: raise that after the events already here."""
        self._died = reason

    async def __aiter__(self) -> AsyncGenerator[Output, None]:
        """A generator, because a loop left early closes a generator and nothing else."""
        try:
            while True:
                try:
                    output = await anext(self)
                except StopAsyncIteration:
                    return
                yield output
        finally:
            self.abort()

    async def __anext__(self) -> Output:
        """The next event. If the engine died during this request, every open choice ends with
        `finish_reason` "error", and `EngineDead` is raised where the iteration would have ended."""
        while not self._events:
            if self.assembly.finished:
                if self._died is not None:
                    raise EngineDead(self._died)
                raise StopAsyncIteration
            self.arrived.clear()
            try:
                await self.arrived.wait()
            except asyncio.CancelledError:
                self.abort()
                raise
        return self._events.popleft()

    def ready(self) -> list[Output]:
        """All events that have arrived and were not read yet, without waiting."""
        events = list(self._events)
        self._events.clear()
        return events

    def abort(self) -> None:
        """Stop generating; every open choice ends with "abort". Has no effect once ended."""
        self._abort(self.assembly)

    async def collect(self) -> list[Output]:
        """Read to the end; returns the whole choices in order."""
        whole = [Output(choice.index) for choice in self.assembly.choices]
        async for output in self:
            whole[output.index].add(output)
        return whole
