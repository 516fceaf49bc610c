"""POST /v1/responses: OpenAI's later chat API. Nothing is stored, so a client sends all items of a
conversation; tools are the client's own functions."""

import time
from collections.abc import AsyncGenerator, Iterator
from typing import Any, Literal
from uuid import uuid4

from msgspec import UNSET, Struct, UnsetType
from msgspec.structs import replace

from weir.client import Output
from weir.server.chat import ask, rendered
from weir.server.endpoint import Call, Reply, frame
from weir.server.items import Offered, ResponsesRequest
from weir.server.jobs import Burst, Job
from weir.server.reading import Reader

NAMES = {"prompt": "input", "max_tokens": "max_output_tokens"}
Status = Literal["in_progress", "completed", "incomplete"]


class OutputText(Struct, tag="output_text"):
    text: str
    annotations: list[str] = []
    logprobs: list[str] = []


class Said(Struct, tag="message"):
    id: str
    content: list[OutputText] = []
    status: Status = "in_progress"
    role: Literal["assistant"] = "assistant"


class ReasoningText(Struct, tag="reasoning_text"):
    text: str


class Thought(Struct, tag="reasoning"):
    id: str
    content: list[ReasoningText] = []
    status: Status = "in_progress"
    summary: list[str] = []


class Called(Struct, tag="function_call"):
    id: str
    call_id: str
    name: str
    arguments: str = ""
    status: Status = "in_progress"


class Cached(Struct):
    cached_tokens: int


class Reasoned(Struct):
    reasoning_tokens: int


class Usage(Struct):
    input_tokens: int
    input_tokens_details: Cached
    output_tokens: int
    total_tokens: int
    output_tokens_details: Reasoned


class Incomplete(Struct):
    reason: Literal["max_output_tokens"]


class Response(Struct):
    id: str
    created_at: int
    model: str
    instructions: str | None
    metadata: Any
    tools: list[Offered]
    tool_choice: Any
    parallel_tool_calls: bool
    temperature: float
    top_p: float
    max_output_tokens: int | None
    status: Status = "in_progress"
    incomplete_details: Incomplete | None = None
    output: list[Said | Thought | Called] = []
    usage: Usage | None = None
    error: None = None
    object: Literal["response"] = "response"


class Event(Struct):
    """An event of any kind; fields that a kind lacks are left out."""

    type: str
    sequence_number: int = 0
    response: Response | UnsetType = UNSET
    output_index: int | UnsetType = UNSET
    item_id: str | UnsetType = UNSET
    content_index: int | UnsetType = UNSET
    item: Said | Thought | Called | UnsetType = UNSET
    part: OutputText | ReasoningText | UnsetType = UNSET
    delta: str | UnsetType = UNSET
    text: str | UnsetType = UNSET
    arguments: str | UnsetType = UNSET
    name: str | UnsetType = UNSET
    logprobs: list[str] | UnsetType = UNSET


async def responses(call: Call, body: ResponsesRequest) -> Reply:
    model = call.service.model(body.model)
    asked = body.chat()
    prompt = rendered(call, asked)
    details = asked.details_as("text.format") | body.details
    job, [reader] = await ask(call, asked, prompt, [prompt], names=NAMES, **details)
    params = job.streams[0].assembly.params
    blank = Response(
        id=f"resp_{job.id}",
        created_at=int(time.time()),
        model=model,
        instructions=body.instructions,
        metadata=body.metadata or {},
        tools=body.tools or [],
        tool_choice=body.tool_choice or "auto",
        parallel_tool_calls=body.parallel_tool_calls is not False,
        temperature=params.temperature,
        top_p=params.top_p,
        max_output_tokens=body.max_output_tokens,
    )
    writer = Writer(job, reader, blank)
    if body.stream:
        return writer.frames()
    async for _ in writer.frames():
        pass
    return blank


class Writer:
    """Fills a blank response from the job's output and yields the changes as events."""

    def __init__(self, job: Job, reader: Reader, response: Response):
        self._job = job
        self._response = response
        self._reader = reader
        self._open: Said | Thought | Called | None = None

    async def frames(self) -> AsyncGenerator[bytes, None]:
        number = 0
        async for burst in self._job.bursts():
            frames = []
            for event in self._events(burst, begin=number == 0):
                event.sequence_number = number
                number += 1
                frames.append(frame(event, event.type))  # before the item changes
            yield b"".join(frames)

    def _events(self, burst: Burst, begin: bool) -> Iterator[Event]:
        if begin:
            yield Event("response.created", response=self._response)
            yield Event("response.in_progress", response=self._response)
        for _, output in burst:
            yield from self._pieces(output)

    def _pieces(self, output: Output) -> Iterator[Event]:
        thought, text, calls = self._reader.push(output)
        if calls and not isinstance(calls[0].id, str):  # the end of the open call, before the rest
            ended, *calls = calls
            yield from self._more(ended.function.arguments)
        if thought:
            if not isinstance(self._open, Thought):
                yield from self._opened(Thought(f"rs_{uuid4().hex}", [ReasoningText("")]))
            yield from self._more(thought)
        if text:
            if not isinstance(self._open, Said):
                yield from self._opened(Said(f"msg_{uuid4().hex}", [OutputText("")]))
            yield from self._more(text)
        for call in calls:
            if isinstance(call.id, str):
                name = str(call.function.name)
                yield from self._opened(Called(f"fc_{uuid4().hex}", call.id, name))
            else:
                yield from self._more(call.function.arguments)
        if output.finish_reason is not None:
            yield from self._ended(output.finish_reason)

    def _opened(self, item: Said | Thought | Called) -> Iterator[Event]:
        yield from self._closed("completed")
        self._open = item
        self._response.output.append(item)
        if isinstance(item, Called):
            yield self._event("response.output_item.added", item=item)
            return
        yield self._event("response.output_item.added", item=replace(item, content=[]))
        yield self._event("response.content_part.added", part=item.content[0])

    def _more(self, text: str) -> Iterator[Event]:
        if isinstance(self._open, Said | Thought):
            part = self._open.content[0]
            part.text += text
            yield self._event(f"response.{part.__struct_config__.tag}.delta", delta=text)
        elif self._open is not None:
            self._open.arguments += text
            yield self._event("response.function_call_arguments.delta", delta=text)

    def _closed(self, status: Status) -> Iterator[Event]:
        item = self._open
        if isinstance(item, Said | Thought):
            part = item.content[0]
            yield self._event(f"response.{part.__struct_config__.tag}.done", text=part.text)
            yield self._event("response.content_part.done", part=part)
        elif item is not None:
            done = "response.function_call_arguments.done"
            yield self._event(done, arguments=item.arguments, name=item.name)
        if item is not None:
            item.status = status
            yield self._event("response.output_item.done", item=item)
        self._open = None

    def _ended(self, reason: str) -> Iterator[Event]:
        response, used = self._response, self._job.usage[0]
        status: Status = "completed" if reason == "stop" else "incomplete"
        whole = isinstance(self._open, Called) and self._reader.called
        yield from self._closed("completed" if whole else status)
        response.status = status
        if reason == "length":
            response.incomplete_details = Incomplete("max_output_tokens")
        response.usage = Usage(
            used.prompt_tokens,
            Cached(used.cached_tokens),
            used.completion_tokens,
            used.prompt_tokens + used.completion_tokens,
            Reasoned(self._job.reasoning_tokens),
        )
        yield Event(f"response.{status}", response=response)

    def _event(self, kind: str, **fields: Any) -> Event:
        """An event of the open item."""
        event = Event(kind, output_index=len(self._response.output) - 1, **fields)
        if not kind.startswith("response.output_item"):
            assert self._open is not None
            event.item_id = self._open.id
            event.content_index = UNSET if isinstance(self._open, Called) else 0
        if kind.startswith("response.output_text"):
            event.logprobs = []
        return event
