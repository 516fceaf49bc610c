"""One HTTP request's prompts in the engine: submitted together, read together, ended together."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field

from weir.client import Completion, Output, Stream, Usage
from weir.errors import EngineDead

Burst = list[tuple[int, Output]]
"""Events that came together, each with the index of its prompt."""


@dataclass(slots=True, eq=False)
class Job:
    """Whoever submits a job must abort it in the end; aborting what has ended does nothing."""

    id: str
    choices: int  # n, of each prompt
    streams: list[Stream] = field(default_factory=list)
    reasoning_tokens: int = 0  # of the completions' tokens, those of thoughts

    @property
    def usage(self) -> list[Usage]:
        return [stream.usage for stream in self.streams]

    def abort(self) -> None:
        for stream in self.streams:
            stream.abort()

    async def bursts(self) -> AsyncGenerator[Burst, None]:
        """Events as they come; those that have come already are handed over as one burst.

        Raises `EngineDead` at the first event that says its choice failed.
        """
        merged = self._one() if len(self.streams) == 1 else self._many()
        async with aclosing(merged):
            async for burst in merged:
                for _, output in burst:
                    if output.finish_reason == "error":
                        raise EngineDead(output.error or "The engine could not finish this.")
                yield burst

    async def collect(self) -> list[Completion]:
        """Every choice read to its end, those of the first prompt first."""
        done = [Completion(index=i) for i in range(len(self.streams) * self.choices)]
        async for burst in self.bursts():
            for prompt, output in burst:
                done[prompt * self.choices + output.index].add(output)
        return done

    async def _one(self) -> AsyncGenerator[Burst, None]:
        stream = self.streams[0]
        async for output in stream:
            yield [(0, output), *((0, more) for more in stream.ready())]

    async def _many(self) -> AsyncGenerator[Burst, None]:
        arrived: asyncio.Queue[tuple[int, Output] | Exception | None] = asyncio.Queue()

        async def forward(prompt: int, stream: Stream) -> None:
            try:
                async for output in stream:
                    arrived.put_nowait((prompt, output))
                arrived.put_nowait(None)
            except Exception as error:
                arrived.put_nowait(error)

        readers = [asyncio.create_task(forward(*pair)) for pair in enumerate(self.streams)]
        unfinished = len(readers)
        try:
            while unfinished:
                burst: Burst = []
                event = await arrived.get()
                while True:
                    if isinstance(event, Exception):
                        raise event
                    if event is None:
                        unfinished -= 1
                    else:
                        burst.append(event)
                    if arrived.empty():
                        break
                    event = arrived.get_nowait()
                if burst:
                    yield burst
        finally:
            for reader in readers:
                reader.cancel()
