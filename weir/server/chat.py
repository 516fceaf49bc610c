"""POST /v1/chat/completions"""

import time
from collections.abc import AsyncGenerator

from msgspec import UNSET

from weir.client import Output
from weir.errors import BadRequest
from weir.params import SamplingParams
from weir.server.answers import (
    AssistantMessage,
    ChatChoice,
    ChatChunk,
    ChatChunkChoice,
    ChatCompletion,
    Delta,
    chat_logprobs,
    chunks,
    prompt_logprobs,
    usage,
)
from weir.server.endpoint import Call, Reply
from weir.server.jobs import Job
from weir.server.openai import ChatRequest
from weir.server.prompts import render
from weir.server.reading import Reader
from weir.server.tools import merged


async def chat(call: Call, body: ChatRequest) -> Reply:
    model = call.service.model(body.model)
    params = sampling(body, call.service.client.model.sampling)
    prompt = render(call.service.client.text, body)
    special = bool(body.add_special_tokens)
    job = await call.submit(
        [prompt], params, field="messages", add_special_tokens=special, **body.details
    )
    readers = [call.service.reader(job, body.toolbox, prompt) for _ in range(job.choices)]
    identity, created = f"chatcmpl-{job.id}", int(time.time())
    if body.stream:
        return _chunks(job, body, identity, created, model, readers)
    choices = [
        _choice(one, body, reader) for one, reader in zip(await job.collect(), readers, strict=True)
    ]
    answer = ChatCompletion(identity, created, model, choices, usage(job))
    stream = job.streams[0]
    if body.prompt_logprobs is not None:
        answer.prompt_logprobs = prompt_logprobs(stream.prompt_logprobs or [])
    if body.return_token_ids:
        answer.prompt_token_ids = stream.prompt_ids
    return answer


def _choice(one: Output, body: ChatRequest, reader: Reader) -> ChatChoice:
    """A whole answer."""
    thought, text, calls = reader.push(one)
    message = AssistantMessage(text if text or not (thought or calls) else None)
    message.tool_calls = merged(calls) or UNSET
    message.reasoning = message.reasoning_content = thought or UNSET
    return ChatChoice(
        index=one.index,
        message=message,
        logprobs=chat_logprobs(one.logprobs or []) if body.logprobs else None,
        finish_reason=_reason(one, reader),
        stop_reason=one.stop_reason,
        token_ids=one.token_ids if body.return_token_ids else UNSET,
    )


def _chunks(
    job: Job, body: ChatRequest, identity: str, created: int, model: str, readers: list[Reader]
) -> AsyncGenerator[bytes, None]:
    begun: set[int] = set()

    def write(_: int, output: Output) -> ChatChunk:
        delta = _delta(output, readers[output.index])
        value = ChatChunk(identity, created, model, [_piece(output, delta, body)])
        if output.index not in begun:
            begun.add(output.index)
            delta.role = "assistant"
            if body.return_token_ids:
                value.prompt_token_ids = job.streams[0].prompt_ids
        return value

    last = ChatChunk(identity, created, model, [])
    return chunks(job, write, last, body.usage_wanted, body.usage_always)


def _delta(output: Output, reader: Reader) -> Delta:
    """What an event says."""
    thought, text, calls = reader.push(output)
    output.finish_reason = _reason(output, reader)
    content = text if text or not (thought or calls) else UNSET
    return Delta(content, calls or UNSET, thought or UNSET, thought or UNSET)


def _reason(output: Output, reader: Reader) -> str | None:
    ended = output.finish_reason
    return "tool_calls" if ended == "stop" and reader.called else ended


def _piece(output: Output, delta: Delta, body: ChatRequest) -> ChatChunkChoice:
    return ChatChunkChoice(
        index=output.index,
        delta=delta,
        logprobs=chat_logprobs(output.logprobs or []) if body.logprobs else None,
        finish_reason=output.finish_reason,
        stop_reason=UNSET if output.finish_reason is None else output.stop_reason,
        token_ids=output.token_ids if body.return_token_ids else UNSET,
    )


def sampling(body: ChatRequest, default: SamplingParams) -> SamplingParams:
    """How a chat is sampled; `default` where it does not say."""
    if body.top_logprobs is not None and not body.logprobs:
        raise BadRequest("top_logprobs needs logprobs to be true", param="top_logprobs")
    new, old = body.max_completion_tokens, body.max_tokens
    return body.params(
        default,
        max_tokens=old if new is None else new,
        logprobs=(body.top_logprobs or 0) if body.logprobs else None,
    )
