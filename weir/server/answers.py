"""Parts that OpenAI's answers share: usage, prompt logprobs, and chunks of a stream.

In all answers a field that is `UNSET` is left out; one that is None is sent as null.
"""

from collections import Counter
from collections.abc import AsyncGenerator, Callable
from typing import Any

from msgspec import UNSET, Struct, UnsetType

from weir.client import Logprob, Output
from weir.server.endpoint import DONE, frame
from weir.server.jobs import Job
from weir.server.openai import StreamOptions


class PromptTokensDetails(Struct):
    cached_tokens: int
    loaded_tokens: dict[str, int] | UnsetType = UNSET  # of them, loaded from "cpu" or "disk"


class CompletionTokensDetails(Struct):
    reasoning_tokens: int


class CompletionUsage(Struct):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
    completion_tokens_details: CompletionTokensDetails | UnsetType = UNSET  # where some thought


def usage(job: Job) -> CompletionUsage:
    """The usage of one HTTP request, from those of its prompts."""
    parts = job.usage
    prompt = sum(part.prompt_tokens for part in parts)
    completion = sum(part.completion_tokens for part in parts)
    loaded = sum((Counter(part.loaded_tokens) for part in parts), Counter[str]())
    cached = PromptTokensDetails(
        sum(part.cached_tokens for part in parts), dict(loaded) if loaded else UNSET
    )
    thought = CompletionTokensDetails(job.reasoning_tokens) if job.reasoning_tokens else UNSET
    return CompletionUsage(prompt, completion, prompt + completion, cached, thought)


class PromptLogprob(Struct):
    logprob: float
    rank: int
    decoded_token: str


PromptLogprobs = list[dict[str, PromptLogprob] | None]
"""vLLM's: for each prompt token, by token id, itself and the most likely; null for the first."""


def prompt_logprobs(positions: list[Logprob | None]) -> PromptLogprobs:
    return [
        None
        if position is None
        else {
            str(one.token_id): PromptLogprob(one.logprob, one.rank, one.token)
            for one in (position, *position.top)
        }
        for position in positions
    ]


async def chunks(
    job: Job,
    options: StreamOptions | None,
    write: Callable[[int, Output], Any],
    last: Any,
) -> AsyncGenerator[bytes, None]:
    """A frame for each event, as `write` makes it of its prompt's index and the event; with usage
    in each, or in `last`, which has no choices."""
    options = options or StreamOptions()
    async for burst in job.bursts():
        frames = []
        for prompt, output in burst:
            chunk = write(prompt, output)
            if options.continuous_usage_stats:
                chunk.usage = usage(job)
            elif options.include_usage:
                chunk.usage = None
            frames.append(frame(chunk))
        yield b"".join(frames)
    last.usage = usage(job)
    yield (frame(last) if options.include_usage else b"") + DONE
