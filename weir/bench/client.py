"""Times one conversation with a server, through each kind of API.

An event counts as an arrival of tokens if it has text, or may have tokens whose text the server
holds back. A stream's first message, with the role, and its last, with the usage, do not count.
Token counts are the server's.
"""

import time
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

import msgspec
from msgspec import Struct

from weir.errors import ConfigError
from weir.http import Http, HttpError
from weir.sim.report import Record
from weir.sim.workload import Item

ENDPOINTS = {
    "openai": "/v1/completions",
    "vllm": "/v1/completions",
    "openai-chat": "/v1/chat/completions",
    "sglang": "/generate",
}


class Details(Struct):
    cached_tokens: int | None = None


class Usage(Struct):
    prompt_tokens: int = 0
    completion_tokens: int | None = None
    prompt_tokens_details: Details | None = None


class Said(Struct):
    content: str | None = None
    reasoning_content: str | None = None
    role: str | None = None


class Choice(Struct):
    text: str | None = None
    delta: Said | None = None
    finish_reason: str | None = None


class Meta(Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0


class Message(Struct):
    """One event of a stream of any API, with only the fields that benchmarks need."""

    choices: list[Choice] = []
    usage: Usage | None = None
    error: Any = None
    text: str | None = None  # /generate: all text so far
    meta_info: Meta | None = None


decode = msgspec.json.Decoder(Message).decode


@dataclass(slots=True)
class Target:
    """Where requests go, and what all of them have in common."""

    http: Http
    backend: str  # one of ENDPOINTS
    model: str
    endpoint: str = ""
    ignore_eos: bool = False
    temperature: float = 0.0
    extra: dict[str, Any] = field(default_factory=dict)  # more fields of the body

    def __post_init__(self) -> None:
        if self.backend not in ENDPOINTS:
            raise ConfigError(f"--backend must be one of {', '.join(ENDPOINTS)}")
        self.endpoint = self.endpoint or ENDPOINTS[self.backend]

    async def converse(self, item: Item) -> list[Record]:
        """Run all turns of a conversation in order; stops after a turn that fails."""
        prompt: Any = item.prompt
        if self.backend == "openai-chat":
            prompt = [{"role": "user", "content": item.prompt}]
        records = [await self.request(prompt, item.output)]
        for turn in item.turns:
            if records[-1].error:
                break
            prompt = self._continued(prompt, records[-1].text, turn)
            records.append(await self.request(prompt, item.output))
        return records

    async def warm_up(self, output: int = 4) -> Record:
        """Send a first request. Raises `HttpError` if it fails."""
        (record,) = await self.converse(Item("Hello", output))
        if record.error:
            raise HttpError(f"the first request failed: {record.error}")
        return record

    async def request(self, prompt: Any, output: int) -> Record:
        """Send one request and read its stream. A failure is in the record, not raised."""
        record = Record(time.perf_counter())
        pieces: list[str] = []
        try:
            async with aclosing(
                self.http.stream(self.endpoint, self.body(prompt, output))
            ) as events:
                async for event in events:
                    self._read(decode(event.data), event.arrival, record, pieces)
            if not record.arrivals:
                record.error = "the server ended the stream without an answer"
        except (HttpError, msgspec.DecodeError) as error:
            record.error = str(error)
        record.end = time.perf_counter()
        record.text = "".join(pieces)
        record.output_tokens = record.output_tokens or len(record.arrivals)
        return record

    def body(self, prompt: Any, output: int) -> dict[str, Any]:
        if self.backend == "sglang":
            sampling = {"temperature": self.temperature, "max_new_tokens": output}
            sampling["ignore_eos"] = self.ignore_eos
            key = "text" if isinstance(prompt, str) else "input_ids"
            return {key: prompt, "sampling_params": sampling, "stream": True, **self.extra}
        chat = self.backend == "openai-chat"
        return {
            "model": self.model,
            "messages" if chat else "prompt": prompt,
            "max_tokens": output,
            "temperature": self.temperature,
            "stream": True,
            "stream_options": {"include_usage": True},
            **({"ignore_eos": True} if self.ignore_eos else {}),
            **self.extra,
        }

    def _continued(self, prompt: Any, answer: str, turn: str) -> Any:
        if self.backend == "openai-chat":
            said = [{"role": "assistant", "content": answer}, {"role": "user", "content": turn}]
            return [*prompt, *said]
        return f"{prompt}{answer}\n\n{turn}\n\n"

    def _read(self, message: Message, arrival: float, record: Record, pieces: list[str]) -> None:
        """Add one event to the record and its text. Raises `HttpError` if it is an error."""
        if message.error:
            raise HttpError(words(message.error))
        fresh = False
        if message.usage is not None:
            details = message.usage.prompt_tokens_details
            record.prompt_tokens = message.usage.prompt_tokens
            record.output_tokens = message.usage.completion_tokens or record.output_tokens
            record.cached_tokens = (details.cached_tokens if details else None) or 0
        if message.meta_info is not None:
            meta = message.meta_info
            fresh = meta.completion_tokens > record.output_tokens
            record.prompt_tokens = meta.prompt_tokens
            record.output_tokens = meta.completion_tokens
            record.cached_tokens = meta.cached_tokens
            pieces[:] = [message.text or ""]
        elif message.choices:
            text, fresh = heard(message.choices[0])
            pieces.append(text)
            if message.choices[0].finish_reason is not None and not record.arrivals:
                fresh = True  # of an empty answer the end counts
        if fresh:
            record.arrivals.append(arrival)


def heard(choice: Choice) -> tuple[str, bool]:
    """The text of a choice's event, and whether it counts as an arrival of tokens."""
    said = choice.delta
    if said is None:
        text = choice.text or ""
        return text, bool(text) or choice.finish_reason is None
    text = said.content or ""
    opening = said.role is not None and not text and not said.reasoning_content
    return text, bool(text or said.reasoning_content) or not (choice.finish_reason or opening)


def words(error: Any) -> str:
    return str(error.get("message", error) if isinstance(error, dict) else error)
