"""One HTTP request's prompts in the engine: submitted together, read together, ended together."""

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field

from weir.client import Output, Stream, Usage
from weir.errors import BadRequest, EngineDead

Burst = list[tuple[int, Output]]
"""Events that arrived together, each with the index of its prompt."""


@dataclass(slots=True, eq=False)
class Job:
    """Who submits a job must abort it eventually; aborting an ended one does nothing."""

    id: str
    choices: int  # n, of each prompt
    streams: list[Stream] = field(default_factory=list)
    reasoning_tokens: int = 0  # of the completions' tokens, those of thoughts
    arrived: asyncio.Event = field(default_factory=asyncio.Event)  # something, in any stream

    def add(self, stream: Stream) -> None:
        stream.arrived = self.arrived
        self.streams.append(stream)

    @property
    def usage(self) -> list[Usage]:
        return [stream.usage for stream in self.streams]

    def abort(self) -> None:
        for stream in self.streams:
            stream.abort()

    async def bursts(self) -> AsyncGenerator[Burst, None]:
        """Events as they arrive; those that have arrived already come as one burst.

        Raises `EngineDead` at the first event that says its choice failed, `BadRequest` if the
        engine refused it.
        """
        reading = list(enumerate(self.streams))
        while reading:
            burst = [(prompt, output) for prompt, stream in reading for output in stream.ready()]
            for _, output in burst:
                if output.refused:
                    raise BadRequest(output.error, code="refused")
                if output.finish_reason == "error":
                    raise EngineDead(output.error or "The engine could not finish this.")
            reading = [(prompt, one) for prompt, one in reading if not one.assembly.finished]
            if burst:
                yield burst
            elif reading:
                self.arrived.clear()
                await self.arrived.wait()

    async def collect(self) -> list[Output]:
        """All choices, read to their ends, in order of their prompts."""
        done = [Output(i) for i in range(len(self.streams) * self.choices)]
        async for burst in self.bursts():
            for prompt, output in burst:
                done[prompt * self.choices + output.index].add(output)
        return done
