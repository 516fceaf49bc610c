"""POST /v1/messages and /v1/messages/count_tokens: Anthropic's way to chat."""

from collections.abc import AsyncGenerator, Iterator
from typing import Any

import msgspec

from weir.client import Output
from weir.server.answers import ToolCall
from weir.server.anthropic import (
    Answer,
    Block,
    BlockDelta,
    BlockStarted,
    BlockStopped,
    Counted,
    Ending,
    Event,
    InputDelta,
    InputTokens,
    MessageDelta,
    MessagesRequest,
    Started,
    Stop,
    Stopped,
    TextBlock,
    TextDelta,
    ToolUseBlock,
    Usage,
)
from weir.server.chat import sampling
from weir.server.endpoint import Call, Reply
from weir.server.jobs import Job
from weir.server.openai import ChatRequest
from weir.server.prompts import render
from weir.server.sse import frame
from weir.server.tools import Calls, whole


async def count(call: Call, body: Counted) -> Reply:
    call.service.model(body.model)
    return InputTokens(len(await _encoded(call, body.chat())))


async def messages(call: Call, body: MessagesRequest) -> Reply:
    client = call.service.client
    model = call.service.model(body.model)
    asked = body.chat(
        stop=body.stop_sequences,
        temperature=body.temperature,
        top_p=body.top_p,
        top_k=body.top_k,
        user=body.metadata and body.metadata.user_id,
    )
    prompt = await _encoded(call, asked)
    room = max(1, client.model.context - len(prompt))
    asked.max_tokens = min(body.max_tokens, room)
    job = await call.submit(
        [prompt], sampling(asked, client.model.sampling), field="messages", **asked.details
    )
    full: Stop = "max_tokens" if body.max_tokens <= room else "model_context_window_exceeded"
    writer = Writer(job, asked, Answer(f"msg_{job.id}", model, _usage(job)), full)
    return writer.events() if body.stream else writer.answer((await job.collect())[0])


async def _encoded(call: Call, asked: ChatRequest) -> list[int]:
    return await call.service.encode(render(call.service.client.text, asked), False)


def _usage(job: Job) -> Usage:
    one = job.usage[0]
    return Usage(one.prompt_tokens - one.cached_tokens, one.completion_tokens, one.cached_tokens)


def _block(call: ToolCall, arguments: dict[str, Any]) -> ToolUseBlock:
    return ToolUseBlock(str(call.id), str(call.function.name), arguments)


class Writer:
    """One answer, whole or as events. full: why it ends when it has all the tokens it may have."""

    def __init__(self, job: Job, asked: ChatRequest, blank: Answer, full: Stop):
        self._job = job
        self._tools = bool(asked.toolbox.tools)
        self._must = asked.toolbox.must
        self._full = full
        self._blank = blank
        self._index = -1  # of the block that is open or was the last
        self._open: type[Block] | None = None

    def answer(self, one: Output) -> Answer:
        text, calls, complete = one.text, list[ToolCall](), False
        if self._tools:
            shown, calls, complete = whole(one.text, self._must)
            text = shown or ""
        answer, ending = self._blank, self._ending(one, complete)
        answer.usage = _usage(self._job)
        answer.content = [TextBlock(text)] if text else []
        for made in calls:
            arguments = made.function.arguments if complete or made is not calls[-1] else "{}"
            answer.content.append(_block(made, msgspec.json.decode(arguments)))
        answer.stop_reason, answer.stop_sequence = ending.stop_reason, ending.stop_sequence
        return answer

    def _ending(self, one: Output, called: bool) -> Ending:
        if one.finish_reason == "length":
            return Ending(self._full, None)
        if isinstance(one.stop_reason, str):
            return Ending("stop_sequence", one.stop_reason)
        return Ending("tool_use" if called else "end_turn", None)

    async def events(self) -> AsyncGenerator[bytes, None]:
        calls = Calls(self._must)
        began = False
        async for burst in self._job.bursts():
            events = list[Event]()
            for _, output in burst:
                if not began:
                    began = True
                    self._blank.usage = _usage(self._job)
                    events.append(Started(self._blank))
                events += self._pieces(output, calls)
                if output.finish_reason is not None:
                    events += self._closed()
                    ending = self._ending(output, calls.complete)
                    events += [MessageDelta(ending, _usage(self._job)), Stopped()]
            yield b"".join(frame(event, str(event.__struct_config__.tag)) for event in events)

    def _pieces(self, output: Output, calls: Calls) -> Iterator[Event]:
        text, found = output.text, list[ToolCall]()
        if self._tools:
            text, found = calls.push(output.text, last=output.finish_reason is not None)
        if text:
            if self._open is not TextBlock:
                yield from self._opened(TextBlock(""))
            yield BlockDelta(self._index, TextDelta(text))
        for part in found:
            if isinstance(part.id, str):
                yield from self._opened(_block(part, {}))
            if part.function.arguments:
                yield BlockDelta(self._index, InputDelta(part.function.arguments))

    def _opened(self, block: Block) -> Iterator[Event]:
        yield from self._closed()
        self._index += 1
        self._open = type(block)
        yield BlockStarted(self._index, block)

    def _closed(self) -> Iterator[Event]:
        if self._open is not None:
            self._open = None
            yield BlockStopped(self._index)
