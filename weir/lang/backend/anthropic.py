"""A service with Anthropic's messages API."""

import os
from collections.abc import AsyncGenerator
from typing import Any

from weir.errors import BadRequest, ConfigError
from weir.lang.backend.base import Piece, Prompt
from weir.lang.backend.hosted import Hosted, message, open_turn
from weir.lang.backend.service import Service

VERSION = "2023-06-01"
NAMES = {"stop": "stop_sequences"}
TAKEN = {"max_tokens", "temperature", "top_p", "top_k", "stop"}


class Anthropic(Hosted):
    """model_name: the service's name of the model. api_key: by default ANTHROPIC_API_KEY. timeout:
    of `Service`.

    The system's turn must come first. An assistant's turn that has begun is continued."""

    def __init__(
        self,
        model_name: str,
        base_url: str = "https://api.anthropic.com/v1",
        api_key: str | None = None,
        timeout: float = 600.0,
    ):
        key = api_key or os.environ.get("ANTHROPIC_API_KEY", "")
        if not key:
            raise ConfigError("Anthropic needs a key: set ANTHROPIC_API_KEY, or give api_key")
        headers = {"x-api-key": key, "anthropic-version": VERSION}
        super().__init__(Service(base_url, headers, timeout), model_name)

    async def generate(
        self, prompt: Prompt, settings: dict[str, Any]
    ) -> AsyncGenerator[Piece, None]:
        begun = open_turn(prompt)
        blank = begun[len(begun.rstrip()) :]  # the service refuses a turn that ends with space
        async for event in self.service.events("/messages", self._body(prompt, settings)):
            match event.get("type"):
                case "content_block_delta":
                    text = event["delta"].get("text", "")
                    yield Piece(text.removeprefix(blank))
                    blank = "" if text else blank
                case "message_start":
                    given = event["message"]["usage"]["input_tokens"]
                    self.service.count({"input_tokens": given})
                    yield Piece("", prompt_tokens=given)
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
        messages = [message(turn, _picture) for turn in prompt.turns if turn["role"] != "system"]
        if begun := open_turn(prompt).rstrip():
            messages.append({"role": "assistant", "content": begun})
        if system:
            body["system"] = "\n\n".join(system)
        return body | {"model": self.model, "messages": messages, "stream": True}


def _picture(url: str) -> dict[str, Any]:
    if not url.startswith("data:"):
        return {"type": "image", "source": {"type": "url", "url": url}}
    kind, data = url.removeprefix("data:").split(";base64,")
    source = {"type": "base64", "media_type": kind, "data": data}
    return {"type": "image", "source": source}
