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
from weir.server.tools import Calls, whole


async def chat(call: Call, body: ChatRequest) -> Reply:
    model = call.service.model(body.model)
    params = sampling(body, call.service.client.model.sampling)
    prompt = render(call.service.client.text, body)
    special = bool(body.add_special_tokens)
    job = await call.submit(
        [prompt], params, field="messages", add_special_tokens=special, **body.details
    )
    identity, created = f"chatcmpl-{job.id}", int(time.time())
    if body.stream:
        return _chunks(job, body, identity, created, model)
    choices = [_choice(one, body) for one in await job.collect()]
    answer = ChatCompletion(identity, created, model, choices, usage(job.usage))
    stream = job.streams[0]
    if body.prompt_logprobs is not None:
        answer.prompt_logprobs = prompt_logprobs(stream.prompt_logprobs or [])
    if body.return_token_ids:
        answer.prompt_token_ids = stream.prompt_ids
    return answer


def _choice(one: Output, body: ChatRequest) -> ChatChoice:
    """A whole answer."""
    message, reason = AssistantMessage(one.text), one.finish_reason
    if body.toolbox.tools:
        message.content, calls, complete = whole(one.text, body.toolbox.must)
        message.tool_calls = calls or UNSET
        reason = "tool_calls" if reason == "stop" and complete else reason
    return ChatChoice(
        index=one.index,
        message=message,
        logprobs=chat_logprobs(one.logprobs or []) if body.logprobs else None,
        finish_reason=reason,
        stop_reason=one.stop_reason,
        token_ids=one.token_ids if body.return_token_ids else UNSET,
    )


def _chunks(
    job: Job, body: ChatRequest, identity: str, created: int, model: str
) -> AsyncGenerator[bytes, None]:
    begun: set[int] = set()
    toolbox = body.toolbox
    read = {index: Calls(toolbox.must) for index in range(job.choices if toolbox.tools else 0)}

    def write(_: int, output: Output) -> ChatChunk:
        delta = _delta(output, read.get(output.index))
        value = ChatChunk(identity, created, model, [_piece(output, delta, body)])
        if output.index not in begun:
            begun.add(output.index)
            delta.role = "assistant"
            if body.return_token_ids:
                value.prompt_token_ids = job.streams[0].prompt_ids
        return value

    last = ChatChunk(identity, created, model, [])
    return chunks(job, write, last, body.usage_wanted, body.usage_always)


def _delta(output: Output, calls: Calls | None) -> Delta:
    """What an event says, read for calls where there may be some."""
    if calls is None:
        return Delta(output.text)
    content, found = calls.push(output.text, last=output.finish_reason is not None)
    if output.finish_reason == "stop" and calls.complete:
        output.finish_reason = "tool_calls"
    return Delta(content or UNSET, found or UNSET)


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
