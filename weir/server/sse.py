"""Server-sent events: a value as one `data:` frame, and a job as OpenAI's chunks."""

from collections.abc import AsyncGenerator, Callable
from typing import Any

import msgspec
from msgspec import Struct

from weir.client import Output
from weir.server.answers import ChatChunk, Completion, usage
from weir.server.jobs import Job
from weir.server.openai import Generation

START: dict[str, Any] = {
    "type": "http.response.start",
    "status": 200,
    "headers": [
        (b"content-type", b"text/event-stream; charset=utf-8"),
        (b"cache-control", b"no-cache"),
        (b"x-accel-buffering", b"no"),  # nginx must not hold frames back
    ],
}
DONE = b"data: [DONE]\n\n"

_encode = msgspec.json.Encoder().encode


def frame(value: Struct, event: str = "") -> bytes:
    """event: its name, where the API has names for them."""
    name = f"event: {event}\n".encode() if event else b""
    return b"%bdata: %b\n\n" % (name, _encode(value))


async def chunks(
    job: Job,
    body: Generation,
    write: Callable[[int, Output], ChatChunk | Completion],
    last: ChatChunk | Completion,
) -> AsyncGenerator[bytes, None]:
    """A frame for each event, as `write` makes it of a prompt's index and the event; with usage in
    each or in `last`, which has no choices, where `body` asks for it."""
    async for burst in job.bursts():
        frames = []
        for prompt, output in burst:
            chunk = write(prompt, output)
            if body.usage_always:
                chunk.usage = usage(job.usage)
            elif body.usage_wanted:
                chunk.usage = None
            frames.append(frame(chunk))
        yield b"".join(frames)
    last.usage = usage(job.usage)
    yield (frame(last) if body.usage_wanted else b"") + DONE
