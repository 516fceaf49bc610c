"""POST /v1/chat/completions"""

import time
from collections.abc import AsyncGenerator
from typing import Any, Literal

from msgspec import UNSET, Struct, UnsetType

from weir.client import Logprob, Output
from weir.errors import BadRequest
from weir.params import SamplingParams
from weir.server.answers import CompletionUsage, PromptLogprobs, chunks, prompt_logprobs, usage
from weir.server.endpoint import Call, Reply
from weir.server.jobs import Job
from weir.server.openai import ChatRequest
from weir.server.prompts import render, thought
from weir.server.reading import Reader
from weir.server.tools import ToolCall, merged


class ChatTopLogprob(Struct):
    token: str
    logprob: float
    bytes: list[int]


class ChatTokenLogprob(ChatTopLogprob):
    top_logprobs: list[ChatTopLogprob]


class ChatLogprobs(Struct):
    content: list[ChatTokenLogprob]
    refusal: None = None


def chat_logprobs(positions: list[Logprob]) -> ChatLogprobs:
    content = []
    for one in positions:
        top = [ChatTopLogprob(entry.token, entry.logprob, entry.bytes) for entry in one.top]
        content.append(ChatTokenLogprob(one.token, one.logprob, one.bytes, top))
    return ChatLogprobs(content)


class AssistantMessage(Struct):
    content: str | None
    role: Literal["assistant"] = "assistant"
    refusal: None = None
    tool_calls: list[ToolCall] | UnsetType = UNSET
    reasoning: str | UnsetType = UNSET
    reasoning_content: str | UnsetType = UNSET  # another name of it


class ChatChoice(Struct):
    index: int
    message: AssistantMessage
    logprobs: ChatLogprobs | None
    finish_reason: str | None
    stop_reason: int | str | UnsetType | None = UNSET
    token_ids: list[int] | UnsetType = UNSET


class ChatCompletion(Struct):
    id: str
    created: int
    model: str
    choices: list[ChatChoice]
    usage: CompletionUsage
    object: Literal["chat.completion"] = "chat.completion"
    prompt_logprobs: PromptLogprobs | UnsetType = UNSET
    prompt_token_ids: list[int] | UnsetType = UNSET


class Delta(Struct):
    content: str | UnsetType
    tool_calls: list[ToolCall] | UnsetType = UNSET
    reasoning: str | UnsetType = UNSET
    reasoning_content: str | UnsetType = UNSET  # another name of it
    role: Literal["assistant"] | UnsetType = UNSET  # with the first chunk of a choice


class ChatChunkChoice(Struct):
    index: int
    delta: Delta
    logprobs: ChatLogprobs | None = None
    finish_reason: str | None = None
    stop_reason: int | str | UnsetType | None = UNSET
    token_ids: list[int] | UnsetType = UNSET


class ChatChunk(Struct):
    id: str
    created: int
    model: str
    choices: list[ChatChunkChoice]  # one, or none in the last chunk, which holds the usage
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    usage: CompletionUsage | UnsetType | None = UNSET
    prompt_token_ids: list[int] | UnsetType = UNSET


async def chat(call: Call, body: ChatRequest) -> Reply:
    model = call.service.model(body.model)
    prompt = rendered(call, body)
    job, readers = await ask(call, body, prompt, [prompt], **body.details)
    identity, created = f"chatcmpl-{job.id}", int(time.time())
    if body.stream:
        return _chunks(job, body, identity, created, model, readers)
    done = await job.collect()
    choices = [_choice(one, body, reader) for one, reader in zip(done, readers, strict=True)]
    answer = ChatCompletion(identity, created, model, choices, usage(job))
    stream = job.streams[0]
    if body.prompt_logprobs is not None:
        answer.prompt_logprobs = prompt_logprobs(stream.prompt_logprobs or [])
    if body.return_token_ids:
        answer.prompt_token_ids = stream.prompt_ids
    return answer


def rendered(call: Call, body: ChatRequest) -> str:
    """The prompt of a chat."""
    return render(call.service.client.text, body, call.service.close(body))


async def ask(
    call: Call, body: ChatRequest, prompt: str, prompts: list[str | list[int]], **details: Any
) -> tuple[Job, list[Reader]]:
    """Submit a chat, whose prompt may be encoded already. Returns the job and its readers."""
    params = sampling(body, call.service.client.model.sampling)
    details.setdefault("names", {"prompt": "messages", "max_tokens": body.limit})
    details["add_special_tokens"] = bool(body.add_special_tokens)
    service = call.service
    before = thought(service.client.text, body, prompt, service.close(body))
    job = await call.submit(prompts, params, thought=before, **details)
    return job, [service.reader(job, body, prompt) for _ in range(job.choices)]


def sampling(body: ChatRequest, default: SamplingParams) -> SamplingParams:
    """The sampling parameters of a chat; `default` fills in what it leaves out."""
    if body.top_logprobs is not None and not body.logprobs:
        raise BadRequest("top_logprobs needs logprobs to be true", param="top_logprobs")
    return body.sampling(
        default,
        max_tokens=getattr(body, body.limit),
        logprobs=(body.top_logprobs or 0) if body.logprobs else None,
    )


def _choice(one: Output, body: ChatRequest, reader: Reader) -> ChatChoice:
    """A whole answer."""
    thought, text, calls = reader.push(one)
    message = AssistantMessage(text if text or not (thought or calls) else None)
    message.tool_calls = merged(calls) or UNSET
    message.reasoning = message.reasoning_content = thought or UNSET
    return ChatChoice(message=message, **_state(one, body, reader))


def _chunks(
    job: Job, body: ChatRequest, identity: str, created: int, model: str, readers: list[Reader]
) -> AsyncGenerator[bytes, None]:
    begun: set[int] = set()

    def write(_: int, output: Output) -> ChatChunk:
        reader = readers[output.index]
        thought, text, calls = reader.push(output)
        content = text if text or not (thought or calls) else UNSET
        delta = Delta(content, calls or UNSET, thought or UNSET, thought or UNSET)
        piece = ChatChunkChoice(delta=delta, **_state(output, body, reader))
        value = ChatChunk(identity, created, model, [piece])
        if output.index not in begun:
            begun.add(output.index)
            delta.role = "assistant"
            if body.return_token_ids:
                value.prompt_token_ids = job.streams[0].prompt_ids
        return value

    last = ChatChunk(identity, created, model, [])
    return chunks(job, body.stream_options, write, last)


def _state(output: Output, body: ChatRequest, reader: Reader) -> dict[str, Any]:
    """The fields of a choice besides its text, as far as they are known."""
    reason = output.finish_reason
    return {
        "index": output.index,
        "logprobs": chat_logprobs(output.logprobs or []) if body.logprobs else None,
        "finish_reason": "tool_calls" if reason == "stop" and reader.called else reason,
        "stop_reason": UNSET if reason is None else output.stop_reason,
        "token_ids": output.token_ids if body.return_token_ids else UNSET,
    }
