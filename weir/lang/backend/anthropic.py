"""A service that speaks Anthropic's messages."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Sequence
from typing import Any

from weir.errors import BadRequest, ConfigError
from weir.lang.backend.base import Piece, Prompt, Score, Turn
from weir.lang.backend.openai import image_url
from weir.lang.backend.service import Service

VERSION = "2023-06-01"
NAMES = {"stop": "stop_sequences"}
TAKEN = {"max_tokens", "temperature", "top_p", "top_k", "stop"}


class Anthropic:
    """model_name: as the service knows it. api_key: by default ANTHROPIC_API_KEY.

    The system's turn must come first. An assistant's turn that has begun is gone on with."""

    chats = True

    def __init__(
        self,
        model_name: str,
        base_url: str = "https://api.anthropic.com/v1",
        api_key: str | None = None,
    ):
        key = api_key or os.environ.get("ANTHROPIC_API_KEY", "")
        if not key:
            raise ConfigError("Anthropic needs a key: set ANTHROPIC_API_KEY, or give api_key")
        self.model = model_name
        self.service = Service(base_url, {"x-api-key": key, "anthropic-version": VERSION})

    def shutdown(self) -> None:
        """Close the connections to the service."""
        self.service.close()

    def turn(self, roles: Sequence[str]) -> Turn:
        return Turn(f"{roles[-1].upper()}: ", "\n")

    async def generate(
        self, prompt: Prompt, settings: dict[str, Any]
    ) -> AsyncGenerator[Piece, None]:
        if prompt.role != "assistant":
            raise BadRequest("this service writes the assistant's turns only: use weir.assistant")
        async for event in self.service.events("/messages", self._body(prompt, settings)):
            match event.get("type"):
                case "content_block_delta":
                    yield Piece(event["delta"].get("text", ""))
                case "message_start":
                    self.service.count({"input_tokens": event["message"]["usage"]["input_tokens"]})
                case "message_delta":
                    used = event["usage"]["output_tokens"]
                    self.service.count({"output_tokens": used})
                    reason = event["delta"]["stop_reason"]
                    finish = "length" if reason == "max_tokens" else "stop"
                    yield Piece("", finish_reason=finish, completion_tokens=used)

    def _body(self, prompt: Prompt, settings: dict[str, Any]) -> dict[str, Any]:
        unknown = sorted(settings.keys() - TAKEN)
        if unknown:
            raise BadRequest(f"this service takes no {unknown[0]}", param=unknown[0])
        body = {NAMES.get(name, name): value for name, value in settings.items()}
        if isinstance(body.get("stop_sequences"), str):
            body["stop_sequences"] = [body["stop_sequences"]]
        system = [turn["content"] for turn in prompt.turns if turn["role"] == "system"]
        messages = [_message(turn) for turn in prompt.turns if turn["role"] != "system"]
        begun = prompt.text[prompt.turn_start :].rstrip()
        if begun:
            messages.append({"role": "assistant", "content": begun})
        if system:
            body["system"] = "\n\n".join(system)
        return body | {"model": self.model, "messages": messages, "stream": True}

    async def score(self, prompt: Prompt, choices: Sequence[str]) -> list[Score]:
        raise BadRequest("select needs logprobs of the prompt, which this service does not give")

    async def cache(self, prompt: Prompt) -> None:
        """The service takes no hints."""

    async def flush(self) -> None:
        raise BadRequest("this service's cache cannot be flushed")


def _message(turn: dict[str, Any]) -> dict[str, Any]:
    if not turn["images"]:
        return {"role": turn["role"], "content": turn["content"]}
    parts: list[dict[str, Any]] = [{"type": "text", "text": turn["content"]}]
    for image in turn["images"]:
        url = image_url(image)
        if url.startswith("data:"):
            kind, data = url.removeprefix("data:").split(";base64,")
            source = {"type": "base64", "media_type": kind, "data": data}
        else:
            source = {"type": "url", "url": url}
        parts.append({"type": "image", "source": source})
    return {"role": turn["role"], "content": parts}
