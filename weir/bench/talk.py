"""A conversation with a chat server, with streamed answers."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

import msgspec

from weir.bench.client import Message, decode, words
from weir.http import Http, HttpError


async def first_model(http: Http) -> str:
    """The name of the first model that a server lists. Raises `HttpError`."""
    listed = msgspec.json.decode(await http.get("/v1/models"))
    try:
        return str(listed["data"][0]["id"])
    except (LookupError, TypeError):
        raise HttpError(f"{http.base} does not say what it serves: give the model's name") from None


@dataclass(slots=True)
class Talk:
    """A conversation so far, and the server that continues it."""

    http: Http
    model: str
    settings: dict[str, Any]
    messages: list[dict[str, str]] = field(default_factory=list)

    def reset(self, system: str | None = None) -> None:
        """Drop all messages; keep the system prompt, or set another."""
        kept = [message for message in self.messages if message["role"] == "system"]
        self.messages = [{"role": "system", "content": system}] if system else kept

    async def answer(self, text: str) -> AsyncGenerator[str]:
        """Send `text`; yields the answer in pieces. What was received of it becomes part of the
        conversation. Raises `HttpError`."""
        self.messages.append({"role": "user", "content": text})
        heard: list[str] = []
        body = {"model": self.model, "messages": self.messages, "stream": True, **self.settings}
        try:
            async with aclosing(self.http.stream("/v1/chat/completions", body)) as events:
                async for event in events:
                    if piece := said(decode(event.data)):
                        heard.append(piece)
                        yield piece
        finally:
            if heard:
                self.messages.append({"role": "assistant", "content": "".join(heard)})
            else:
                self.messages.pop()


def said(message: Message) -> str:
    if message.error:
        raise HttpError(words(message.error))
    delta = message.choices[0].delta if message.choices else None
    return (delta.content or "") if delta else ""
