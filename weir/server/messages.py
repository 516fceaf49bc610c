"""POST /v1/messages and /v1/messages/count_tokens: Anthropic's chat API."""

from collections.abc import AsyncGenerator, Iterator
from typing import Any, Literal

import msgspec
from msgspec import Struct

from weir.client import Output
from weir.server.anthropic import Counted, MessagesRequest
from weir.server.chat import ask, rendered
from weir.server.endpoint import Call, Reply, frame
from weir.server.jobs import Burst, Job
from weir.server.reading import Reader


class Usage(Struct):
    """`input_tokens` excludes prompt tokens found in the cache."""

    input_tokens: int
    output_tokens: int
    cache_read_input_tokens: int
    cache_creation_input_tokens: int = 0


class TextBlock(Struct, tag="text"):
    text: str


class ToolUseBlock(Struct, tag="tool_use"):
    id: str
    name: str
    input: dict[str, Any]


class ThinkingBlock(Struct, tag="thinking"):
    thinking: str
    signature: str = ""  # not checked here


Block = TextBlock | ToolUseBlock | ThinkingBlock
Stop = Literal[
    "end_turn", "max_tokens", "stop_sequence", "tool_use", "model_context_window_exceeded"
]


class Answer(Struct):
    id: str
    model: str
    usage: Usage
    content: list[Block] = []
    stop_reason: Stop | None = None
    stop_sequence: str | None = None
    type: Literal["message"] = "message"
    role: Literal["assistant"] = "assistant"


class InputTokens(Struct):
    input_tokens: int


class Started(Struct, tag="message_start"):
    message: Answer


class BlockStarted(Struct, tag="content_block_start"):
    index: int
    content_block: Block


class TextDelta(Struct, tag="text_delta"):
    text: str


class ThinkingDelta(Struct, tag="thinking_delta"):
    thinking: str


class InputDelta(Struct, tag="input_json_delta"):
    partial_json: str


class BlockDelta(Struct, tag="content_block_delta"):
    index: int
    delta: TextDelta | ThinkingDelta | InputDelta


class BlockStopped(Struct, tag="content_block_stop"):
    index: int


class Ending(Struct):
    stop_reason: Stop
    stop_sequence: str | None


class MessageDelta(Struct, tag="message_delta"):
    delta: Ending
    usage: Usage


class Stopped(Struct, tag="message_stop"):
    pass


Event = Started | BlockStarted | BlockDelta | BlockStopped | MessageDelta | Stopped


async def count(call: Call, body: Counted) -> Reply:
    call.service.model(body.model)
    prompt = rendered(call, body.chat())
    return InputTokens(len(await call.service.encode(prompt, False)))


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
    said = rendered(call, asked)
    prompt = await call.service.encode(said, False)
    room = max(1, client.model.context - len(prompt))
    asked.max_tokens = min(body.max_tokens, room)
    job, [reader] = await ask(
        call, asked, said, [prompt], **asked.details_as("output_config.format")
    )
    full: Stop = "max_tokens" if body.max_tokens <= room else "model_context_window_exceeded"
    answer = Answer(f"msg_{job.id}", model, _usage(job))
    writer = Writer(job, reader, answer, full)
    if body.stream:
        return writer.frames()
    async for _ in writer.frames():
        pass
    return answer


def _usage(job: Job) -> Usage:
    one = job.usage[0]
    return Usage(one.prompt_tokens - one.cached_tokens, one.completion_tokens, one.cached_tokens)


class Writer:
    """Fills a blank answer from the job's output and yields the changes as events. full: the stop
    reason of an answer that reaches its token limit."""

    def __init__(self, job: Job, reader: Reader, answer: Answer, full: Stop):
        self._job = job
        self._answer = answer
        self._full = full
        self._reader = reader
        self._open: Block | None = None
        self._arguments = ""  # of the open call

    async def frames(self) -> AsyncGenerator[bytes, None]:
        began = False
        async for burst in self._job.bursts():
            events = self._events(burst, began)  # encoded before the next one changes the answer
            yield b"".join([frame(event, str(event.__struct_config__.tag)) for event in events])
            began = True

    def _events(self, burst: Burst, began: bool) -> Iterator[Event]:
        if not began:
            self._answer.usage = _usage(self._job)
            yield Started(self._answer)
        for _, output in burst:
            yield from self._pieces(output)

    def _pieces(self, output: Output) -> Iterator[Event]:
        thought, text, calls = self._reader.push(output)
        if calls and not isinstance(calls[0].id, str):  # the end of the open call, before the rest
            ended, *calls = calls
            yield self._more(ended.function.arguments)
        if thought:
            if not isinstance(self._open, ThinkingBlock):
                yield from self._opened(ThinkingBlock(""))
            yield self._more(thought)
        if text:
            if not isinstance(self._open, TextBlock):
                yield from self._opened(TextBlock(""))
            yield self._more(text)
        for part in calls:
            if isinstance(part.id, str):
                yield from self._opened(ToolUseBlock(part.id, str(part.function.name), {}))
            else:
                yield self._more(part.function.arguments)
        if output.finish_reason is not None:
            yield from self._ended(output)

    def _opened(self, block: Block) -> Iterator[Event]:
        yield from self._closed(whole=True)
        self._open, self._arguments = block, ""
        self._answer.content.append(block)
        yield BlockStarted(self._index, block)

    def _more(self, text: str) -> Event:
        if isinstance(self._open, TextBlock):
            self._open.text += text
            return BlockDelta(self._index, TextDelta(text))
        if isinstance(self._open, ThinkingBlock):
            self._open.thinking += text
            return BlockDelta(self._index, ThinkingDelta(text))
        self._arguments += text
        return BlockDelta(self._index, InputDelta(text))

    def _closed(self, whole: bool) -> Iterator[Event]:
        """whole: the open call is complete; a truncated one gets no arguments."""
        if isinstance(self._open, ToolUseBlock) and whole:
            self._open.input = msgspec.json.decode(self._arguments)
        if self._open is not None:
            yield BlockStopped(self._index)
        self._open = None

    def _ended(self, output: Output) -> Iterator[Event]:
        called = self._reader.called
        yield from self._closed(whole=called)
        answer = self._answer
        answer.stop_reason = "tool_use" if called else "end_turn"
        if output.finish_reason == "length":
            answer.stop_reason = self._full
        elif isinstance(output.stop_reason, str):
            answer.stop_reason, answer.stop_sequence = "stop_sequence", output.stop_reason
        answer.usage = _usage(self._job)
        yield MessageDelta(Ending(answer.stop_reason, answer.stop_sequence), answer.usage)
        yield Stopped()

    @property
    def _index(self) -> int:
        return len(self._answer.content) - 1
